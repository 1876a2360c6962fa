// Fills a volume with a snapshot of another one: each of its replicas fetches the merged image from
// a replica of the source.

import { StorageError } from '../core/errors.js';
import { LONG_CALL_DEADLINE_MS } from '../rpc/client.js';
import { type Connections, parseReplicaUrl, withContext } from './connections.js';
import { listReplicas } from './replicas.js';
import { onEach, statusOfEach } from './task-error.js';

export interface CloneRequest {
  readonly snapshotName: string;
  readonly exportBackingImage: boolean;
  readonly httpTimeoutSeconds: number;
  /** Zero: Longhorn's long limit. */
  readonly deadlineSeconds: number;
}

/**
 * Returns when every replica holds the snapshot and has it as its content.
 * @param source connections to the engine of the source volume.
 * @throws NO_BACKEND when the source has no RW replica; INVALID_STATE when a target is not RW.
 */
export async function cloneSnapshot(
  connections: Connections,
  source: Connections,
  request: CloneRequest,
): Promise<void> {
  const from = (await listReplicas(source)).find(({ mode }) => mode === 'RW');
  if (from === undefined) {
    const text = `no replica of ${source.engineName} is RW, so none can be cloned from`;
    throw new StorageError('NO_BACKEND', text);
  }
  const targets = await listReplicas(connections);
  const unready = targets.find(({ mode }) => mode !== 'RW');
  if (unready !== undefined) {
    throw new StorageError(
      'INVALID_STATE',
      `cannot do snapshot clone because replica ${unready.address} in ${unready.mode} mode. ` +
        'All replicas in the target volume must be in RW mode',
    );
  }
  const { deadlineSeconds } = request;
  const deadlineMs = deadlineSeconds > 0 ? deadlineSeconds * 1000 : LONG_CALL_DEADLINE_MS;
  await withContext(`failed to clone snapshot ${request.snapshotName}`, () =>
    onEach(
      targets.map(({ address }) => address),
      (address) => cloneInto(connections, source, from.address, address, request, deadlineMs),
    ),
  );
}

async function cloneInto(
  connections: Connections,
  source: Connections,
  fromAddress: string,
  toAddress: string,
  request: CloneRequest,
  deadlineMs: number,
): Promise<void> {
  const agent = connections.syncAgent(toAddress);
  await agent.snapshotClone(
    {
      fromAddress,
      toHost: parseReplicaUrl(toAddress).host,
      snapshotFileName: request.snapshotName,
      exportBackingImageIfExist: request.exportBackingImage,
      fileSyncHttpClientTimeout: request.httpTimeoutSeconds,
      fromVolumeName: source.options.volumeName,
    },
    { deadlineMs },
  );
  // A Longhorn agent answers OK even when the clone failed; only the status tells.
  const status = await agent.snapshotCloneStatus({});
  if (status.error !== '') throw new StorageError('PEER_ERROR', status.error);
}

/** Keys and their order are those of Longhorn's `snapshots clone-status`. */
export interface CloneStatus {
  readonly isCloning: boolean;
  readonly error: string;
  readonly progress: number;
  readonly state: string;
  readonly fromReplicaAddress: string;
  readonly snapshotName: string;
}

/** By replica address; ERR replicas are left out. */
export async function cloneStatuses(
  connections: Connections,
): Promise<Record<string, CloneStatus>> {
  const live = (await listReplicas(connections)).filter(({ mode }) => mode !== 'ERR');
  return statusOfEach(
    live.map(({ address }) => address),
    async (address) => {
      const status = await connections.syncAgent(address).snapshotCloneStatus({});
      const { isCloning, error, progress, state, fromReplicaAddress, snapshotName } = status;
      return { isCloning, error, progress, state, fromReplicaAddress, snapshotName };
    },
    (error) => ({
      isCloning: false,
      error,
      progress: 0,
      state: '',
      fromReplicaAddress: '',
      snapshotName: '',
    }),
  );
}

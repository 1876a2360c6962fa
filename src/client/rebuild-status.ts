// Progress of replicas that are being filled, as their sync agents report it.

import type { Connections } from './connections.js';
import { listReplicas } from './replicas.js';
import { onEach, statusOfEach } from './task-error.js';

/** Keys and their order are those of Longhorn's `replica-rebuild-status`. */
export interface RebuildStatus {
  readonly error: string;
  readonly isRebuilding: boolean;
  /** Percent. */
  readonly progress: number;
  readonly state: string;
  readonly fromReplicaAddressList: readonly string[];
}

/** By address, for replicas in mode WO only; none on a volume that is being restored. */
export async function rebuildStatuses(
  connections: Connections,
): Promise<Record<string, RebuildStatus>> {
  const filling = (await listReplicas(connections)).filter(({ mode }) => mode === 'WO');
  const addresses: string[] = [];
  for (const { address } of filling) {
    // A WO replica of a volume being restored is filled by the restore, not by a rebuild.
    const restore = await connections
      .syncAgent(address)
      .restoreStatus({})
      .catch(() => null);
    if (restore === null || restore.destFileName === '') addresses.push(address);
  }
  return statusOfEach(
    addresses,
    async (address) => {
      const status = await connections.syncAgent(address).replicaRebuildStatus({});
      const { error, isRebuilding, progress, state, fromReplicaAddressList } = status;
      return { error, isRebuilding, progress, state, fromReplicaAddressList };
    },
    (error) => ({ error, isRebuilding: false, progress: 0, state: '', fromReplicaAddressList: [] }),
  );
}

/** Clears what the sync agents remember of earlier jobs. @throws the taskError of those that failed. */
export async function resetSyncAgents(connections: Connections): Promise<void> {
  const live = (await listReplicas(connections)).filter(({ mode }) => mode !== 'ERR');
  await onEach(
    live.map(({ address }) => address),
    (address) => connections.syncAgent(address).reset({}),
  );
}

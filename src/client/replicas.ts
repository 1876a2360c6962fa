// The replicas of a running volume: which there are, in which mode, and changes to that set.

import { ReplicaMode as WireMode } from '../api/generated/controller.js';
import type { Replica as ReplicaInfo } from '../api/generated/replica.js';
import { StorageError, toStorageError } from '../core/errors.js';
import { type Connections, withContext } from './connections.js';

export type ReplicaMode = 'WO' | 'RW' | 'ERR';

export interface ReplicaEntry {
  readonly address: string;
  readonly mode: ReplicaMode;
}

/** A replica with what it says of itself. */
export interface DescribedReplica extends ReplicaEntry {
  /** Null when it is ERR, which is not asked, or did not answer. */
  readonly info: ReplicaInfo | null;
  /** Why it did not answer. */
  readonly failure: StorageError | null;
}

function modeOfWire(mode: WireMode): ReplicaMode {
  switch (mode) {
    case WireMode.WO:
      return 'WO';
    case WireMode.RW:
      return 'RW';
    case WireMode.ERR:
      return 'ERR';
  }
}

/** In the engine's order. */
export async function listReplicas(connections: Connections): Promise<ReplicaEntry[]> {
  const { replicas } = await connections.onEngine('list replicas for volume', (engine) =>
    engine.replicaList({}),
  );
  return replicas.map(({ address, mode }) => ({
    address: address?.address ?? '',
    mode: modeOfWire(mode),
  }));
}

/** What a replica says of itself. @throws the peer's error, naming the replica. */
export async function getReplica(connections: Connections, address: string): Promise<ReplicaInfo> {
  const name = address.replace(/^tcp:\/\//, '');
  const { replica } = await withContext(`failed to get replica ${name}`, () =>
    connections.replica(address).replicaGet({}),
  );
  if (replica === undefined) {
    throw new StorageError('PEER_ERROR', `failed to get replica ${name}: empty answer`);
  }
  return replica;
}

/** Every replica with its own view; one that cannot be asked does not hide the others. */
export async function describeReplicas(connections: Connections): Promise<DescribedReplica[]> {
  const replicas = await listReplicas(connections);
  return Promise.all(
    replicas.map(async (entry) => {
      if (entry.mode === 'ERR') return { ...entry, info: null, failure: null };
      try {
        return { ...entry, info: await getReplica(connections, entry.address), failure: null };
      } catch (error) {
        return { ...entry, info: null, failure: toStorageError(error) };
      }
    }),
  );
}

export async function removeReplica(connections: Connections, address: string): Promise<void> {
  await connections.onEngine(`delete replica ${address} for volume`, (engine) =>
    engine.replicaDelete({ address, instanceName: '' }),
  );
}

/** @param mode ERR, or RW; a replica that is ERR stays so. */
export async function updateReplica(
  connections: Connections,
  address: string,
  mode: ReplicaMode,
): Promise<void> {
  await connections.onEngine(`update replica ${address} to mode ${mode} for volume`, (engine) =>
    engine.replicaUpdate({ address: { address, instanceName: '' }, mode: WireMode[mode] }),
  );
}

export async function verifyRebuild(connections: Connections, address: string): Promise<void> {
  const instanceName = connections.options.replicaInstanceName ?? '';
  await connections.onEngine(`verify rebuilt replica ${address} for volume`, (engine) =>
    engine.replicaVerifyRebuild({ address, instanceName }),
  );
}

export interface StartRequest {
  readonly addresses: readonly string[];
  readonly sizeBytes: number;
  readonly currentSizeBytes: number;
}

/** @throws INVALID_STATE when the volume already has replicas: they are added one by one. */
export async function startVolume(connections: Connections, request: StartRequest): Promise<void> {
  const volume = await connections.onEngine('get volume', (engine) => engine.volumeGet({}));
  if (volume.replicaCount > 0) {
    const text = 'cannot add multiple replicas if volume is already up';
    throw new StorageError('INVALID_STATE', text);
  }
  await connections.onEngine('start volume', (engine) =>
    engine.volumeStart({
      replicaAddresses: [...request.addresses],
      size: request.sizeBytes,
      currentSize: request.currentSizeBytes,
    }),
  );
}

// Checksums of snapshots, computed by every replica's sync agent in the background.

import { StorageError } from '../core/errors.js';
import { type Connections, withContext } from './connections.js';
import { getReplica, listReplicas, type ReplicaEntry } from './replicas.js';
import { onEach, statusOfEach } from './task-error.js';

/** Keys and their order are those of Longhorn's `snapshots hash-status`. */
export interface HashStatus {
  readonly state: string;
  /** Hexadecimal CRC-64; empty until complete. */
  readonly checksum: string;
  readonly error: string;
  readonly silentlyCorrupted: boolean;
}

async function checkCanHash(connections: Connections, entry: ReplicaEntry): Promise<void> {
  const { address, mode } = entry;
  const refuse = (why: string): never => {
    const text = `cannot request hashing snapshot because ${address} ${why}`;
    throw new StorageError('INVALID_STATE', text, { address });
  };
  if (mode !== 'RW') refuse(`is in ${mode} mode`);
  if ((await getReplica(connections, address)).rebuilding) refuse('is rebuilding');
  const { isLocked } = await connections.syncAgent(address).snapshotHashLockState({});
  if (isLocked) refuse('is hashing another snapshot');
}

/**
 * Starts hashing on every replica; it runs on after this returns.
 * @param rehash also when a valid checksum is stored.
 * @throws INVALID_STATE unless all replicas are RW, not rebuilding, and not hashing yet.
 */
export async function hashSnapshot(
  connections: Connections,
  name: string,
  rehash: boolean,
): Promise<void> {
  const replicas = await listReplicas(connections);
  await withContext(`failed to hash snapshot ${name}`, () =>
    hashOnReplicas(connections, replicas, name, rehash),
  );
}

/** Starts hashing on these replicas. @throws as hashSnapshot. */
export async function hashOnReplicas(
  connections: Connections,
  replicas: readonly ReplicaEntry[],
  name: string,
  rehash: boolean,
): Promise<void> {
  for (const entry of replicas) await checkCanHash(connections, entry);
  await onEach(
    replicas.map(({ address }) => address),
    (address) => connections.syncAgent(address).snapshotHash({ snapshotName: name, rehash }),
  );
}

/** Stops hashing the snapshot on every replica that is not ERR; none doing so is fine. */
export async function cancelHash(connections: Connections, name: string): Promise<void> {
  const live = (await listReplicas(connections)).filter(({ mode }) => mode !== 'ERR');
  await withContext(`failed to cancel hashing snapshot ${name}`, () =>
    onEach(
      live.map(({ address }) => address),
      (address) => connections.syncAgent(address).snapshotHashCancel({ snapshotName: name }),
    ),
  );
}

/** By replica address; ERR replicas are left out. */
export async function hashStatuses(
  connections: Connections,
  name: string,
): Promise<Record<string, HashStatus>> {
  const live = (await listReplicas(connections)).filter(({ mode }) => mode !== 'ERR');
  return statusOfEach(
    live.map(({ address }) => address),
    (address) => hashStatusOf(connections, address, name),
    (error) => ({ state: '', checksum: '', error, silentlyCorrupted: false }),
  );
}

/** @throws the peer's error. */
export async function hashStatusOf(
  connections: Connections,
  address: string,
  name: string,
): Promise<HashStatus> {
  const status = await connections.syncAgent(address).snapshotHashStatus({ snapshotName: name });
  const { state, checksum, error, silentlyCorrupted } = status;
  return { state, checksum, error, silentlyCorrupted };
}

// Snapshots of a running volume as its readable replicas know them, and the actions on them that
// need every replica: mark as removed, purge.

import type { DiskInfo, Replica as ReplicaInfo } from '../api/generated/replica.js';
import { StorageError } from '../core/errors.js';
import { type Connections, withContext } from './connections.js';
import { describeReplicas, type DescribedReplica, getReplica, listReplicas } from './replicas.js';
import { onEach, statusOfEach } from './task-error.js';

export const VOLUME_HEAD_NAME = 'volume-head';
const SNAPSHOT_DISK = /^volume-snap-(.+)\.img$/;
const HEAD_DISK = /^volume-head-.+\.img$/;

/** Keys and their order are those of Longhorn's `snapshots info`. */
export interface SnapshotInfo {
  readonly name: string;
  readonly parent: string;
  readonly children: Readonly<Record<string, boolean>>;
  readonly removed: boolean;
  readonly usercreated: boolean;
  readonly created: string;
  /** Allocated bytes, in decimal. */
  readonly size: string;
  readonly labels: Readonly<Record<string, string>>;
}

/** `volume-snap-X.img` → X, any head → volume-head, '' for the backing image and the like. */
function snapshotName(diskName: string): string {
  if (HEAD_DISK.test(diskName)) return VOLUME_HEAD_NAME;
  return SNAPSHOT_DISK.exec(diskName)?.[1] ?? '';
}

/** Longhorn prints its maps sorted by key. */
function sortedByKey<T>(entries: Iterable<readonly [string, T]>): Record<string, T> {
  return Object.fromEntries([...entries].sort(([a], [b]) => (a < b ? -1 : 1)));
}

function snapshotOfDisk(disk: DiskInfo): SnapshotInfo {
  return {
    name: snapshotName(disk.name),
    parent: snapshotName(disk.parent),
    children: sortedByKey(
      Object.entries(disk.children).map(([name, isChild]) => [snapshotName(name), isChild]),
    ),
    removed: disk.removed,
    usercreated: disk.userCreated,
    created: disk.created,
    size: disk.size,
    labels: sortedByKey(Object.entries(disk.labels)),
  };
}

/** Snapshots and head by name, from one replica's disks. */
export function snapshotsOfReplica(info: ReplicaInfo): Record<string, SnapshotInfo> {
  const snapshots = Object.values(info.disks)
    .map(snapshotOfDisk)
    .filter(({ name }) => name !== '');
  return sortedByKey(snapshots.map((snapshot) => [snapshot.name, snapshot]));
}

/**
 * What the readable replicas say; one that does not answer is left out.
 * @throws its failure when none of them answers.
 */
async function readableInfos(connections: Connections): Promise<ReplicaInfo[]> {
  const readable = (await describeReplicas(connections)).filter(({ mode }) => mode === 'RW');
  const infos = readable.flatMap(({ info }) => (info === null ? [] : [info]));
  const failure = readable.find((replica) => replica.failure !== null)?.failure;
  if (infos.length === 0 && failure) throw failure;
  return infos;
}

/**
 * All snapshots and the head, removed ones too, as the replica with most disks has them.
 * Null when the volume has no readable replica.
 */
export async function snapshotInfos(
  connections: Connections,
): Promise<Record<string, SnapshotInfo> | null> {
  let best: ReplicaInfo | null = null;
  for (const info of await readableInfos(connections)) {
    const isLarger = best === null || diskCount(info) > diskCount(best);
    if (isLarger) best = info;
  }
  return best === null ? null : snapshotsOfReplica(best);
}

function diskCount(info: ReplicaInfo): number {
  return Object.keys(info.disks).length;
}

/**
 * Names in the live chain of every readable replica, newest first: what a revert can go to.
 * Without those marked as removed, which are no longer part of the chain.
 */
export async function snapshotNames(connections: Connections): Promise<string[]> {
  const chains = (await readableInfos(connections)).map(({ chain }) =>
    chain.map((disk) => SNAPSHOT_DISK.exec(disk)?.[1] ?? ''),
  );
  const [first, ...others] = chains;
  return (first ?? []).filter((name) => name !== '' && others.every((c) => c.includes(name)));
}

/** True while a replica is being filled: it must not be changed from outside. */
async function isRebuilding(connections: Connections, entry: DescribedReplica): Promise<boolean> {
  if (entry.mode === 'WO') return true;
  return (entry.info ?? (await getReplica(connections, entry.address))).rebuilding;
}

/**
 * Marks the snapshots as removed on every replica and stops their hash jobs. All replicas are
 * checked before the first is changed: Longhorn's client leaves some marked when a later one is
 * not RW. Names that no replica has are fine.
 * @throws INVALID_STATE when a replica is not RW or is rebuilding; the taskError of those that failed.
 */
export async function markSnapshotsRemoved(
  connections: Connections,
  names: readonly string[],
): Promise<void> {
  const replicas = await describeReplicas(connections);
  for (const entry of replicas) {
    if (entry.mode === 'ERR' || !(await isRebuilding(connections, entry))) continue;
    const text = `cannot remove a snapshot because ${entry.address} is rebuilding`;
    throw new StorageError('INVALID_STATE', text);
  }
  const broken = replicas.find(({ mode }) => mode !== 'RW');
  if (broken !== undefined) {
    const text = `can only mark snapshot as removed from replica in mode RW, got ${broken.mode}`;
    throw new StorageError('INVALID_STATE', text, { address: broken.address });
  }
  const addresses = replicas.map(({ address }) => address);
  for (const name of names) {
    await withContext(`failed to remove snapshot ${name}`, () =>
      onEach(addresses, async (address) => {
        await connections.replica(address).diskMarkAsRemoved({ name });
        await connections.syncAgent(address).snapshotHashCancel({ snapshotName: name });
      }),
    );
  }
}

/**
 * Starts the purge of removed snapshots on every replica that is not ERR; it runs on after this
 * returns. @param skipIfInProgress succeed without doing anything when one is already purging.
 * @throws INVALID_STATE, BUSY.
 */
export async function purgeSnapshots(
  connections: Connections,
  skipIfInProgress: boolean,
): Promise<void> {
  const live = (await describeReplicas(connections)).filter(({ mode }) => mode !== 'ERR');
  await withContext('failed to purge snapshots', async () => {
    await onEach(
      live.map(({ address }) => address),
      async (address) => {
        const entry = live.find((replica) => replica.address === address);
        if (entry === undefined || !(await isRebuilding(connections, entry))) return;
        const text = `cannot purge snapshots because ${address} is rebuilding`;
        throw new StorageError('INVALID_STATE', text);
      },
    );
    const statuses = await onEach(
      live.map(({ address }) => address),
      async (address) => ({
        address,
        status: await connections.syncAgent(address).snapshotPurgeStatus({}),
      }),
    );
    const busy = statuses.find(({ status }) => status.isPurging);
    if (busy !== undefined) {
      if (skipIfInProgress) return;
      const text = `${busy.address}: ${busy.address} is already purging snapshots`;
      throw new StorageError('BUSY', text);
    }
    await onEach(
      live.map(({ address }) => address),
      (address) => connections.syncAgent(address).snapshotPurge({}),
    );
  });
}

/** Keys and their order are those of Longhorn's `snapshots purge-status`. */
export interface PurgeStatus {
  readonly error: string;
  readonly isPurging: boolean;
  readonly progress: number;
  readonly state: string;
}

/** By replica address; ERR replicas are left out. */
export async function purgeStatuses(
  connections: Connections,
): Promise<Record<string, PurgeStatus>> {
  const live = (await listReplicas(connections)).filter(({ mode }) => mode !== 'ERR');
  return statusOfEach(
    live.map(({ address }) => address),
    async (address) => {
      const status = await connections.syncAgent(address).snapshotPurgeStatus({});
      const { error, isPurging, progress, state } = status;
      return { error, isPurging, progress, state };
    },
    (error) => ({ error, isPurging: false, progress: 0, state: '' }),
  );
}

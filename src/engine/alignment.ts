// A snapshot or a revert that an engine's death cut short reached some members and not others. Their
// heads then stand on different snapshots. What can be made up for is: a snapshot that was being cut
// while no write was in flight is cut on the others as well. A member on another branch leaves, for
// nobody was told that the revert was done. Pure; applied by start.ts.

import type { ReplicaInfo, SnapshotRecord } from './ports.js';
import { snapshotDiskName } from './snapshot.js';

const [PREFIX, SUFFIX] = snapshotDiskName('\n').split('\n') as [string, string];

export interface Aligned {
  /** Snapshots that members lack, newest last: cut them before the first request. */
  readonly cuts: readonly { readonly index: number; readonly record: SnapshotRecord }[];
  /** Positions of members that stand on another branch. */
  readonly diverged: readonly number[];
}

/** @param infos of the members, opened. */
export function planAlignment(infos: readonly ReplicaInfo[]): Aligned {
  const cuts: { index: number; record: SnapshotRecord }[] = [];
  const diverged: number[] = [];
  const reference = referenceOf(infos);
  if (reference === undefined) return { cuts, diverged };
  for (const [index, info] of infos.entries()) {
    if (parentOf(info) === parentOf(reference)) continue;
    const record = missingSnapshot(reference, info);
    if (record === null) diverged.push(index);
    else cuts.push({ index, record });
  }
  return { cuts, diverged };
}

/** Disk name the head stands on; '' for none. */
function parentOf(info: ReplicaInfo): string {
  return info.disks[info.head]?.parent ?? '';
}

/**
 * The member whose head's parent most have; among equals one that has a snapshot more, which the
 * others can be given.
 */
function referenceOf(infos: readonly ReplicaInfo[]): ReplicaInfo | undefined {
  const countOf = (info: ReplicaInfo): number =>
    infos.filter(
      (other) => parentOf(other) === parentOf(info) || missingSnapshot(info, other) !== null,
    ).length;
  let best: ReplicaInfo | undefined;
  for (const info of infos) if (best === undefined || countOf(info) > countOf(best)) best = info;
  return best;
}

/** The reference's newest snapshot, when it is all that the other lacks; else null. */
function missingSnapshot(reference: ReplicaInfo, other: ReplicaInfo): SnapshotRecord | null {
  const newest = reference.disks[parentOf(reference)];
  if (newest === undefined || other.disks[newest.name] !== undefined) return null;
  if (newest.parent !== parentOf(other)) return null;
  const { name, userCreated, created, labels } = newest;
  return { name: name.slice(PREFIX.length, -SUFFIX.length), userCreated, created, labels };
}

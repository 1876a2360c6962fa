// Which files a joining replica needs, and of which only some ranges. Everything is copied or compared
// unless it is known to be equal: what is left out here is never looked at again. Pure; the rules are
// in docs/adr/0007-roster.md ("Delta resync").

import type { SyncFileInfo } from '../api/generated/common.js';
import { mergeRanges, totalBytes, type ByteRange } from '../core/byte-ranges.js';
import { type AbsentReplica, RETURNED_LABEL } from '../core/roster.js';
import { bigintToNumber } from '../core/units.js';
import type { Absence, ReplicaInfo, WriteIntents } from './ports.js';

/** Of a replica whose sync agent copies single ranges of a file; see wire/replica. */
const RANGES_CAPABILITY = 'ranges';

/** What is known of a replica that was a member before. */
export interface Return {
  readonly absence: Absence;
  /** Of the fork and of removed disks below it, what can differ. */
  readonly ranges: readonly ByteRange[];
}

/**
 * Merged ranges of the fork that the replica may lack; null when that can be anything.
 * @param hostBootId of the kernel it runs on now; '' when unknown.
 * @param ownIntents of the returning replica; looked at only when it left unwatched.
 */
export function missedRanges(
  absent: AbsentReplica,
  hostBootId: string,
  ownIntents: WriteIntents,
): readonly ByteRange[] | null {
  const isSameBoot = hostBootId !== '' && hostBootId === absent.hostBootId;
  const unflushed = isSameBoot ? [] : absent.unflushed;
  if (absent.isExact) return mergeRanges([...absent.inFlight, ...unflushed]);
  if (ownIntents === null) return null;
  return mergeRanges([...absent.inFlight, ...unflushed, ...ownIntents]);
}

/** Disks that a rebuild copies: snapshots, without the head and the backing image. */
export function snapshotDisks(info: ReplicaInfo): string[] {
  return Object.keys(info.disks).filter(
    (name) => name !== info.head && name !== info.backingFile && name.endsWith('.img'),
  );
}

/** @param target as it was before disks that only it has are removed. */
export function filesToSync(
  source: ReplicaInfo,
  target: ReplicaInfo,
  returned: Return | null,
): SyncFileInfo[] {
  const known = returned !== null && standsOnFork(source, target, returned) ? returned : null;
  return snapshotDisks(source).flatMap((name) => {
    const meta = { fromFileName: `${name}.meta`, toFileName: `${name}.meta` };
    const ranges = known === null ? 'all' : differing(source, target, name, known);
    const metaFile = { ...meta, actualSize: 0, ranges: [] };
    if (ranges !== 'all' && ranges.length === 0) return [metaFile];
    const allocated = bigintToNumber(BigInt(source.disks[name]?.size || '0'), 'disk size');
    const dataFile = {
      fromFileName: name,
      toFileName: name,
      actualSize: ranges === 'all' ? allocated : totalBytes(ranges),
      ranges: ranges === 'all' ? [] : ranges.map((range) => ({ ...range })),
    };
    return [dataFile, metaFile];
  });
}

/** True when the target's disk of that name is its old head, over the same disks as at the fork. */
function standsOnFork(source: ReplicaInfo, target: ReplicaInfo, { absence }: Return): boolean {
  const { absent, unchangedDisks } = absence;
  const fork = target.disks[absent.forkDisk];
  if (!target.capabilities.includes(RANGES_CAPABILITY)) return false;
  if (fork === undefined || fork.labels[RETURNED_LABEL] === undefined) return false;
  if (unchangedDisks[absent.forkDisk] !== fork.parent) return false;
  return ancestorsOf(target, absent.forkDisk).every(
    (name) => source.disks[name]?.parent === target.disks[name]?.parent,
  );
}

/** The disk and those below it, down to the oldest. */
function ancestorsOf(info: ReplicaInfo, diskName: string): string[] {
  const names: string[] = [];
  for (let name = diskName; name !== '' && !names.includes(name); ) {
    names.push(name);
    name = info.disks[name]?.parent ?? '';
  }
  return names.filter((name) => info.disks[name] !== undefined);
}

/** What of a disk can differ. */
function differing(
  source: ReplicaInfo,
  target: ReplicaInfo,
  name: string,
  { absence, ranges }: Return,
): readonly ByteRange[] | 'all' {
  const { absent, unchangedDisks } = absence;
  const ours = source.disks[name];
  const theirs = target.disks[name];
  const parent = unchangedDisks[name];
  if (ours === undefined || theirs === undefined || parent === undefined) return 'all';
  if (ours.parent !== parent || theirs.parent !== parent) return 'all';
  if (name === absent.forkDisk) return ranges;
  // A purge that only one of them has begun shows in the size.
  if (ours.size !== theirs.size) return 'all';
  // Trims reach through removed disks.
  const isTrimmed = ours.removed || theirs.removed;
  return isTrimmed && ancestorsOf(target, absent.forkDisk).includes(name) ? ranges : [];
}

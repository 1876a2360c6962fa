// Names of the files of a replica directory. They are Longhorn's, so that either program opens the
// other's directory. A name that comes from outside must pass checkSnapshotName (core) before it
// becomes part of a path.

import { assert } from '../core/assert.js';
import { StorageError } from '../core/errors.js';
import { SNAPSHOT_NAME_BYTES_MAX } from '../core/snapshot-name.js';

export const VOLUME_META = 'volume.meta';
export const REVISION_COUNTER = 'revision.counter';
export const HEAD_PREFIX = 'volume-head-';
export const SNAPSHOT_PREFIX = 'volume-snap-';
export const IMAGE_SUFFIX = '.img';
export const META_SUFFIX = '.meta';
export const CHECKSUM_SUFFIX = '.checksum';
/** Target of an atomic replacement that is being written. */
export const TEMPORARY_SUFFIX = '.tmp';
/** A second link to an image whose record is being deleted; see removal.ts. */
export const REMOVING_SUFFIX = '.removing';
/** A second link to the merged image that is about to replace another; see removal.ts. */
export const REPLACING_SUFFIX = '.replacing';

/** Longest name of a file in a Linux directory. */
const FILE_NAME_BYTES_MAX = 255;
/** Longest suffix that a disk name gets: Longhorn's temporary checksum file. */
const LONGEST_SUFFIX = '.checksum..tmp';
assert(
  SNAPSHOT_PREFIX.length + SNAPSHOT_NAME_BYTES_MAX + IMAGE_SUFFIX.length + LONGEST_SUFFIX.length <=
    FILE_NAME_BYTES_MAX,
  'every file of a snapshot has a name that fits a directory entry',
);

const HEAD_PATTERN = /^volume-head-(\d+)\.img$/;

export function isHeadName(diskName: string): boolean {
  return HEAD_PATTERN.test(diskName);
}

export function isSnapshotDiskName(diskName: string): boolean {
  return (
    diskName.startsWith(SNAPSHOT_PREFIX) &&
    diskName.endsWith(IMAGE_SUFFIX) &&
    diskName.length > SNAPSHOT_PREFIX.length + IMAGE_SUFFIX.length
  );
}

export const FIRST_HEAD = `${HEAD_PREFIX}000${IMAGE_SUFFIX}`;

/**
 * Longhorn takes only the last digit of the number and adds one: 000 … 009, 010, 001, 002 …
 * (facts: on-disk §1 "Naming"). Its own next head must not collide with ours, so we count alike.
 */
export function nextHeadName(current: string): string {
  const match = HEAD_PATTERN.exec(current);
  if (match === null) {
    throw new StorageError('BAD_METADATA', `'${current}' is not the name of a head`, { current });
  }
  const lastDigit = Number((match[1] as string).slice(-1));
  return `${HEAD_PREFIX}${String(lastDigit + 1).padStart(3, '0')}${IMAGE_SUFFIX}`;
}

export function snapshotDiskName(snapshotName: string): string {
  return `${SNAPSHOT_PREFIX}${snapshotName}${IMAGE_SUFFIX}`;
}

/** The name that people use; a head or another file keeps its own. */
export function snapshotNameOf(diskName: string): string {
  if (!isSnapshotDiskName(diskName)) return diskName;
  return diskName.slice(SNAPSHOT_PREFIX.length, -IMAGE_SUFFIX.length);
}

// What a snapshot may be called. Engine and replica ask the same question: the engine before it
// asks any replica, a replica before the name becomes part of a path.

import { StorageError } from './errors.js';

/**
 * So that no file name made of it, up to `volume-snap-NAME.img.checksum..tmp`, exceeds the 255 bytes
 * of a Linux directory entry.
 */
export const SNAPSHOT_NAME_BYTES_MAX = 225;

/** @throws INVALID_NAME for what cannot be part of a file name. */
export function checkSnapshotName(snapshotName: string): void {
  const lengthBytes = Buffer.byteLength(snapshotName);
  const isBad =
    lengthBytes === 0 ||
    lengthBytes > SNAPSHOT_NAME_BYTES_MAX ||
    snapshotName.includes('..') ||
    /[/\\\p{Cc}]/u.test(snapshotName);
  if (!isBad) return;
  throw new StorageError(
    'INVALID_NAME',
    `'${snapshotName.slice(0, 300)}' is not a snapshot name: use 1 to ${SNAPSHOT_NAME_BYTES_MAX} bytes without '/' and '..'`,
    { snapshotName: snapshotName.slice(0, 300) },
  );
}

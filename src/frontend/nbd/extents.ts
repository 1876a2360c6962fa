// Turns a device's extents into the descriptors of a BLOCK_STATUS reply, in place.

import { EXTENT_ENTRY_BYTES } from '../../core/block-device.js';
import type { StorageError } from '../../core/errors.js';

/** The device cannot tell extents; its data is to be reported as allocated. */
export function isExtentsUnsupported(error: StorageError | null): boolean {
  return error?.code === 'UNSUPPORTED' || error?.code === 'EXTENTS_UNSUPPORTED';
}

/** One descriptor that calls the range allocated data, which a server may say of anything. */
export function writeDataDescriptor(
  view: DataView,
  bufferOffset: number,
  rangeBytes: number,
): number {
  view.setUint32(bufferOffset, rangeBytes);
  view.setUint32(bufferOffset + 4, 0);
  return EXTENT_ENTRY_BYTES;
}

/**
 * Rewrites little-endian {length, flags} pairs as big-endian descriptors (proto.md,
 * NBD_REPLY_TYPE_BLOCK_STATUS): neighbours with equal flags become one, nothing goes past
 * rangeBytes, and at most countMax are kept.
 * @returns bytes of descriptors at the same offset; 0 when the device returned none.
 */
export function extentsToDescriptors(
  view: DataView,
  bufferOffset: number,
  extentBytes: number,
  rangeBytes: number,
  countMax: number,
): number {
  let count = 0;
  let remaining = rangeBytes;
  let lastFlags = -1;
  let lastLength = 0;
  for (let at = 0; at < extentBytes && remaining > 0; at += EXTENT_ENTRY_BYTES) {
    const length = Math.min(view.getUint32(bufferOffset + at, true), remaining);
    const flags = view.getUint32(bufferOffset + at + 4, true);
    if (length === 0) continue;
    if (flags === lastFlags) {
      lastLength += length;
    } else {
      if (count === countMax) break;
      count++;
      lastFlags = flags;
      lastLength = length;
    }
    remaining -= length;
    // Descriptors are never more than the extents read so far, so this only overwrites those.
    const position = bufferOffset + (count - 1) * EXTENT_ENTRY_BYTES;
    view.setUint32(position, lastLength);
    view.setUint32(position + 4, lastFlags);
  }
  return count * EXTENT_ENTRY_BYTES;
}

// Header codec of the data protocol. Pure: works on a DataView at an offset, allocates nothing.

import { StorageError } from '../../core/errors.js';
import { highHalf, lowHalf, u64FromHalves } from '../../core/units.js';
import { FRAME_MAGIC, FRAME_PAYLOAD_BYTES_MAX } from './constants.js';

/** One decoded header; reused from frame to frame. */
export class FrameHeader {
  seq = 0;
  type = 0;
  offsetBytes = 0;
  /** Requested length, or the count of a response. */
  sizeBytes = 0;
  /** Bytes that follow the header. */
  dataBytes = 0;
}

const SIGN_BIT = 0x8000_0000;

/** The i64 at `at`. @throws UNSAFE_INTEGER beyond 2^53 - 1 either way. */
function decodeOffset(view: DataView, at: number): number {
  const low = view.getUint32(at, true);
  const high = view.getUint32(at + 4, true);
  if (high < SIGN_BIT) return u64FromHalves(high, low, 'frame offset');
  return -(u64FromHalves(~high >>> 0, ~low >>> 0, 'frame offset') + 1);
}

function encodeOffset(view: DataView, at: number, offsetBytes: number): void {
  const magnitude = offsetBytes < 0 ? -offsetBytes - 1 : offsetBytes;
  const low = lowHalf(magnitude);
  const high = highHalf(magnitude);
  view.setUint32(at, offsetBytes < 0 ? ~low : low, true);
  view.setUint32(at + 4, offsetBytes < 0 ? ~high : high, true);
}

/**
 * Reads the 26 bytes at `at` into `header`.
 * @throws BAD_MAGIC, FRAME_TOO_LARGE (before anything is allocated), UNSAFE_INTEGER.
 */
export function decodeFrameHeader(view: DataView, at: number, header: FrameHeader): void {
  const magic = view.getUint16(at, true);
  if (magic !== FRAME_MAGIC) {
    throw new StorageError('BAD_MAGIC', `wrong API version received: 0x${magic.toString(16)}`, {
      magic,
    });
  }
  header.seq = view.getUint32(at + 2, true);
  header.type = view.getUint32(at + 6, true);
  header.offsetBytes = decodeOffset(view, at + 10);
  header.sizeBytes = view.getUint32(at + 18, true);
  header.dataBytes = view.getUint32(at + 22, true);
  if (header.dataBytes > FRAME_PAYLOAD_BYTES_MAX) {
    throw new StorageError('FRAME_TOO_LARGE', `a frame of ${header.dataBytes} bytes`, {
      dataBytes: header.dataBytes,
      maxBytes: FRAME_PAYLOAD_BYTES_MAX,
    });
  }
}

/** Writes 26 bytes at `at`. */
export function encodeFrameHeader(
  view: DataView,
  at: number,
  seq: number,
  type: number,
  offsetBytes: number,
  sizeBytes: number,
  dataBytes: number,
): void {
  view.setUint16(at, FRAME_MAGIC, true);
  view.setUint32(at + 2, seq, true);
  view.setUint32(at + 6, type, true);
  encodeOffset(view, at + 10, offsetBytes);
  view.setUint32(at + 18, sizeBytes, true);
  view.setUint32(at + 22, dataBytes, true);
}

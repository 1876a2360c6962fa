// Moves a frame's payload from a connection into its final buffer: the bytes that are already in
// the receive buffer are copied (once), the rest is steered there by the kernel.

import type { Connection } from './connection.js';

/**
 * Takes the payload that begins at slab offset `beginOffset` (at most up to `endOffset`, the end of
 * what was received). Returns the bytes taken now; when fewer than payloadBytes, the rest arrives
 * with handler.targetFilled() and everything offered is consumed.
 */
export function takePayload(
  connection: Connection,
  beginOffset: number,
  endOffset: number,
  bufferOffset: number,
  payloadBytes: number,
): number {
  const available = Math.min(endOffset - beginOffset, payloadBytes);
  connection.slab.bytes.copyWithin(bufferOffset, beginOffset, beginOffset + available);
  if (available < payloadBytes) {
    connection.receiveInto(bufferOffset + available, payloadBytes - available);
  }
  return available;
}

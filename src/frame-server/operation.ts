// One frame being served: a pooled object with one block request per MiB of payload.

import {
  type BlockOp,
  type BlockRequest,
  BLOCK_OP,
  type BlockRequestPool,
} from '../core/block-device.js';
import type { StorageError } from '../core/errors.js';
import { EXTENTS_BUFFER_BYTES, REQUEST_BYTES_MAX } from '../core/limits.js';
import { NO_BUFFER, type Slab } from '../core/slab.js';
import { SECTOR_BYTES } from '../core/units.js';
import { FRAME_TYPE } from '../wire/replica/constants.js';
import type { FrameHeader } from '../wire/replica/frame.js';

/** Longest error text sent. Any payload buffer has room for it. */
const ERROR_TEXT_BYTES_MAX = SECTOR_BYTES;

export const OPERATION_STATE = { idle: 0, receiving: 1, running: 2, replying: 3 } as const;

const OP_OF_TYPE: Record<number, BlockOp> = {
  [FRAME_TYPE.read]: BLOCK_OP.read,
  [FRAME_TYPE.write]: BLOCK_OP.write,
  [FRAME_TYPE.writeFua]: BLOCK_OP.write,
  [FRAME_TYPE.unmap]: BLOCK_OP.unmap,
  [FRAME_TYPE.flush]: BLOCK_OP.flush,
  [FRAME_TYPE.writeZeroes]: BLOCK_OP.writeZeroes,
  [FRAME_TYPE.extents]: BLOCK_OP.extents,
};

export class FrameOperation {
  /** Send token of the reply: position in the session's table plus one. */
  readonly token: number;
  state: number = OPERATION_STATE.idle;
  seq = 0;
  type = 0;
  offsetBytes = 0;
  sizeBytes = 0;
  /** Parts of the payload in order; each has its own slab buffer, except for unmap and the like. */
  readonly parts: BlockRequest[] = [];
  /** Parts not yet done (running), or the next part to fill (receiving). */
  pendingParts = 0;
  error: StorageError | null = null;
  /** Slab buffer that only an error text needed, or NO_BUFFER. */
  private textBuffer = NO_BUFFER;

  constructor(token: number) {
    this.token = token;
  }

  get isWrite(): boolean {
    return this.type === FRAME_TYPE.write || this.type === FRAME_TYPE.writeFua;
  }

  /** Payload bytes that a reply to this operation carries. */
  replyBytes(): number {
    if (this.type === FRAME_TYPE.read) return this.sizeBytes;
    return this.type === FRAME_TYPE.extents ? this.resultBytes() : 0;
  }

  resultBytes(): number {
    let sum = 0;
    for (const part of this.parts) sum += part.resultBytes;
    return sum;
  }

  /** Takes the buffers of all parts, or none and returns false. */
  prepare(header: FrameHeader, slab: Slab, pool: BlockRequestPool): boolean {
    this.seq = header.seq;
    this.type = header.type;
    this.offsetBytes = header.offsetBytes;
    this.sizeBytes = header.sizeBytes;
    this.error = null;
    const op = OP_OF_TYPE[header.type] as BlockOp;
    if (op === BLOCK_OP.read || op === BLOCK_OP.write) return this.addBufferedParts(op, slab, pool);
    if (op !== BLOCK_OP.extents) {
      this.addPart(pool, op, this.offsetBytes, this.sizeBytes, NO_BUFFER);
      return true;
    }
    const buffer = slab.allocate(EXTENTS_BUFFER_BYTES);
    if (buffer !== NO_BUFFER) this.addPart(pool, op, this.offsetBytes, this.sizeBytes, buffer);
    return buffer !== NO_BUFFER;
  }

  /**
   * Puts an error text into slab memory, into the payload's own buffer when there is one: a full
   * disk must be told even when every buffer is taken by writes that fail for it.
   * Returns the text's length; 0 when there is no memory.
   */
  writeErrorText(slab: Slab, text: string): number {
    if (this.bufferForText() === NO_BUFFER) this.textBuffer = slab.allocate(ERROR_TEXT_BYTES_MAX);
    const begin = this.bufferForText();
    if (begin === NO_BUFFER) return 0;
    const target = slab.bytes.subarray(begin, begin + ERROR_TEXT_BYTES_MAX);
    return new TextEncoder().encodeInto(text, target).written;
  }

  /** Where writeErrorText() put the text. */
  bufferForText(): number {
    const payload = this.parts[0]?.bufferOffset ?? NO_BUFFER;
    return payload === NO_BUFFER ? this.textBuffer : payload;
  }

  /** Gives buffers and requests back; the operation is idle again. */
  recycle(slab: Slab, pool: BlockRequestPool): void {
    this.state = OPERATION_STATE.idle;
    if (this.textBuffer !== NO_BUFFER) {
      slab.release(this.textBuffer);
      this.textBuffer = NO_BUFFER;
    }
    for (let part = this.parts.pop(); part !== undefined; part = this.parts.pop()) {
      const buffer = part.bufferOffset;
      part.bufferOffset = NO_BUFFER;
      pool.give(part);
      if (buffer !== NO_BUFFER) slab.release(buffer);
    }
  }

  private addBufferedParts(op: BlockOp, slab: Slab, pool: BlockRequestPool): boolean {
    const count = Math.max(1, Math.ceil(this.sizeBytes / REQUEST_BYTES_MAX));
    // Taking some buffers and giving them back would wake all who wait, who would do the same.
    if (count > 1 && slab.freeCountOf(REQUEST_BYTES_MAX) < count) return false;
    for (let i = 0; i < count; i++) {
      const beginBytes = i * REQUEST_BYTES_MAX;
      const partBytes = Math.min(this.sizeBytes - beginBytes, REQUEST_BYTES_MAX);
      const buffer = slab.allocate(partBytes);
      if (buffer === NO_BUFFER) return false;
      this.addPart(pool, op, this.offsetBytes + beginBytes, partBytes, buffer);
    }
    return true;
  }

  private addPart(
    pool: BlockRequestPool,
    op: BlockOp,
    offsetBytes: number,
    lengthBytes: number,
    bufferOffset: number,
  ): void {
    const part = pool.takeIdle();
    part.op = op;
    part.offsetBytes = offsetBytes;
    part.lengthBytes = lengthBytes;
    part.bufferOffset = bufferOffset;
    part.fua = this.type === FRAME_TYPE.writeFua;
    part.parent = this;
    this.parts.push(part);
  }
}

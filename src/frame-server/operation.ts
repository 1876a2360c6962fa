// One frame being served: a pooled object with one block request per MiB of payload.

import { type BlockOp, type BlockRequest, BLOCK_OP, type BlockRequestPool } from '../core/block-device.js';
import type { StorageError } from '../core/errors.js';
import { EXTENTS_BUFFER_BYTES, REQUEST_BYTES_MAX } from '../core/limits.js';
import { NO_BUFFER, type Slab } from '../core/slab.js';
import { FRAME_TYPE, FRAME_ERROR_TEXT_BYTES_MAX } from '../wire/replica/constants.js';
import type { FrameHeader } from '../wire/replica/frame.js';

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
  /** Slab buffer of an error text, or NO_BUFFER. */
  textBuffer = NO_BUFFER;

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
    const buffered = op === BLOCK_OP.read || op === BLOCK_OP.write;
    let doneBytes = 0;
    do {
      const partBytes = buffered
        ? Math.min(this.sizeBytes - doneBytes, REQUEST_BYTES_MAX)
        : this.sizeBytes;
      const bufferBytes = op === BLOCK_OP.extents ? EXTENTS_BUFFER_BYTES : partBytes;
      const needsBuffer = buffered || op === BLOCK_OP.extents;
      const buffer = needsBuffer ? slab.allocate(bufferBytes) : NO_BUFFER;
      if (needsBuffer && buffer === NO_BUFFER) {
        this.recycle(slab, pool);
        return false;
      }
      this.addPart(pool, op, this.offsetBytes + doneBytes, partBytes, buffer);
      doneBytes += partBytes;
    } while (buffered && doneBytes < this.sizeBytes);
    return true;
  }

  /** Copies an error text into slab memory; without memory the reply has no text. */
  writeErrorText(slab: Slab, text: string): number {
    if (this.textBuffer === NO_BUFFER) this.textBuffer = slab.allocate(FRAME_ERROR_TEXT_BYTES_MAX);
    if (this.textBuffer === NO_BUFFER) return 0;
    const end = this.textBuffer + FRAME_ERROR_TEXT_BYTES_MAX;
    return new TextEncoder().encodeInto(text, slab.bytes.subarray(this.textBuffer, end)).written;
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

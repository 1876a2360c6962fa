// A BlockDevice over an array, with the allocation map that a sparse volume has. Completions can
// be held back and failures injected, so tests decide the order of events.

import {
  BLOCK_OP,
  EXTENT_ENTRY_BYTES,
  EXTENT_HOLE,
  EXTENT_ZERO,
  type BlockDevice,
  type BlockOp,
  type BlockRequest,
} from '../../src/core/block-device.js';
import { StorageError } from '../../src/core/errors.js';
import { EXTENTS_BUFFER_BYTES } from '../../src/core/limits.js';
import type { Slab } from '../../src/core/slab.js';
import { SECTOR_BYTES } from '../../src/core/units.js';

export interface MemoryDeviceOptions {
  readonly slab: Slab;
  readonly sizeBytes: number;
  /** Extents are answered with UNSUPPORTED. */
  readonly withoutExtents?: boolean;
}

export class MemoryDevice implements BlockDevice {
  readonly content: Uint8Array;
  /** 1 for each sector that was written and not unmapped since. */
  readonly allocated: Uint8Array;
  /** Operations started, by BLOCK_OP. */
  readonly counts: number[] = [0, 0, 0, 0, 0, 0];
  /** FUA writes seen. */
  fuaCount = 0;
  /** Asked first for each request; an error fails it. */
  failWith: ((request: BlockRequest) => StorageError | null) | null = null;
  /** Requests that wait for release() because isHolding was true when they came. */
  readonly held: BlockRequest[] = [];
  isHolding = false;
  private size: number;
  private readonly slab: Slab;
  private readonly withoutExtents: boolean;

  constructor(options: MemoryDeviceOptions) {
    this.slab = options.slab;
    this.size = options.sizeBytes;
    this.content = new Uint8Array(options.sizeBytes);
    this.allocated = new Uint8Array(Math.ceil(options.sizeBytes / SECTOR_BYTES));
    this.withoutExtents = options.withoutExtents ?? false;
  }

  get sizeBytes(): number {
    return this.size;
  }

  /** Makes the device seem smaller, as if the rest had never been there. */
  shrink(sizeBytes: number): void {
    this.size = sizeBytes;
  }

  submit(request: BlockRequest): void {
    this.counts[request.op] = (this.counts[request.op] ?? 0) + 1;
    if (this.isHolding) this.held.push(request);
    else this.run(request);
  }

  /** Runs held requests: all, or the one at the index. */
  release(index?: number): void {
    const released = index === undefined ? this.held.splice(0) : this.held.splice(index, 1);
    for (const request of released) this.run(request);
  }

  countOf(op: BlockOp): number {
    return this.counts[op] ?? 0;
  }

  private run(request: BlockRequest): void {
    const error = this.failWith?.(request) ?? this.apply(request);
    request.done(error);
  }

  private apply(request: BlockRequest): StorageError | null {
    const { op, offsetBytes, lengthBytes, bufferOffset } = request;
    if (op === BLOCK_OP.flush) return null;
    const endOffset = offsetBytes + lengthBytes;
    if (offsetBytes < 0 || endOffset > this.size) {
      return new StorageError('OUT_OF_RANGE', 'the range ends past the device', { endOffset });
    }
    const { bytes } = this.slab;
    switch (op) {
      case BLOCK_OP.read:
        bytes.set(this.content.subarray(offsetBytes, endOffset), bufferOffset);
        return null;
      case BLOCK_OP.write:
        if (request.fua) this.fuaCount++;
        this.content.set(bytes.subarray(bufferOffset, bufferOffset + lengthBytes), offsetBytes);
        this.mark(offsetBytes, endOffset);
        return null;
      case BLOCK_OP.unmap:
      case BLOCK_OP.writeZeroes:
        this.content.fill(0, offsetBytes, endOffset);
        this.unmark(offsetBytes, endOffset);
        return null;
      case BLOCK_OP.extents:
        return this.listExtents(request);
    }
  }

  private mark(offsetBytes: number, endOffset: number): void {
    const first = Math.floor(offsetBytes / SECTOR_BYTES);
    this.allocated.fill(1, first, Math.ceil(endOffset / SECTOR_BYTES));
  }

  private unmark(offsetBytes: number, endOffset: number): void {
    const first = Math.ceil(offsetBytes / SECTOR_BYTES);
    const end = Math.floor(endOffset / SECTOR_BYTES);
    if (first < end) this.allocated.fill(0, first, end);
  }

  /** One entry a run of equal sectors, split at 64 KiB so that the caller has to merge some. */
  private listExtents(request: BlockRequest): StorageError | null {
    if (this.withoutExtents) return new StorageError('UNSUPPORTED', 'no extents here');
    const { view } = this.slab;
    const endOffset = request.offsetBytes + request.lengthBytes;
    let at = request.offsetBytes;
    let position = request.bufferOffset;
    const positionEnd = request.bufferOffset + EXTENTS_BUFFER_BYTES;
    while (at < endOffset && position < positionEnd) {
      const sector = Math.floor(at / SECTOR_BYTES);
      let next = sector + 1;
      const isSame = (): boolean => this.allocated[next] === this.allocated[sector];
      while (next * SECTOR_BYTES < endOffset && next % 16 !== 0 && isSame()) next++;
      const runEnd = Math.min(next * SECTOR_BYTES, endOffset);
      view.setUint32(position, runEnd - at, true);
      const flags = this.allocated[sector] === 1 ? 0 : EXTENT_HOLE | EXTENT_ZERO;
      view.setUint32(position + 4, flags, true);
      position += EXTENT_ENTRY_BYTES;
      at = runEnd;
    }
    request.resultBytes = position - request.bufferOffset;
    return null;
  }
}

// The process's block of page-aligned I/O memory, cut into buffers of a few fixed sizes. Disk and
// sockets address it by byte offset, so no Buffer object is made per request. Each size has its
// own buffers, so small requests cannot fragment the memory that large ones need.

import { assert } from './assert.js';
import { SLAB_CLASSES } from './limits.js';
import { alignUp, SECTOR_BYTES } from './units.js';

/** Returned by Slab.allocate when no buffer is free. */
export const NO_BUFFER = -1;

interface SlabClass {
  readonly bufferBytes: number;
  readonly beginOffset: number;
  readonly endOffset: number;
  /** Stack of free buffer offsets. */
  readonly free: Int32Array;
  freeCount: number;
}

/** Bytes of memory that a Slab's classes need, before reserved regions. */
export const SLAB_BYTES = SLAB_CLASSES.reduce((sum, c) => sum + c.bufferBytes * c.count, 0);

export class Slab {
  readonly memory: ArrayBuffer;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  private readonly classes: SlabClass[];
  private readonly waiters: (() => void)[] = [];
  private reservedEnd: number;

  /** @param memory page-aligned, at least SLAB_BYTES; what lies beyond is for reserve(). */
  constructor(memory: ArrayBuffer) {
    assert(memory.byteLength >= SLAB_BYTES, 'the slab has room for every class');
    this.memory = memory;
    this.bytes = new Uint8Array(memory);
    this.view = new DataView(memory);
    let begin = 0;
    this.classes = SLAB_CLASSES.map(({ bufferBytes, count }) => {
      const free = new Int32Array(count);
      for (let i = 0; i < count; i++) free[i] = begin + (count - 1 - i) * bufferBytes;
      const beginOffset = begin;
      begin += bufferBytes * count;
      return { bufferBytes, beginOffset, endOffset: begin, free, freeCount: count };
    });
    this.reservedEnd = begin;
  }

  /** Offset of a free buffer of at least lengthBytes, or NO_BUFFER. The content is undefined. */
  allocate(lengthBytes: number): number {
    for (const slabClass of this.classes) {
      if (slabClass.bufferBytes < lengthBytes || slabClass.freeCount === 0) continue;
      slabClass.freeCount--;
      return slabClass.free[slabClass.freeCount] as number;
    }
    assert(lengthBytes <= (SLAB_CLASSES[2].bufferBytes as number), 'no request exceeds a buffer');
    return NO_BUFFER;
  }

  /** Free buffers that hold lengthBytes each, so that a taker of several takes all or none. */
  freeCountOf(lengthBytes: number): number {
    let count = 0;
    for (const slabClass of this.classes) {
      if (slabClass.bufferBytes >= lengthBytes) count += slabClass.freeCount;
    }
    return count;
  }

  /** Gives a buffer back, then wakes everyone who waited for one. */
  release(bufferOffset: number): void {
    const slabClass = this.classOf(bufferOffset);
    slabClass.free[slabClass.freeCount++] = bufferOffset;
    assert(slabClass.freeCount <= slabClass.free.length, 'a buffer is released once');
    if (this.waiters.length > 0) this.wakeWaiters();
  }

  /** Calls back after the next release; the caller then tries allocate again. */
  whenReleased(callback: () => void): void {
    this.waiters.push(callback);
  }

  /** As allocate, but waits for a release instead of answering NO_BUFFER. Allocates: not for the hot path. */
  async allocateWhenFree(lengthBytes: number): Promise<number> {
    for (;;) {
      const bufferOffset = this.allocate(lengthBytes);
      if (bufferOffset !== NO_BUFFER) return bufferOffset;
      await new Promise<void>((resolve) => this.whenReleased(resolve));
    }
  }

  /** Cuts a permanent, page-aligned region (receive buffers, header rings) from beyond the classes. */
  reserve(lengthBytes: number): number {
    const offset = this.reservedEnd;
    assert(offset + lengthBytes <= this.memory.byteLength, 'reserved regions fit the slab');
    this.reservedEnd += alignUp(lengthBytes, SECTOR_BYTES);
    return offset;
  }

  /** Free buffers by size, for metrics and leak checks. */
  freeCounts(): { bufferBytes: number; freeCount: number; count: number }[] {
    return this.classes.map((c) => ({
      bufferBytes: c.bufferBytes,
      freeCount: c.freeCount,
      count: c.free.length,
    }));
  }

  private classOf(bufferOffset: number): SlabClass {
    for (const slabClass of this.classes) {
      if (bufferOffset < slabClass.endOffset) {
        const distance = bufferOffset - slabClass.beginOffset;
        assert(distance >= 0 && distance % slabClass.bufferBytes === 0, 'offset starts a buffer');
        return slabClass;
      }
    }
    throw assertNever(bufferOffset);
  }

  private wakeWaiters(): void {
    const waiting = this.waiters.splice(0);
    for (const callback of waiting) callback();
  }
}

function assertNever(bufferOffset: number): Error {
  return new Error(`offset ${bufferOffset} is not a slab buffer`);
}

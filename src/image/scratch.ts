// A few reserved buffers for requests that are not whole sectors. They belong to the slab, not to a
// chain, because reserved slab memory is never given back. Whoever holds one finishes without
// needing any other buffer, so waiting for one cannot deadlock.

import type { Slab } from '../core/slab.js';

/** Size of one scratch buffer; longer requests pass through it piece by piece. */
export const SCRATCH_BYTES = 16384;
const SCRATCH_COUNT = 16;

/** Someone who waits for a scratch buffer. */
export interface ScratchTaker {
  scratchGranted(bufferOffset: number): void;
}

export class ScratchBuffers {
  private static readonly ofSlab = new WeakMap<Slab, ScratchBuffers>();
  /** The slab's memory. */
  readonly bytes: Uint8Array;
  private readonly free: number[] = [];
  private readonly waiting: ScratchTaker[] = [];

  static of(slab: Slab): ScratchBuffers {
    let scratch = ScratchBuffers.ofSlab.get(slab);
    if (scratch === undefined) {
      scratch = new ScratchBuffers(slab);
      ScratchBuffers.ofSlab.set(slab, scratch);
    }
    return scratch;
  }

  private constructor(slab: Slab) {
    this.bytes = slab.bytes;
    for (let i = 0; i < SCRATCH_COUNT; i++) this.free.push(slab.reserve(SCRATCH_BYTES));
  }

  /** Free buffers, for leak checks. */
  get freeCount(): number {
    return this.free.length;
  }

  /** Calls scratchGranted now or when one is free, in order of asking. */
  take(taker: ScratchTaker): void {
    const bufferOffset = this.free.pop();
    if (bufferOffset === undefined) this.waiting.push(taker);
    else taker.scratchGranted(bufferOffset);
  }

  give(bufferOffset: number): void {
    const next = this.waiting.shift();
    if (next === undefined) this.free.push(bufferOffset);
    else next.scratchGranted(bufferOffset);
  }
}

// The slab memory of one connection: a block shared with the native sockets (positions, flags, the
// ring of segments to send), header memory and the receive buffer. Connections come and go, so
// their regions are recycled; pages that a connection never used are never touched.

import { assert } from '../core/assert.js';
import { RECEIVE_BUFFER_BYTES, SEND_HEADER_BYTES, SEND_SEGMENTS_MAX } from '../core/limits.js';
import { NO_BUFFER, type Slab } from '../core/slab.js';
import { alignUp, SECTOR_BYTES } from '../core/units.js';

/** Int32 indices in a block; struct ConnectionBlock of native/socket_hub.h. */
export const BLOCK_WORD = {
  /** Free part of the receive buffer, as slab offsets. */
  receiveBegin: 0,
  receiveEnd: 1,
  /** Where the next targetBytes go instead. */
  targetBegin: 2,
  targetBytes: 3,
  isPaused: 4,
  isEnding: 5,
  /** Segments handed to the kernel and queued, ever (modulo 2^32). */
  sentCount: 6,
  queuedCount: 7,
  isDirty: 8,
  /** Segments, three words each: offset, length, token. */
  ring: 16,
} as const;

export const SEGMENT_WORDS = 3;

const BLOCK_BYTES = (BLOCK_WORD.ring + SEGMENT_WORDS * SEND_SEGMENTS_MAX) * 4;
const REGION_BYTES = alignUp(BLOCK_BYTES + SEND_HEADER_BYTES + RECEIVE_BUFFER_BYTES, SECTOR_BYTES);

assert(SEND_SEGMENTS_MAX === 4096, 'kSegmentsMax of native/socket_hub.h is the same');

/** Slab memory, beyond SLAB_BYTES, that regionsMax connections need. */
export function connectionRegionsBytes(regionsMax: number): number {
  return regionsMax * REGION_BYTES;
}

/** Where the parts of a connection's memory are. */
export interface ConnectionRegion {
  readonly offset: number;
  /** Index of the block's first word in ConnectionRegions.words. */
  readonly blockWord: number;
  readonly headersBegin: number;
  readonly headersEnd: number;
  readonly receiveBegin: number;
  readonly receiveEnd: number;
}

/** A process's connection memory: regions are cut from the slab on demand, then reused. */
export class ConnectionRegions {
  readonly slab: Slab;
  /** The whole slab as 32-bit words. */
  readonly words: Int32Array;
  readonly regionsMax: number;
  private readonly free: ConnectionRegion[] = [];
  private cutCount = 0;

  /** The slab must have connectionRegionsBytes(regionsMax) left to reserve. */
  constructor(slab: Slab, regionsMax: number) {
    this.slab = slab;
    this.words = new Int32Array(slab.memory);
    this.regionsMax = regionsMax;
  }

  /** A region with a zeroed block, or null when regionsMax are in use. */
  take(): ConnectionRegion | null {
    const region = this.free.pop() ?? this.cut();
    if (region === null) return null;
    this.words.fill(0, region.blockWord, region.blockWord + BLOCK_WORD.ring);
    return region;
  }

  give(region: ConnectionRegion): void {
    this.free.push(region);
    assert(this.free.length <= this.cutCount, 'a region is given back once');
  }

  inUseCount(): number {
    return this.cutCount - this.free.length;
  }

  private cut(): ConnectionRegion | null {
    if (this.cutCount >= this.regionsMax) return null;
    const offset = this.slab.reserve(REGION_BYTES);
    assert(offset !== NO_BUFFER && offset % 64 === 0, 'blocks are aligned');
    this.cutCount++;
    const headersBegin = offset + BLOCK_BYTES;
    const receiveBegin = headersBegin + SEND_HEADER_BYTES;
    return {
      offset,
      blockWord: offset / 4,
      headersBegin,
      headersEnd: receiveBegin,
      receiveBegin,
      receiveEnd: receiveBegin + RECEIVE_BUFFER_BYTES,
    };
  }
}

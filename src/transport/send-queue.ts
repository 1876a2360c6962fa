// The sending half of a connection: the ring of slab ranges to send, shared with the native
// sockets, and the memory of frame headers, recycled in the order of sending. Queuing stores a few
// words; it allocates nothing and calls nothing.

import { assert } from '../core/assert.js';
import { SEND_SEGMENTS_MAX } from '../core/limits.js';
import { NO_BUFFER } from '../core/slab.js';
import type { ConnectionHandler } from './connection.js';
import {
  BLOCK_WORD,
  type ConnectionRegion,
  type ConnectionRegions,
  SEGMENT_WORDS,
} from './connection-memory.js';

/** After header() succeeded, so many segments can be queued: a frame and its payload. */
const FRAME_SEGMENTS_MAX = 64;

export class SendQueue {
  private readonly words: Int32Array;
  private readonly sentWord: number;
  private readonly queuedWord: number;
  private readonly ringWord: number;
  private readonly headersBegin: number;
  private readonly headersEnd: number;
  /** Next free header byte, and the oldest one that is not sent. */
  private headersHead: number;
  private headersTail: number;
  /** Queued segments in header memory. */
  private headerSegments = 0;
  /** Segments collect() has seen, ever; all counts are modulo 2^32. */
  private collectedCount = 0;
  /** Segments take() has given out, ever. */
  private takenCount = 0;
  /** Bytes of the segments not collected yet. */
  queuedBytes = 0;

  constructor(regions: ConnectionRegions, region: ConnectionRegion) {
    this.words = regions.words;
    this.sentWord = region.blockWord + BLOCK_WORD.sentCount;
    this.queuedWord = region.blockWord + BLOCK_WORD.queuedCount;
    this.ringWord = region.blockWord + BLOCK_WORD.ring;
    this.headersBegin = region.headersBegin;
    this.headersEnd = region.headersEnd;
    this.headersHead = region.headersBegin;
    this.headersTail = region.headersBegin;
  }

  /** Memory for a header, taken by the push() that follows; NO_BUFFER when there is none. */
  header(lengthBytes: number): number {
    if (this.freeSegments() < FRAME_SEGMENTS_MAX) return NO_BUFFER;
    if (this.headerSegments === 0) {
      this.headersHead = this.headersBegin;
      this.headersTail = this.headersBegin;
    }
    const { headersHead, headersTail } = this;
    const isWrapped = this.headerSegments > 0 && headersHead <= headersTail;
    if (headersHead + lengthBytes <= (isWrapped ? headersTail : this.headersEnd))
      return headersHead;
    if (isWrapped || this.headersBegin + lengthBytes > headersTail) return NO_BUFFER;
    this.headersHead = this.headersBegin;
    return this.headersBegin;
  }

  push(offset: number, lengthBytes: number, token: number): void {
    assert(lengthBytes > 0, 'a segment has bytes');
    this.queuedBytes += lengthBytes;
    if (this.isHeader(offset)) {
      assert(offset === this.headersHead, 'header memory is queued as it was given');
      this.headersHead += lengthBytes;
      this.headerSegments++;
    }
    assert(this.freeSegments() > 0, 'frames are queued after header() said there is room');
    const queued = this.words[this.queuedWord] as number;
    const at = this.segmentWord(queued);
    this.words[at] = offset;
    this.words[at + 1] = lengthBytes;
    this.words[at + 2] = token;
    this.words[this.queuedWord] = queued + 1;
  }

  /** Recycles what was sent and tells the handler the tokens, in order. */
  collect(handler: ConnectionHandler): void {
    while (this.collectedCount !== this.words[this.sentWord]) {
      const at = this.segmentWord(this.collectedCount);
      const offset = this.words[at] as number;
      const lengthBytes = this.words[at + 1] as number;
      const token = this.words[at + 2] as number;
      this.collectedCount = (this.collectedCount + 1) | 0;
      this.queuedBytes -= lengthBytes;
      if (this.isHeader(offset)) {
        this.headersTail = offset + lengthBytes;
        this.headerSegments--;
      }
      if (token !== 0) handler.sent(token);
    }
  }

  /** For streams: calls back with every segment queued since the last call. */
  take(taken: (offset: number, lengthBytes: number) => void): void {
    while (this.takenCount !== this.words[this.queuedWord]) {
      const at = this.segmentWord(this.takenCount);
      this.takenCount = (this.takenCount + 1) | 0;
      taken(this.words[at] as number, this.words[at + 1] as number);
    }
  }

  /** For streams: the oldest segment not sent yet was sent. */
  noteSent(): void {
    this.words[this.sentWord] = (this.words[this.sentWord] as number) + 1;
  }

  private freeSegments(): number {
    const waiting = ((this.words[this.queuedWord] as number) - this.collectedCount) | 0;
    return SEND_SEGMENTS_MAX - waiting;
  }

  private segmentWord(count: number): number {
    return this.ringWord + (count & (SEND_SEGMENTS_MAX - 1)) * SEGMENT_WORDS;
  }

  private isHeader(offset: number): boolean {
    return offset >= this.headersBegin && offset < this.headersEnd;
  }
}

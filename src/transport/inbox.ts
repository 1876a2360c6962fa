// The receiving half of a connection: keeps track of what arrived where and offers it to the
// handler. It never calls the handler while paused, stopped or inside another of its calls.

import { assert } from '../core/assert.js';
import { KIB } from '../core/units.js';
import type { ConnectionHandler } from './connection.js';
import { BLOCK_WORD, type ConnectionRegion, type ConnectionRegions } from './connection-memory.js';

/** With less free space than this behind them, unconsumed bytes move to the buffer's begin. */
const FREE_BYTES_MIN = 64 * KIB;

export class Inbox {
  private readonly bytes: Uint8Array;
  private readonly words: Int32Array;
  private readonly block: number;
  private readonly bufferBegin: number;
  private readonly bufferEnd: number;
  private handler: ConnectionHandler | null = null;
  /** Unconsumed bytes of the receive buffer. */
  private begin: number;
  private end: number;
  /** Some of them were not offered yet, or are to be offered again. */
  private isOfferDue = false;
  private hasTarget = false;
  private isDelivering = false;
  private isStopped = false;

  constructor(regions: ConnectionRegions, region: ConnectionRegion) {
    this.bytes = regions.slab.bytes;
    this.words = regions.words;
    this.block = region.blockWord;
    this.bufferBegin = region.receiveBegin;
    this.bufferEnd = region.receiveEnd;
    this.begin = region.receiveBegin;
    this.end = region.receiveBegin;
    this.words[this.block + BLOCK_WORD.receiveBegin] = region.receiveBegin;
    this.words[this.block + BLOCK_WORD.receiveEnd] = region.receiveEnd;
  }

  start(handler: ConnectionHandler): void {
    this.handler = handler;
  }

  /** Nothing is offered any more. */
  stop(): void {
    this.isStopped = true;
  }

  isPaused(): boolean {
    return this.words[this.block + BLOCK_WORD.isPaused] !== 0;
  }

  pause(): void {
    this.words[this.block + BLOCK_WORD.isPaused] = 1;
  }

  /** True when everything was offered; false when paused again, or the handler is in a call. */
  resume(): boolean {
    this.words[this.block + BLOCK_WORD.isPaused] = 0;
    this.isOfferDue = true;
    if (this.isDelivering) return false;
    this.deliver();
    return !this.isStopped && !this.isPaused();
  }

  hasUnconsumed(): boolean {
    return this.begin < this.end;
  }

  /** Bytes promised to a target are missing. */
  awaitsTarget(): boolean {
    return this.hasTarget;
  }

  receiveInto(bufferOffset: number, lengthBytes: number): void {
    assert(!this.hasTarget && lengthBytes > 0, 'one target at a time, of at least a byte');
    this.hasTarget = true;
    this.words[this.block + BLOCK_WORD.targetBegin] = bufferOffset;
    this.words[this.block + BLOCK_WORD.targetBytes] = lengthBytes;
  }

  /** byteCount bytes arrived, in the target as far as it reaches, then at receiveBegin. */
  landed(byteCount: number): void {
    const intoTarget = Math.min(byteCount, this.targetBytes());
    if (intoTarget > 0) this.advanceTarget(intoTarget);
    if (byteCount > intoTarget) {
      this.end += byteCount - intoTarget;
      this.isOfferDue = true;
    }
    this.deliver();
  }

  /** Copies what fits of chunk[at...] in as if it had landed; returns how many bytes. */
  copyIn(chunk: Uint8Array, at: number): number {
    const targetBytes = this.targetBytes();
    const room = targetBytes > 0 ? targetBytes : this.bufferEnd - this.end;
    const count = Math.min(room, chunk.length - at);
    const to = targetBytes > 0 ? this.targetBegin() : this.end;
    this.bytes.set(chunk.subarray(at, at + count), to);
    this.landed(count);
    return count;
  }

  private targetBegin(): number {
    return this.words[this.block + BLOCK_WORD.targetBegin] as number;
  }

  private targetBytes(): number {
    return this.words[this.block + BLOCK_WORD.targetBytes] as number;
  }

  private advanceTarget(byteCount: number): void {
    this.words[this.block + BLOCK_WORD.targetBegin] = this.targetBegin() + byteCount;
    this.words[this.block + BLOCK_WORD.targetBytes] = this.targetBytes() - byteCount;
  }

  private deliver(): void {
    // The handler may resume() inside a call: the loop below then goes on by itself.
    if (this.isDelivering || this.handler === null) return;
    this.isDelivering = true;
    while (!this.isStopped && !this.isPaused()) {
      if (this.hasTarget) {
        if (!this.fillTarget()) break;
        this.hasTarget = false;
        this.handler.targetFilled();
      } else if (this.isOfferDue && this.begin < this.end) {
        this.offer(this.handler);
      } else {
        break;
      }
    }
    this.isDelivering = false;
    if (!this.isStopped) this.makeRoom();
  }

  /** A target set while bytes wait in the buffer gets those first. True when it is full. */
  private fillTarget(): boolean {
    const count = Math.min(this.targetBytes(), this.end - this.begin);
    if (count > 0) {
      this.bytes.copyWithin(this.targetBegin(), this.begin, this.begin + count);
      this.begin += count;
      this.advanceTarget(count);
    }
    return this.targetBytes() === 0;
  }

  private offer(handler: ConnectionHandler): void {
    this.isOfferDue = false;
    const offered = this.end - this.begin;
    const consumed = handler.received(this.begin, this.end);
    if (this.isStopped) return;
    assert(consumed >= 0 && consumed <= offered, 'a handler consumes what it was offered');
    this.begin += consumed;
    assert(!this.hasTarget || consumed === offered, 'a target follows the last offered byte');
  }

  private makeRoom(): void {
    if (this.begin === this.end) {
      this.begin = this.bufferBegin;
      this.end = this.bufferBegin;
    } else if (this.bufferEnd - this.end < FREE_BYTES_MIN) {
      this.bytes.copyWithin(this.bufferBegin, this.begin, this.end);
      this.end -= this.begin - this.bufferBegin;
      this.begin = this.bufferBegin;
    }
    this.words[this.block + BLOCK_WORD.receiveBegin] = this.end;
    const canProceed = this.end < this.bufferEnd || this.hasTarget || this.isPaused();
    assert(canProceed, 'a handler consumes from a full receive buffer, or pauses');
  }
}

// A Connection without a socket: tests push the client's bytes in any pieces and take out what
// the server sent. Nothing moves by itself, so every interleaving can be produced on purpose.

import type { StorageError } from '../../src/core/errors.js';
import { RECEIVE_BUFFER_BYTES, SEND_HEADER_BYTES } from '../../src/core/limits.js';
import { NO_BUFFER, SLAB_BYTES, Slab } from '../../src/core/slab.js';
import type { Connection, ConnectionHandler } from '../../src/transport/connection.js';

/** A slab with room for a few memory connections. */
export function createTestSlab(connections = 4): Slab {
  const reserved = connections * (RECEIVE_BUFFER_BYTES + SEND_HEADER_BYTES);
  return new Slab(new ArrayBuffer(SLAB_BYTES + reserved));
}

/** Regions of slabs, used again by later connections of the same slab. */
const freeRegions = new WeakMap<Slab, number[]>();

interface Segment {
  readonly bufferOffset: number;
  readonly lengthBytes: number;
  readonly token: number;
}

export class MemoryConnection implements Connection {
  readonly slab: Slab;
  readonly peer: string;
  isPaused = false;
  isClosed = false;
  isEnding = false;
  closeError: StorageError | null = null;
  /** Most header memory that was in use at once. */
  headerBytesMax = 0;
  private handler: ConnectionHandler | null = null;
  private readonly region: number;
  private receivedEnd: number;
  private unconsumed = 0;
  private targetOffset = 0;
  private targetBytes = 0;
  private readonly segments: Segment[] = [];
  private headerAt = 0;
  private headersQueued = 0;
  private readonly output: Uint8Array[] = [];
  /** Bytes the client sent that have not been taken, because the server paused. */
  private readonly backlog: Uint8Array[] = [];
  private isOffering = false;

  constructor(slab: Slab, peer = 'test') {
    this.slab = slab;
    this.peer = peer;
    const free = freeRegions.get(slab) ?? [];
    freeRegions.set(slab, free);
    this.region = free.pop() ?? slab.reserve(RECEIVE_BUFFER_BYTES + SEND_HEADER_BYTES);
    this.receivedEnd = this.region;
  }

  start(handler: ConnectionHandler): void {
    this.handler = handler;
  }

  receiveInto(bufferOffset: number, lengthBytes: number): void {
    if (this.targetBytes > 0) throw new Error('a target is already set');
    this.targetOffset = bufferOffset;
    this.targetBytes = lengthBytes;
  }

  pause(): void {
    this.isPaused = true;
  }

  resume(): void {
    if (this.isOffering) throw new Error('resume() inside received()');
    this.isPaused = false;
    if (this.unconsumed > 0) this.offer();
    this.drainBacklog();
  }

  header(lengthBytes: number): number {
    if (lengthBytes > 64) throw new Error('a header is at most 64 bytes');
    if ((this.headersQueued + 1) * 64 > SEND_HEADER_BYTES) return NO_BUFFER;
    this.headersQueued++;
    this.headerBytesMax = Math.max(this.headerBytesMax, this.headersQueued * 64);
    const slots = SEND_HEADER_BYTES / 64;
    return this.region + RECEIVE_BUFFER_BYTES + (this.headerAt++ % slots) * 64;
  }

  send(bufferOffset: number, lengthBytes: number, token: number): void {
    if (lengthBytes <= 0) throw new Error('an empty segment');
    if (!this.isClosed) this.segments.push({ bufferOffset, lengthBytes, token });
  }

  queuedBytes(): number {
    return this.segments.reduce((sum, segment) => sum + segment.lengthBytes, 0);
  }

  end(): void {
    this.isEnding = true;
  }

  destroy(error?: StorageError): void {
    this.close(error ?? null);
  }

  // ---- The test's side ----

  /** The client sends bytes. */
  push(bytes: Uint8Array): void {
    this.backlog.push(bytes);
    this.drainBacklog();
  }

  /** The kernel takes up to segmentsMax segments; returns how many it took. */
  flush(segmentsMax = Number.POSITIVE_INFINITY): number {
    let count = 0;
    while (count < segmentsMax) {
      const segment = this.segments.shift();
      if (segment === undefined) break;
      count++;
      const { bufferOffset, lengthBytes, token } = segment;
      this.output.push(this.slab.bytes.slice(bufferOffset, bufferOffset + lengthBytes));
      if (bufferOffset >= this.region) this.headersQueued--;
      if (token !== 0) this.handler?.sent(token);
    }
    if (this.isEnding && this.segments.length === 0) this.close(null);
    return count;
  }

  /** Flushes until nothing moves, and takes everything the server has sent so far. */
  take(): Uint8Array {
    while (this.flush() > 0);
    return this.takeSent();
  }

  /** What has been flushed, without flushing more. */
  takeSent(): Uint8Array {
    return Buffer.concat(this.output.splice(0));
  }

  /** The client vanishes. */
  vanish(error: StorageError | null = null): void {
    this.close(error);
  }

  private close(error: StorageError | null): void {
    if (this.isClosed) return;
    this.isClosed = true;
    this.closeError = error;
    this.segments.length = 0;
    this.backlog.length = 0;
    freeRegions.get(this.slab)?.push(this.region);
    this.handler?.closed(error);
  }

  private drainBacklog(): void {
    while (!this.isPaused && !this.isClosed && this.backlog.length > 0) {
      const bytes = this.backlog.shift() as Uint8Array;
      const taken = this.targetBytes > 0 ? this.fillTarget(bytes) : this.buffer(bytes);
      if (taken < bytes.byteLength) this.backlog.unshift(bytes.subarray(taken));
    }
  }

  private fillTarget(bytes: Uint8Array): number {
    const taken = Math.min(bytes.byteLength, this.targetBytes);
    this.slab.bytes.set(bytes.subarray(0, taken), this.targetOffset);
    this.targetOffset += taken;
    this.targetBytes -= taken;
    if (this.targetBytes === 0) this.handler?.targetFilled();
    return taken;
  }

  private buffer(bytes: Uint8Array): number {
    const begin = this.receivedEnd - this.unconsumed;
    this.slab.bytes.copyWithin(this.region, begin, this.receivedEnd);
    this.receivedEnd = this.region + this.unconsumed;
    const room = RECEIVE_BUFFER_BYTES - this.unconsumed;
    const taken = Math.min(bytes.byteLength, room);
    if (taken === 0) throw new Error('the receive buffer is full and nothing is consumed');
    this.slab.bytes.set(bytes.subarray(0, taken), this.receivedEnd);
    this.receivedEnd += taken;
    this.unconsumed += taken;
    this.offer();
    return taken;
  }

  private offer(): void {
    const begin = this.receivedEnd - this.unconsumed;
    this.isOffering = true;
    const consumed = this.handler?.received(begin, this.receivedEnd) ?? 0;
    this.isOffering = false;
    this.unconsumed -= consumed;
    if (this.unconsumed < 0) throw new Error('more was consumed than offered');
    if (this.targetBytes > 0 && this.unconsumed > 0 && !this.isClosed) {
      throw new Error('receiveInto() with bytes left unconsumed');
    }
  }
}

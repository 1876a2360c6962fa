// The engine's end of the data protocol: one connection to one replica. Requests are answered in
// any order; the first failure of the connection fails everything in flight, and there is no
// reconnect: whether a replica may come back is for the engine to decide.

import { BLOCK_OP, type BlockDevice, type BlockRequest } from '../core/block-device.js';
import type { Clock, Timer } from '../core/clock.js';
import { StorageError, toStorageError } from '../core/errors.js';
import { EXTENTS_BUFFER_BYTES } from '../core/limits.js';
import { NO_BUFFER } from '../core/slab.js';
import type { Connection, ConnectionHandler } from '../transport/connection.js';
import { takePayload } from '../transport/payload.js';
import {
  CAPABILITY,
  FRAME_ERROR_TEXT_BYTES_MAX,
  FRAME_HEADER_BYTES,
  FRAME_TYPE,
} from '../wire/replica/constants.js';
import { errorFromText } from '../wire/replica/error-text.js';
import { decodeFrameHeader, encodeFrameHeader, FrameHeader } from '../wire/replica/frame.js';
import { PendingTable, PING_SEQ } from './pending-table.js';
import { ZeroesAsData, ZERO_PAYLOAD, type ZeroRegion } from './zeroes-as-data.js';

export interface DataClientOptions {
  readonly connection: Connection;
  readonly address: string;
  readonly sizeBytes: number;
  /** What the replica announced over gRPC; empty for a Go replica. */
  readonly capabilities: readonly string[];
  readonly clock: Clock;
  readonly zeroRegion: ZeroRegion;
  /** Of this engine, said first where the replica understands it; 0: not said. */
  readonly engineGeneration: number;
  readonly silenceMaxMs: () => number;
  /** The connection is lost; called before the requests in flight are failed. */
  readonly failed: (error: StorageError) => void;
}

/** Longhorn's ping period: this long after the previous answer. */
const PING_INTERVAL_MS = 2000;
/** How often silence is looked for while requests are in flight. */
const SILENCE_CHECK_MS = 1000;

export class DataClient implements BlockDevice, ConnectionHandler {
  zeroesAsData = false;
  readonly canFlush: boolean;
  private readonly options: DataClientOptions;
  private readonly connection: Connection;
  private readonly canWriteFua: boolean;
  private readonly canWriteZeroes: boolean;
  private readonly canExtents: boolean;
  private readonly pending = new PendingTable();
  /** Requests that found no header memory; they leave when earlier frames were sent. */
  private backlog: BlockRequest[] = [];
  /** Slots whose flush found no header memory. */
  private readonly waitingFlushes: number[] = [];
  private readonly header = new FrameHeader();
  /** Slot whose read payload is arriving, or -1. */
  private receivingSlot = -1;
  private skipBytes = 0;
  private failure: StorageError | null = null;
  /**
   * Last answer to a request, or when requests began. Answers to pings do not count: a replica
   * whose disk hangs still answers them.
   */
  private lastActivityMs = 0;
  private silenceTimer: Timer | null = null;
  private pingTimer: Timer | null = null;
  private pingSentMs = -1;

  constructor(options: DataClientOptions) {
    this.options = options;
    this.connection = options.connection;
    const has = (capability: string): boolean => options.capabilities.includes(capability);
    this.canFlush = has(CAPABILITY.flush);
    this.canWriteFua = has(CAPABILITY.writeFua);
    this.canWriteZeroes = has(CAPABILITY.writeZeroes);
    this.canExtents = has(CAPABILITY.extents);
    this.connection.start(this);
    if (options.engineGeneration > 0 && has(CAPABILITY.hello))
      this.sayHello(options.engineGeneration);
    this.schedulePing();
  }

  get sizeBytes(): number {
    return this.options.sizeBytes;
  }

  get inFlightCount(): number {
    return this.pending.count + this.backlog.length;
  }

  submit(request: BlockRequest): void {
    if (this.failure !== null) {
      request.done(this.failure);
    } else if (request.op === BLOCK_OP.flush && !this.canFlush) {
      // A Go replica has no flush: its writes are as durable as O_DIRECT makes them.
      request.done(null);
    } else if (request.op === BLOCK_OP.extents && !this.canExtents) {
      request.done(new StorageError('UNSUPPORTED', 'the replica does not list extents'));
    } else if (request.op === BLOCK_OP.writeZeroes && (this.zeroesAsData || !this.canWriteZeroes)) {
      new ZeroesAsData(this, request).next();
    } else {
      this.transmit(request);
    }
  }

  /** Fails everything in flight without telling the owner, who asked for it. */
  disconnect(): void {
    this.fail(new StorageError('CLOSED', `${this.options.address}: connection closed`), false);
  }

  received(beginOffset: number, endOffset: number): number {
    let at = beginOffset;
    try {
      for (;;) {
        if (this.skipBytes > 0) at = this.skip(at, endOffset);
        if (endOffset - at < FRAME_HEADER_BYTES || this.failure !== null) break;
        decodeFrameHeader(this.connection.slab.view, at, this.header);
        const next = this.frame(this.header, at + FRAME_HEADER_BYTES, endOffset);
        if (next < 0) break;
        at = next;
        if (this.receivingSlot >= 0) break;
      }
    } catch (error) {
      this.fail(toStorageError(error, 'BAD_FRAME'), true);
      return endOffset - beginOffset;
    }
    return at - beginOffset;
  }

  targetFilled(): void {
    const slot = this.receivingSlot;
    this.receivingSlot = -1;
    this.answered(slot, null);
  }

  sent(token: number): void {
    const slot = token - 1;
    if (this.failure !== null) return;
    if (this.pending.markSent(slot)) this.finish(slot);
    if (this.waitingFlushes.length > 0) this.sendWaitingFlushes();
    if (this.backlog.length > 0) this.sendBacklog();
  }

  closed(error: StorageError | null): void {
    const { address } = this.options;
    this.fail(error ?? new StorageError('CONNECTION_LOST', `${address}: EOF`), true);
  }

  /** From here on this connection is served only while our generation has the replica open. */
  private sayHello(generation: number): void {
    const at = this.connection.header(FRAME_HEADER_BYTES);
    // Lost between connecting and this: closed() follows, and says so.
    if (at === NO_BUFFER) return;
    encodeFrameHeader(this.connection.slab.view, at, PING_SEQ, FRAME_TYPE.hello, generation, 0, 0);
    this.connection.send(at, FRAME_HEADER_BYTES, 0);
  }

  private transmit(request: BlockRequest): void {
    if (this.inFlightCount === 0) this.lastActivityMs = this.options.clock.nowMs();
    if (this.backlog.length > 0 || !this.send(request)) this.backlog.push(request);
    this.watchSilence();
  }

  /** False when there is no header memory. */
  private send(request: BlockRequest): boolean {
    const at = this.connection.header(FRAME_HEADER_BYTES);
    if (at === NO_BUFFER) return false;
    const slot = this.pending.add(request);
    this.sendFrame(slot, at, request, this.typeOf(request));
    return true;
  }

  private sendFrame(slot: number, at: number, request: BlockRequest, type: number): void {
    const isFlush = type === FRAME_TYPE.flush;
    const isWrite = request.op === BLOCK_OP.write && !isFlush;
    const lengthBytes = isFlush ? 0 : request.lengthBytes;
    const dataBytes = isWrite ? lengthBytes : 0;
    const offsetBytes = isFlush ? 0 : request.offsetBytes;
    const { slab } = this.connection;
    encodeFrameHeader(slab.view, at, slot + 1, type, offsetBytes, lengthBytes, dataBytes);
    this.connection.send(at, FRAME_HEADER_BYTES, dataBytes === 0 ? slot + 1 : 0);
    if (dataBytes === 0) return;
    if (request.bufferOffset === ZERO_PAYLOAD) this.sendZeroes(dataBytes, slot + 1);
    else this.connection.send(request.bufferOffset, dataBytes, slot + 1);
  }

  private sendZeroes(dataBytes: number, token: number): void {
    const { offset, lengthBytes } = this.options.zeroRegion;
    for (let left = dataBytes; left > 0; left -= lengthBytes) {
      this.connection.send(offset, Math.min(left, lengthBytes), left <= lengthBytes ? token : 0);
    }
  }

  private typeOf(request: BlockRequest): number {
    switch (request.op) {
      case BLOCK_OP.read:
        return FRAME_TYPE.read;
      case BLOCK_OP.write:
        return request.fua && this.canWriteFua ? FRAME_TYPE.writeFua : FRAME_TYPE.write;
      case BLOCK_OP.unmap:
        return FRAME_TYPE.unmap;
      case BLOCK_OP.flush:
        return FRAME_TYPE.flush;
      case BLOCK_OP.writeZeroes:
        return FRAME_TYPE.writeZeroes;
      case BLOCK_OP.extents:
        return FRAME_TYPE.extents;
    }
  }

  private sendBacklog(): void {
    let count = 0;
    while (count < this.backlog.length && this.send(this.backlog[count] as BlockRequest)) count++;
    if (count > 0) this.backlog.splice(0, count);
  }

  /** Handles one frame whose data begins at `at`. Returns where the next begins, or -1 to wait. */
  private frame(header: FrameHeader, at: number, end: number): number {
    const isError = header.type === FRAME_TYPE.error || header.type === FRAME_TYPE.noSpace;
    if (isError) return this.errorFrame(header, at, end);
    if (header.type === FRAME_TYPE.close) {
      throw new StorageError('CONNECTION_LOST', `${this.options.address}: replica is stopping`);
    }
    const slot = header.seq - 1;
    const request = this.pending.get(slot);
    if (header.seq === PING_SEQ) {
      this.pinged();
    } else if (request !== null && !this.pending.isAnswered(slot)) {
      if (header.type === FRAME_TYPE.eof) {
        this.answered(slot, new StorageError('PEER_ERROR', `${this.options.address}: EOF`));
      } else if (header.type === FRAME_TYPE.response) {
        return this.response(header, slot, request, at, end);
      }
    }
    this.skipBytes = header.dataBytes;
    return at;
  }

  private response(
    header: FrameHeader,
    slot: number,
    request: BlockRequest,
    at: number,
    end: number,
  ): number {
    const isRead = request.op === BLOCK_OP.read;
    if (!isRead && request.op !== BLOCK_OP.extents) {
      if (request.op === BLOCK_OP.unmap) request.resultBytes = header.sizeBytes;
      this.skipBytes = header.dataBytes;
      this.answered(slot, null);
      return at;
    }
    const fits = isRead
      ? header.dataBytes === request.lengthBytes
      : header.dataBytes <= EXTENTS_BUFFER_BYTES;
    if (!fits) throw new StorageError('BAD_FRAME', `an answer of ${header.dataBytes} bytes`);
    request.resultBytes = header.dataBytes;
    const taken = takePayload(this.connection, at, end, request.bufferOffset, header.dataBytes);
    if (taken < header.dataBytes) this.receivingSlot = slot;
    else this.answered(slot, null);
    return at + taken;
  }

  private errorFrame(header: FrameHeader, at: number, end: number): number {
    if (header.dataBytes > FRAME_ERROR_TEXT_BYTES_MAX) {
      throw new StorageError('FRAME_TOO_LARGE', `an error text of ${header.dataBytes} bytes`);
    }
    if (end - at < header.dataBytes) return -1;
    const bytes = this.connection.slab.bytes.subarray(at, at + header.dataBytes);
    const error = errorFromText(new TextDecoder().decode(bytes), header.type);
    if (header.seq === PING_SEQ) throw error;
    const slot = header.seq - 1;
    if (this.pending.get(slot) !== null) this.answered(slot, error);
    return at + header.dataBytes;
  }

  private answered(slot: number, error: StorageError | null): void {
    this.lastActivityMs = this.options.clock.nowMs();
    // The answer may overtake the event that the frame was sent; the buffer is free only after both.
    if (this.pending.markAnswered(slot, error)) this.finish(slot);
  }

  private finish(slot: number): void {
    const request = this.pending.get(slot) as BlockRequest;
    const error = this.pending.errorOf(slot);
    if (error === null && this.needsFlush(request) && this.pending.startFlush(slot)) {
      if (this.waitingFlushes.length > 0 || !this.sendFlush(slot)) this.waitingFlushes.push(slot);
      return;
    }
    this.pending.remove(slot);
    request.done(error);
  }

  /** A durable request that the replica took as an ordinary one. */
  private needsFlush(request: BlockRequest): boolean {
    if (!request.fua || !this.canFlush) return false;
    switch (request.op) {
      case BLOCK_OP.write:
        return !this.canWriteFua;
      case BLOCK_OP.unmap:
      case BLOCK_OP.writeZeroes:
        return true;
      default: // nothing was changed
        return false;
    }
  }

  /** False when there is no header memory. */
  private sendFlush(slot: number): boolean {
    const at = this.connection.header(FRAME_HEADER_BYTES);
    if (at === NO_BUFFER) return false;
    this.sendFrame(slot, at, this.pending.get(slot) as BlockRequest, FRAME_TYPE.flush);
    return true;
  }

  private sendWaitingFlushes(): void {
    const { waitingFlushes } = this;
    let count = 0;
    while (count < waitingFlushes.length && this.sendFlush(waitingFlushes[count] as number))
      count++;
    if (count > 0) waitingFlushes.splice(0, count);
  }

  private fail(error: StorageError, tellOwner: boolean): void {
    if (this.failure !== null) return;
    this.failure = error;
    this.silenceTimer?.cancel();
    this.pingTimer?.cancel();
    this.connection.destroy(error);
    if (tellOwner) this.options.failed(error);
    for (const request of this.pending.takeAll()) request.done(error);
    const waiting = this.backlog;
    this.backlog = [];
    for (const request of waiting) request.done(error);
  }

  private watchSilence(): void {
    if (this.silenceTimer !== null) return;
    this.silenceTimer = this.options.clock.after(SILENCE_CHECK_MS, () => this.checkSilence(), {
      unref: true,
    });
  }

  private checkSilence(): void {
    this.silenceTimer = null;
    if (this.failure !== null || this.inFlightCount === 0) return;
    if (this.options.clock.nowMs() - this.lastActivityMs > this.options.silenceMaxMs()) {
      this.fail(new StorageError('TIMEOUT', `${this.options.address}: r/w timeout`), true);
      return;
    }
    this.watchSilence();
  }

  private schedulePing(): void {
    const { clock } = this.options;
    this.pingTimer = clock.after(PING_INTERVAL_MS, () => this.pingOrGiveUp(), { unref: true });
  }

  private pingOrGiveUp(): void {
    const { clock, address } = this.options;
    if (this.pingSentMs >= 0) {
      if (clock.nowMs() - this.pingSentMs > this.options.silenceMaxMs()) {
        this.fail(new StorageError('TIMEOUT', `${address}: ping timeout`), true);
        return;
      }
    } else {
      const at = this.connection.header(FRAME_HEADER_BYTES);
      if (at !== NO_BUFFER) {
        encodeFrameHeader(this.connection.slab.view, at, PING_SEQ, FRAME_TYPE.ping, 0, 0, 0);
        this.connection.send(at, FRAME_HEADER_BYTES, 0);
        this.pingSentMs = clock.nowMs();
      }
    }
    this.schedulePing();
  }

  private pinged(): void {
    this.pingSentMs = -1;
  }

  private skip(begin: number, end: number): number {
    const skipped = Math.min(this.skipBytes, end - begin);
    this.skipBytes -= skipped;
    return begin + skipped;
  }
}

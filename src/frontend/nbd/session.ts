// The transmission phase of one NBD connection: takes requests off the stream as they arrive and
// gives them to a runner. Memory is bounded by never parsing what there is no room for: the
// connection is paused and the bytes stay where they are. A write reaches the device only when its
// payload (or that of its part) is complete. Source: proto.md, "Transmission".

import { BLOCK_OP } from '../../core/block-device.js';
import { StorageError } from '../../core/errors.js';
import {
  CONNECTION_REQUESTS_MAX,
  DIRECT_RECEIVE_BYTES_MIN,
  EXTENTS_BUFFER_BYTES,
  NBD_PARTS_MAX,
  NBD_PAYLOAD_BYTES_MAX,
  NBD_RANGE_PART_BYTES_MAX,
  REQUEST_BYTES_MAX,
} from '../../core/limits.js';
import { NO_BUFFER } from '../../core/slab.js';
import type { Connection, ConnectionHandler } from '../../transport/connection.js';
import { takePayload } from '../../transport/payload.js';
import {
  NBD_COMMAND,
  NBD_COMMAND_FLAG,
  NBD_ERROR,
  NBD_REQUEST_BYTES,
  type NbdError,
} from '../../wire/nbd/constants.js';
import { NbdRequestHeader } from '../../wire/nbd/decoder.js';
import type { Agreement } from './negotiation.js';
import type { NbdRequest } from './request.js';
import { RequestRunner } from './request-runner.js';
import { checkRequest } from './rules.js';

/** A connection that was blocked by its requests in flight is read again when this many are left. */
const RESUME_AT_REQUESTS = (CONNECTION_REQUESTS_MAX * 3) / 4;

export interface NbdSessionOptions {
  readonly connection: Connection;
  readonly agreement: Agreement;
  /** Called once: the connection is closed and the device works on none of its requests. */
  readonly ended: (error: StorageError | null) => void;
}

export class NbdSession implements ConnectionHandler {
  private readonly connection: Connection;
  private readonly agreement: Agreement;
  private readonly view: DataView;
  private readonly runner: RequestRunner;
  private readonly header = new NbdRequestHeader();

  /** The write (or part) whose payload the kernel is delivering. */
  private receiving: NbdRequest | null = null;
  /** The split write whose further parts are still to come from the client. */
  private largeWrite: NbdRequest | null = null;
  /** The write whose payload is thrown away, and how much of it is left. */
  private discarding: NbdRequest | null = null;
  private discardBytes = 0;

  private isBlocked = false;
  private resumeAtRequests = 0;
  /** Inside received(), where the connection may not be resumed. */
  private isParsing = false;
  private isStopping = false;
  /** A DISC was received, or the connection is being broken: nothing more is parsed. */
  private isEnding = false;
  private isEndSent = false;
  private isClosed = false;
  private closeError: StorageError | null = null;

  constructor(options: NbdSessionOptions) {
    const { connection, agreement, ended } = options;
    this.connection = connection;
    this.agreement = agreement;
    this.view = connection.slab.view;
    this.runner = new RequestRunner({
      connection,
      agreement,
      settled: () => this.progress(),
      broken: (error) => this.fail(error),
      idle: () => ended(this.closeError),
    });
  }

  /** Refuses new requests with ESHUTDOWN, answers those in flight, then ends the connection. */
  stop(): void {
    this.isStopping = true;
    this.progress();
  }

  received(beginOffset: number, endOffset: number): number {
    this.isParsing = true;
    let at = beginOffset;
    for (;;) {
      if (this.isEnding || this.isClosed) {
        at = endOffset; // nothing may follow a DISC
        break;
      }
      let taken: number;
      if (this.discarding !== null) taken = this.discard(endOffset - at);
      else if (this.largeWrite !== null) taken = this.takeLargeWritePart(at, endOffset);
      else taken = this.takeRequest(at, endOffset);
      if (taken === 0) break;
      at += taken;
    }
    this.isParsing = false;
    return at - beginOffset;
  }

  targetFilled(): void {
    const request = this.receiving as NbdRequest;
    this.receiving = null;
    this.runner.submit(request);
    if (this.largeWrite !== null && this.closeError === null) this.takeLargeWritePart(0, 0);
  }

  /** @returns bytes taken; 0 to wait for more bytes or for room. */
  private takeRequest(at: number, endOffset: number): number {
    const { header } = this;
    if (endOffset - at < NBD_REQUEST_BYTES) return 0;
    if (this.runner.inFlight >= CONNECTION_REQUESTS_MAX) return this.block(RESUME_AT_REQUESTS);
    if (this.runner.isExclusive) return this.block(0);
    if (this.runner.isStarving) return this.block();
    if (!header.decode(this.view, at)) {
      return this.fail(new StorageError('BAD_MAGIC', 'an NBD request without its magic'));
    }
    const { command, lengthBytes } = header;
    if (command === NBD_COMMAND.write) return this.takeWrite(at, endOffset);
    if (command === NBD_COMMAND.disconnect) return this.disconnect();
    const refusal = this.isStopping ? NBD_ERROR.ESHUTDOWN : checkRequest(header, this.agreement);
    if (refusal !== NBD_ERROR.none) {
      this.runner.reply(this.runner.open(this.header), refusal);
      return NBD_REQUEST_BYTES;
    }
    if (command === NBD_COMMAND.read) {
      return lengthBytes <= REQUEST_BYTES_MAX ? this.takeRead() : this.takeLargeRead();
    }
    if (command === NBD_COMMAND.blockStatus) return this.takeBlockStatus();
    this.startWithoutPayload(this.runner.open(this.header));
    return NBD_REQUEST_BYTES;
  }

  private takeRead(): number {
    const bufferOffset = this.runner.pool.takeBuffer(this.header.lengthBytes);
    if (bufferOffset === NO_BUFFER) return this.block();
    const request = this.runner.open(this.header);
    this.runner.pool.hold(request, bufferOffset, request.lengthBytes);
    request.op = BLOCK_OP.read;
    this.runner.submit(request);
    return NBD_REQUEST_BYTES;
  }

  private takeLargeRead(): number {
    const { structuredReplies } = this.agreement;
    if (!structuredReplies && this.runner.inFlight > 0) return this.block(0);
    const request = this.runner.open(this.header);
    request.split(BLOCK_OP.read, REQUEST_BYTES_MAX, structuredReplies ? NBD_PARTS_MAX : 1);
    this.runner.runSplit(request, !structuredReplies);
    return NBD_REQUEST_BYTES;
  }

  private takeBlockStatus(): number {
    const bufferOffset = this.runner.pool.takeBuffer(EXTENTS_BUFFER_BYTES);
    if (bufferOffset === NO_BUFFER) return this.block();
    const request = this.runner.open(this.header);
    this.runner.pool.hold(request, bufferOffset, EXTENTS_BUFFER_BYTES);
    request.op = BLOCK_OP.extents;
    this.runner.submit(request);
    return NBD_REQUEST_BYTES;
  }

  private startWithoutPayload(request: NbdRequest): void {
    const isFua = (request.commandFlags & NBD_COMMAND_FLAG.fua) !== 0;
    switch (request.command) {
      case NBD_COMMAND.flush:
        request.op = BLOCK_OP.flush;
        this.runner.submit(request);
        return;
      case NBD_COMMAND.cache: // a hint that this server has no use for
        this.runner.reply(request, NBD_ERROR.none);
        return;
      case NBD_COMMAND.trim:
        request.flushAfter = isFua;
        request.split(BLOCK_OP.unmap, NBD_RANGE_PART_BYTES_MAX, 1);
        break;
      default: {
        request.flushAfter = isFua;
        const mayMakeHole = (request.commandFlags & NBD_COMMAND_FLAG.noHole) === 0;
        if (mayMakeHole) request.split(BLOCK_OP.writeZeroes, NBD_RANGE_PART_BYTES_MAX, 1);
        // Only written zeroes are sure to occupy space.
        else request.split(BLOCK_OP.write, REQUEST_BYTES_MAX, NBD_PARTS_MAX);
      }
    }
    this.runner.runSplit(request);
  }

  private takeWrite(at: number, endOffset: number): number {
    const { lengthBytes, flags } = this.header;
    if (lengthBytes > NBD_PAYLOAD_BYTES_MAX) {
      return this.fail(
        new StorageError('FRAME_TOO_LARGE', 'an NBD write is too large', { lengthBytes }),
      );
    }
    const refusal = this.isStopping
      ? NBD_ERROR.ESHUTDOWN
      : checkRequest(this.header, this.agreement);
    if (refusal !== NBD_ERROR.none) return this.refuseWrite(refusal);
    if (lengthBytes > REQUEST_BYTES_MAX) return this.beginLargeWrite();
    const payloadOffset = at + NBD_REQUEST_BYTES;
    // Cheaper to wait for the rest of a small payload than to steer it.
    const isWhole = endOffset - payloadOffset >= lengthBytes;
    if (!isWhole && lengthBytes < DIRECT_RECEIVE_BYTES_MIN) return 0;
    const bufferOffset = this.runner.pool.takeBuffer(lengthBytes);
    if (bufferOffset === NO_BUFFER) return this.block();
    const request = this.runner.open(this.header);
    this.runner.pool.hold(request, bufferOffset, lengthBytes);
    request.op = BLOCK_OP.write;
    request.fua = (flags & NBD_COMMAND_FLAG.fua) !== 0;
    return NBD_REQUEST_BYTES + this.takePayloadOf(request, payloadOffset, endOffset);
  }

  private refuseWrite(refusal: NbdError): number {
    const request = this.runner.open(this.header);
    request.refusal = refusal;
    if (request.lengthBytes === 0) this.runner.reply(request, refusal);
    else this.discardPayload(request, request.lengthBytes);
    return NBD_REQUEST_BYTES;
  }

  private beginLargeWrite(): number {
    const request = this.runner.open(this.header);
    request.flushAfter = (request.commandFlags & NBD_COMMAND_FLAG.fua) !== 0;
    request.split(BLOCK_OP.write, REQUEST_BYTES_MAX, Number.POSITIVE_INFINITY);
    request.isFed = false;
    this.largeWrite = request;
    return NBD_REQUEST_BYTES;
  }

  /** @returns bytes taken; 0 also when the next part could not begin. */
  private takeLargeWritePart(at: number, endOffset: number): number {
    const whole = this.largeWrite as NbdRequest;
    if (this.receiving !== null) return 0;
    if (whole.partError !== null) {
      this.largeWrite = null;
      this.discardPayload(whole, whole.endOffset - whole.nextOffset);
      whole.nextOffset = whole.endOffset;
      return this.discard(endOffset - at);
    }
    const part = this.runner.beginPart(whole);
    if (part === null) return this.block();
    if (whole.nextOffset === whole.endOffset) {
      this.largeWrite = null;
      this.runner.fed(whole);
    }
    return this.takePayloadOf(part, at, endOffset);
  }

  private takePayloadOf(request: NbdRequest, at: number, endOffset: number): number {
    const { bufferOffset, lengthBytes } = request;
    const taken = takePayload(this.connection, at, endOffset, bufferOffset, lengthBytes);
    if (taken === lengthBytes) this.runner.submit(request);
    else this.receiving = request;
    return taken;
  }

  private discardPayload(request: NbdRequest, payloadBytes: number): void {
    this.discarding = request;
    this.discardBytes = payloadBytes;
  }

  private discard(availableBytes: number): number {
    const request = this.discarding as NbdRequest;
    const taken = Math.min(availableBytes, this.discardBytes);
    this.discardBytes -= taken;
    if (this.discardBytes > 0) return taken;
    this.discarding = null;
    if (request.refusal !== NBD_ERROR.none) this.runner.reply(request, request.refusal);
    else this.runner.fed(request);
    return taken;
  }

  private disconnect(): number {
    this.isEnding = true;
    this.progress();
    return NBD_REQUEST_BYTES;
  }

  sent(token: number): void {
    this.runner.sent(token);
  }

  closed(error: StorageError | null): void {
    this.isClosed = true;
    this.closeError ??= error;
    this.runner.close();
  }

  /** Breaks the connection; returns 0 for the parser's sake. */
  private fail(error: StorageError): number {
    this.isEnding = true;
    this.closeError = error;
    this.runner.stop();
    this.connection.destroy(error);
    return 0;
  }

  /** Stops parsing until there is room again, which progress() finds out. */
  private block(resumeAtRequests = CONNECTION_REQUESTS_MAX): number {
    this.isBlocked = true;
    this.resumeAtRequests = resumeAtRequests;
    this.connection.pause();
    return 0;
  }

  /** Something was finished or freed: continues whatever that allows. */
  private progress(): void {
    if (this.isClosed || this.closeError !== null) return;
    const { runner } = this;
    if ((this.isEnding || this.isStopping) && runner.inFlight === 0) {
      if (!this.isEndSent) this.connection.end();
      this.isEndSent = true;
      return;
    }
    if (runner.isStarving) runner.feedStarving();
    const hasRoom = !runner.isStarving && runner.inFlight <= this.resumeAtRequests;
    if (this.isBlocked && !this.isParsing && hasRoom) {
      this.isBlocked = false;
      this.connection.resume();
    }
  }
}

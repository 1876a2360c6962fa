// The transmission phase of one NBD connection: parses requests as they arrive, gives them to the
// block device and answers each exactly once, in whatever order they finish. Memory is bounded by
// never parsing what there is no room for: the connection is paused and the bytes stay where they
// are. A write reaches the device only when its payload (or that of its part) is complete.
// Source: proto.md, "Transmission".

import {
  BLOCK_OP,
  EXTENT_ENTRY_BYTES,
  type BlockDevice,
  type BlockRequest,
  type BlockRequestOwner,
} from '../../core/block-device.js';
import { StorageError } from '../../core/errors.js';
import {
  CONNECTION_REQUESTS_MAX,
  DIRECT_RECEIVE_BYTES_MIN,
  EXTENTS_BUFFER_BYTES,
  NBD_CONNECTION_PAYLOAD_BYTES_MAX,
  NBD_PARTS_MAX,
  NBD_PAYLOAD_BYTES_MAX,
  NBD_RANGE_PART_BYTES_MAX,
  REQUEST_BYTES_MAX,
} from '../../core/limits.js';
import { NO_BUFFER, type Slab } from '../../core/slab.js';
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
import { nbdErrorOf } from './error-map.js';
import { extentsToDescriptors } from './extents.js';
import type { Agreement } from './negotiation.js';
import { ReplyWriter } from './reply-writer.js';
import { NbdRequest } from './request.js';
import { checkRequest, requestOffset } from './rules.js';

/** A connection that was blocked by its requests in flight is read again when this many are left. */
const RESUME_AT_REQUESTS = (CONNECTION_REQUESTS_MAX * 3) / 4;

export interface NbdSessionOptions {
  readonly connection: Connection;
  readonly agreement: Agreement;
  /** Called once: the connection is closed and the device works on none of its requests. */
  readonly ended: (error: StorageError | null) => void;
}

export class NbdSession implements ConnectionHandler, BlockRequestOwner {
  private readonly connection: Connection;
  private readonly agreement: Agreement;
  private readonly device: BlockDevice;
  private readonly slab: Slab;
  private readonly replies: ReplyWriter;
  private readonly ended: (error: StorageError | null) => void;
  private readonly header = new NbdRequestHeader();
  /** Every request object ever made, by token - 1. */
  private readonly requests: NbdRequest[] = [];
  private readonly free: NbdRequest[] = [];

  /** Requests taken and not fully answered; parts are not counted. */
  private inFlight = 0;
  /** Requests and parts that the device works on. */
  private submitted = 0;
  private heldBytes = 0;
  /** The write (or part) whose payload the kernel is delivering. */
  private receiving: NbdRequest | null = null;
  /** The split write whose further parts are still to come from the client. */
  private largeWrite: NbdRequest | null = null;
  /** The refused write whose payload is thrown away, and how much is left of it. */
  private discarding: NbdRequest | null = null;
  private discardBytes = 0;
  /** Split requests that need a buffer for their next part. */
  private readonly starving: NbdRequest[] = [];
  /** A split READ with a simple reply: its data is one stream, so nothing else runs meanwhile. */
  private exclusive: NbdRequest | null = null;

  private isBlocked = false;
  private resumeAtRequests = 0;
  private waitsForSlab = false;
  /** Inside received(), where the connection may not be resumed. */
  private isParsing = false;
  private isStopping = false;
  /** A DISC was received, or the connection is being broken: nothing more is parsed. */
  private isEnding = false;
  private isEndSent = false;
  private isClosed = false;
  private closeError: StorageError | null = null;

  constructor(options: NbdSessionOptions) {
    this.connection = options.connection;
    this.agreement = options.agreement;
    this.device = options.agreement.exported.device;
    this.slab = options.connection.slab;
    this.replies = new ReplyWriter(options.connection, options.agreement.structuredReplies);
    this.ended = options.ended;
  }

  /** Requests that are not fully answered. */
  get requestsInFlight(): number {
    return this.inFlight;
  }

  /** Nothing can be sent any more. */
  private get isOver(): boolean {
    return this.isClosed || this.closeError !== null;
  }

  /** Refuses new requests with ESHUTDOWN, answers those in flight, then ends the connection. */
  stop(): void {
    this.isStopping = true;
    this.progress();
  }

  // ---- Receiving ----

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
    this.submit(request);
    if (this.largeWrite !== null && !this.isOver) this.takeLargeWritePart(0, 0);
  }

  /** @returns bytes taken; 0 to wait for more bytes or for room. */
  private takeRequest(at: number, endOffset: number): number {
    const { header } = this;
    if (endOffset - at < NBD_REQUEST_BYTES) return 0;
    if (this.inFlight >= CONNECTION_REQUESTS_MAX) return this.block(RESUME_AT_REQUESTS);
    if (this.exclusive !== null) return this.block(0);
    if (this.starving.length > 0) return this.block(this.inFlight);
    if (!header.decode(this.slab.view, at)) {
      return this.fail(new StorageError('BAD_MAGIC', 'an NBD request without its magic'));
    }
    const { command, lengthBytes } = header;
    if (command === NBD_COMMAND.write) return this.takeWrite(at, endOffset);
    if (command === NBD_COMMAND.disconnect) return this.disconnect();
    const refusal = this.isStopping ? NBD_ERROR.ESHUTDOWN : checkRequest(header, this.agreement);
    if (refusal !== NBD_ERROR.none) {
      this.replyError(this.open(), refusal);
      return NBD_REQUEST_BYTES;
    }
    if (command === NBD_COMMAND.read) {
      return lengthBytes <= REQUEST_BYTES_MAX ? this.takeRead() : this.takeLargeRead();
    }
    if (command === NBD_COMMAND.blockStatus) return this.takeBlockStatus();
    this.startWithoutPayload(this.open());
    return NBD_REQUEST_BYTES;
  }

  private takeRead(): number {
    const bufferOffset = this.takeBuffer(this.header.lengthBytes);
    if (bufferOffset === NO_BUFFER) return this.block(this.inFlight);
    const request = this.open();
    this.hold(request, bufferOffset, request.lengthBytes);
    request.op = BLOCK_OP.read;
    this.submit(request);
    return NBD_REQUEST_BYTES;
  }

  private takeLargeRead(): number {
    const { structuredReplies } = this.agreement;
    if (!structuredReplies && this.inFlight > 0) return this.block(0);
    const request = this.open();
    if (!structuredReplies) this.exclusive = request;
    const partsMax = structuredReplies ? NBD_PARTS_MAX : 1;
    this.split(request, BLOCK_OP.read, REQUEST_BYTES_MAX, partsMax);
    this.advance(request);
    return NBD_REQUEST_BYTES;
  }

  private takeBlockStatus(): number {
    const bufferOffset = this.takeBuffer(EXTENTS_BUFFER_BYTES);
    if (bufferOffset === NO_BUFFER) return this.block(this.inFlight);
    const request = this.open();
    this.hold(request, bufferOffset, EXTENTS_BUFFER_BYTES);
    request.op = BLOCK_OP.extents;
    this.submit(request);
    return NBD_REQUEST_BYTES;
  }

  private startWithoutPayload(request: NbdRequest): void {
    const isFua = (request.commandFlags & NBD_COMMAND_FLAG.fua) !== 0;
    switch (request.command) {
      case NBD_COMMAND.flush:
        request.op = BLOCK_OP.flush;
        this.submit(request);
        return;
      case NBD_COMMAND.cache: // a hint that this server has no use for
        this.replies.simple(request, NBD_ERROR.none);
        return;
      case NBD_COMMAND.trim:
        request.flushAfter = isFua;
        this.split(request, BLOCK_OP.unmap, NBD_RANGE_PART_BYTES_MAX, 1);
        break;
      default: {
        request.flushAfter = isFua;
        const mayMakeHole = (request.commandFlags & NBD_COMMAND_FLAG.noHole) === 0;
        if (mayMakeHole) this.split(request, BLOCK_OP.writeZeroes, NBD_RANGE_PART_BYTES_MAX, 1);
        // Only written zeroes are sure to occupy space.
        else this.split(request, BLOCK_OP.write, REQUEST_BYTES_MAX, NBD_PARTS_MAX);
      }
    }
    this.advance(request);
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
    const bufferOffset = this.takeBuffer(lengthBytes);
    if (bufferOffset === NO_BUFFER) return this.block(this.inFlight);
    const request = this.open();
    this.hold(request, bufferOffset, lengthBytes);
    request.op = BLOCK_OP.write;
    request.fua = (flags & NBD_COMMAND_FLAG.fua) !== 0;
    return NBD_REQUEST_BYTES + this.takePayloadOf(request, payloadOffset, endOffset);
  }

  private refuseWrite(refusal: NbdError): number {
    const request = this.open();
    request.refusal = refusal;
    if (request.lengthBytes === 0) this.replyError(request, refusal);
    else this.discardPayload(request, request.lengthBytes);
    return NBD_REQUEST_BYTES;
  }

  private beginLargeWrite(): number {
    const request = this.open();
    request.flushAfter = (request.commandFlags & NBD_COMMAND_FLAG.fua) !== 0;
    this.split(request, BLOCK_OP.write, REQUEST_BYTES_MAX, Number.POSITIVE_INFINITY);
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
    const part = this.beginPart(whole);
    if (part === null) return this.block(this.inFlight);
    if (whole.nextOffset === whole.endOffset) this.largeWrite = null;
    return this.takePayloadOf(part, at, endOffset);
  }

  private takePayloadOf(request: NbdRequest, at: number, endOffset: number): number {
    const { bufferOffset, lengthBytes } = request;
    const taken = takePayload(this.connection, at, endOffset, bufferOffset, lengthBytes);
    if (taken === lengthBytes) this.submit(request);
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
    if (request.refusal !== NBD_ERROR.none) this.replyError(request, request.refusal);
    else this.finishIfComplete(request);
    return taken;
  }

  private disconnect(): number {
    this.isEnding = true;
    this.progress();
    return NBD_REQUEST_BYTES;
  }

  // ---- Split requests ----

  private split(
    request: NbdRequest,
    partOp: BlockRequest['op'],
    partBytesMax: number,
    partsMax: number,
  ): void {
    request.partOp = partOp;
    request.partBytesMax = partBytesMax;
    request.partsMax = partsMax;
    request.nextOffset = request.offsetBytes;
    request.endOffset = request.offsetBytes + request.lengthBytes;
  }

  /** Starts as many parts as may run now. Not for large writes: the client's pace starts theirs. */
  private advance(whole: NbdRequest): void {
    if (whole.isAdvancing) return; // a part was done inside submit(); the loop below goes on
    whole.isAdvancing = true;
    while (
      !this.isOver &&
      hasPartsToBegin(whole) &&
      whole.partsHeld < whole.partsMax
    ) {
      const part = this.beginPart(whole);
      if (part === null) break;
      if (whole.partOp === BLOCK_OP.write) {
        this.slab.bytes.fill(0, part.bufferOffset, part.bufferOffset + part.lengthBytes);
      }
      this.submit(part);
    }
    whole.isAdvancing = false;
    this.setStarving(whole, whole.partsHeld < whole.partsMax && hasPartsToBegin(whole));
    this.finishIfComplete(whole);
  }

  private setStarving(whole: NbdRequest, isStarving: boolean): void {
    const index = this.starving.indexOf(whole);
    if (isStarving && index < 0) this.starving.push(whole);
    if (!isStarving && index >= 0) this.starving.splice(index, 1);
  }

  /** The next part with its buffer, or null when there is no memory for it now. */
  private beginPart(whole: NbdRequest): NbdRequest | null {
    const lengthBytes = Math.min(whole.partBytesMax, whole.endOffset - whole.nextOffset);
    const needsBuffer = whole.partOp === BLOCK_OP.read || whole.partOp === BLOCK_OP.write;
    const bufferOffset = needsBuffer ? this.takeBuffer(lengthBytes) : NO_BUFFER;
    if (needsBuffer && bufferOffset === NO_BUFFER) return null;
    const part = this.takeObject();
    part.whole = whole;
    part.op = whole.partOp;
    part.offsetBytes = whole.nextOffset;
    part.lengthBytes = lengthBytes;
    if (needsBuffer) this.hold(part, bufferOffset, lengthBytes);
    whole.nextOffset += lengthBytes;
    whole.partsPending++;
    whole.partsHeld++;
    return part;
  }

  private partDone(part: NbdRequest, error: StorageError | null): void {
    const whole = part.whole as NbdRequest;
    whole.partsPending--;
    if (error !== null) whole.partError ??= error;
    if (whole.command === NBD_COMMAND.read && whole.partError === null) {
      const isLast = whole.partsPending === 0 && whole.nextOffset === whole.endOffset;
      whole.isReplied = isLast;
      this.replies.readPart(whole, part, isLast);
    } else {
      this.retirePart(part);
    }
    if (this.largeWrite !== whole && this.discarding !== whole) this.advance(whole);
    this.progress(); // no reply may follow whose leaving would see to it
  }

  private retirePart(part: NbdRequest): void {
    const whole = part.whole as NbdRequest;
    whole.partsHeld--;
    this.free.push(part);
    this.giveBuffer(part);
  }

  private finishIfComplete(whole: NbdRequest): void {
    if (whole.isAdvancing || whole.isReplied || whole.partsPending > 0 || this.isOver) return;
    if (this.largeWrite === whole || this.discarding === whole) return;
    if (hasPartsToBegin(whole)) return;
    whole.isReplied = true;
    if (whole.partError !== null) {
      if (whole.isReplyBegun) this.fail(whole.partError);
      else this.replyError(whole, nbdErrorOf(whole.partError, whole.command));
    } else if (whole.flushAfter) {
      this.submitFlush(whole);
    } else {
      this.replies.simple(whole, NBD_ERROR.none);
    }
  }

  // ---- The device ----

  private submit(request: NbdRequest): void {
    request.owner = this;
    request.isSubmitted = true;
    this.submitted++;
    this.device.submit(request);
  }

  private submitFlush(request: NbdRequest): void {
    request.flushAfter = false;
    request.op = BLOCK_OP.flush;
    this.submit(request);
  }

  blockRequestDone(done: BlockRequest, error: StorageError | null): void {
    const request = done as NbdRequest;
    request.isSubmitted = false;
    this.submitted--;
    if (this.isOver) {
      this.giveBuffer(request);
      if (this.isClosed && this.submitted === 0) this.ended(this.closeError);
    } else if (request.whole !== null) {
      this.partDone(request, error);
    } else if (request.op === BLOCK_OP.extents) {
      this.extentsDone(request, error);
    } else if (error !== null) {
      this.replyError(request, nbdErrorOf(error, request.command));
    } else if (request.command === NBD_COMMAND.read) {
      this.replies.read(request);
    } else {
      this.giveBuffer(request);
      this.replies.simple(request, NBD_ERROR.none);
    }
  }

  private extentsDone(request: NbdRequest, error: StorageError | null): void {
    const { view } = this.slab;
    const isOne = (request.commandFlags & NBD_COMMAND_FLAG.requestOne) !== 0;
    const isUnsupported = error?.code === 'UNSUPPORTED' || error?.code === 'EXTENTS_UNSUPPORTED';
    if (error !== null && !isUnsupported) {
      this.replyError(request, nbdErrorOf(error, request.command));
      return;
    }
    let descriptorBytes = extentsToDescriptors(
      view,
      request.bufferOffset,
      isUnsupported ? 0 : request.resultBytes,
      request.lengthBytes,
      isOne ? 1 : Number.POSITIVE_INFINITY,
    );
    if (descriptorBytes === 0) {
      // A server may always call a range allocated data (section "Request types").
      view.setUint32(request.bufferOffset, request.lengthBytes);
      view.setUint32(request.bufferOffset + 4, 0);
      descriptorBytes = EXTENT_ENTRY_BYTES;
    }
    this.replies.blockStatus(request, descriptorBytes);
  }

  private replyError(request: NbdRequest, error: NbdError): void {
    this.giveBuffer(request);
    this.replies.error(request, error);
  }

  // ---- Ends of requests ----

  sent(token: number): void {
    const request = this.requests[token - 1] as NbdRequest;
    const { whole } = request;
    if (whole === null) {
      this.retire(request);
    } else {
      this.retirePart(request);
      if (!whole.isReplied) this.advance(whole);
      // When its last part carried the end of the reply, no message of its own follows.
      else if (whole.partsHeld === 0 && whole.partError === null) this.retire(whole);
    }
    this.progress();
  }

  private retire(request: NbdRequest): void {
    this.inFlight--;
    if (this.exclusive === request) this.exclusive = null;
    this.free.push(request);
    this.giveBuffer(request);
  }

  closed(error: StorageError | null): void {
    this.isClosed = true;
    this.closeError ??= error;
    this.starving.length = 0;
    for (const request of this.requests) {
      if (!request.isSubmitted) this.giveBuffer(request);
    }
    if (this.submitted === 0) this.ended(this.closeError);
  }

  /** Breaks the connection; returns 0 for the parser's sake. */
  private fail(error: StorageError): number {
    this.isEnding = true;
    this.closeError = error;
    this.connection.destroy(error);
    return 0;
  }

  // ---- Room ----

  /** Stops parsing until there is room again, which progress() finds out. */
  private block(resumeAtRequests: number): number {
    this.isBlocked = true;
    this.resumeAtRequests = resumeAtRequests;
    this.connection.pause();
    return 0;
  }

  /** Something was finished or freed: continues whatever that allows. */
  private progress(): void {
    if (this.isOver) return;
    if ((this.isEnding || this.isStopping) && this.inFlight === 0) {
      if (!this.isEndSent) this.connection.end();
      this.isEndSent = true;
      return;
    }
    // In turn, so that the first to wait is the first to run; one that still waits stays first.
    for (let i = this.starving.length; i > 0 && this.starving.length > 0; i--) {
      this.advance(this.starving[0] as NbdRequest);
    }
    const hasRoom = this.starving.length === 0 && this.inFlight <= this.resumeAtRequests;
    if (this.isBlocked && !this.isParsing && hasRoom) {
      this.isBlocked = false;
      this.connection.resume();
    }
  }

  private takeBuffer(lengthBytes: number): number {
    if (this.heldBytes + lengthBytes > NBD_CONNECTION_PAYLOAD_BYTES_MAX) return NO_BUFFER;
    const bufferOffset = this.slab.allocate(lengthBytes);
    if (bufferOffset === NO_BUFFER && !this.waitsForSlab) {
      this.waitsForSlab = true;
      this.slab.whenReleased(this.slabReleased);
    }
    return bufferOffset;
  }

  private readonly slabReleased = (): void => {
    this.waitsForSlab = false;
    this.progress();
  };

  private hold(request: NbdRequest, bufferOffset: number, bufferBytes: number): void {
    request.bufferOffset = bufferOffset;
    request.bufferBytes = bufferBytes;
    this.heldBytes += bufferBytes;
  }

  private giveBuffer(request: NbdRequest): void {
    const { bufferOffset } = request;
    if (bufferOffset === NO_BUFFER) return;
    request.bufferOffset = NO_BUFFER;
    this.heldBytes -= request.bufferBytes;
    this.slab.release(bufferOffset); // last: it may call back into this session
  }

  private takeObject(): NbdRequest {
    const pooled = this.free.pop();
    if (pooled !== undefined) {
      pooled.reset();
      return pooled;
    }
    const request = new NbdRequest(this.requests.length + 1);
    this.requests.push(request);
    return request;
  }

  /** A request object for the header at hand. */
  private open(): NbdRequest {
    const { header } = this;
    const request = this.takeObject();
    request.command = header.command;
    request.commandFlags = header.flags;
    request.cookieHigh = header.cookieHigh;
    request.cookieLow = header.cookieLow;
    request.offsetBytes = requestOffset(header);
    request.lengthBytes = header.lengthBytes;
    this.inFlight++;
    return request;
  }
}

function hasPartsToBegin(whole: NbdRequest): boolean {
  return whole.partError === null && whole.nextOffset < whole.endOffset;
}

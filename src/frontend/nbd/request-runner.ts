// Carries requests through the block device to their replies: submits them, splits large ones into
// parts with a bounded number in flight, maps errors, and knows when a request is over. It does
// not parse; the session feeds it and learns through `settled` when there may be room for more.

import {
  BLOCK_OP,
  type BlockDevice,
  type BlockRequest,
  type BlockRequestOwner,
} from '../../core/block-device.js';
import type { StorageError } from '../../core/errors.js';
import { NO_BUFFER, type Slab } from '../../core/slab.js';
import type { Connection } from '../../transport/connection.js';
import {
  NBD_COMMAND,
  NBD_COMMAND_FLAG,
  NBD_ERROR,
  type NbdError,
} from '../../wire/nbd/constants.js';
import type { NbdRequestHeader } from '../../wire/nbd/decoder.js';
import { nbdErrorOf } from './error-map.js';
import { extentsToDescriptors, isExtentsUnsupported, writeDataDescriptor } from './extents.js';
import type { Agreement } from './negotiation.js';
import { ReplyWriter } from './reply-writer.js';
import type { NbdRequest } from './request.js';
import { RequestPool } from './request-pool.js';
import { requestOffset } from './rules.js';

export interface RequestRunnerOptions {
  readonly connection: Connection;
  readonly agreement: Agreement;
  /** A request or part ended, or memory came back. */
  readonly settled: () => void;
  /** A failure that no reply can tell: the connection must be broken. */
  readonly broken: (error: StorageError) => void;
  /** Called once after close(): the device works on nothing of this connection. */
  readonly idle: () => void;
}

export class RequestRunner implements BlockRequestOwner {
  readonly pool: RequestPool;
  private readonly options: RequestRunnerOptions;
  private readonly device: BlockDevice;
  private readonly slab: Slab;
  private readonly replies: ReplyWriter;
  private readonly settled: () => void;
  /** Requests taken and not fully answered; parts are not counted. */
  private openCount = 0;
  /** Requests and parts that the device works on. */
  private submittedCount = 0;
  /** Split requests that need a buffer for their next part, first come first. */
  private readonly starving: NbdRequest[] = [];
  /** A split READ with a simple reply: its data is one stream, so nothing else runs meanwhile. */
  private exclusive: NbdRequest | null = null;
  /** Nothing can be sent any more. */
  private isStopped = false;
  private isClosed = false;

  constructor(options: RequestRunnerOptions) {
    const { connection, agreement } = options;
    this.options = options;
    this.device = agreement.exported.device;
    this.slab = connection.slab;
    this.replies = new ReplyWriter(connection, agreement.structuredReplies);
    this.settled = options.settled;
    this.pool = new RequestPool(this.slab, options.settled);
  }

  get inFlight(): number {
    return this.openCount;
  }

  get isStarving(): boolean {
    return this.starving.length > 0;
  }

  get isExclusive(): boolean {
    return this.exclusive !== null;
  }

  /** A request object for a header. It counts as in flight until its reply has left. */
  open(header: NbdRequestHeader): NbdRequest {
    const request = this.pool.take();
    request.command = header.command;
    request.commandFlags = header.flags;
    request.cookieHigh = header.cookieHigh;
    request.cookieLow = header.cookieLow;
    request.offsetBytes = requestOffset(header);
    request.lengthBytes = header.lengthBytes;
    this.openCount++;
    return request;
  }

  /** Gives a request or part to the device. */
  submit(request: NbdRequest): void {
    request.owner = this;
    request.isSubmitted = true;
    this.submittedCount++;
    this.device.submit(request);
  }

  /** Answers without the device. */
  reply(request: NbdRequest, error: NbdError): void {
    this.pool.giveBuffer(request);
    if (error === NBD_ERROR.none) this.replies.simple(request, error);
    else this.replies.error(request, error);
  }

  /** Runs a request that was split; alone when its reply is one stream. */
  runSplit(whole: NbdRequest, isExclusive = false): void {
    if (isExclusive) this.exclusive = whole;
    this.advance(whole);
  }

  /** Lets those continue that wait for memory, the first to wait first. */
  feedStarving(): void {
    for (let i = this.starving.length; i > 0 && this.starving.length > 0; i--) {
      this.advance(this.starving[0] as NbdRequest);
    }
  }

  /** The next part with its buffer, or null when there is no memory for it now. */
  beginPart(whole: NbdRequest): NbdRequest | null {
    const lengthBytes = Math.min(whole.partBytesMax, whole.endOffset - whole.nextOffset);
    const needsBuffer = whole.partOp === BLOCK_OP.read || whole.partOp === BLOCK_OP.write;
    const bufferOffset = needsBuffer ? this.pool.takeBuffer(lengthBytes) : NO_BUFFER;
    if (needsBuffer && bufferOffset === NO_BUFFER) return null;
    const part = this.pool.take();
    part.whole = whole;
    part.op = whole.partOp;
    part.offsetBytes = whole.nextOffset;
    part.lengthBytes = lengthBytes;
    if (needsBuffer) this.pool.hold(part, bufferOffset, lengthBytes);
    whole.nextOffset += lengthBytes;
    whole.partsPending++;
    whole.partsHeld++;
    return part;
  }

  /** The client's last byte of a split write was taken. */
  fed(whole: NbdRequest): void {
    whole.isFed = true;
    this.finishIfComplete(whole);
  }

  /** The connection is being broken: what the device still answers is dropped. */
  stop(): void {
    this.isStopped = true;
  }

  /** The connection is closed. */
  close(): void {
    this.isStopped = true;
    this.isClosed = true;
    this.starving.length = 0;
    this.pool.giveIdleBuffers();
    if (this.submittedCount === 0) this.options.idle();
  }

  blockRequestDone(done: BlockRequest, error: StorageError | null): void {
    const request = done as NbdRequest;
    request.isSubmitted = false;
    this.submittedCount--;
    if (this.isStopped) {
      this.pool.giveBuffer(request);
      if (this.isClosed && this.submittedCount === 0) this.options.idle();
    } else if (request.whole !== null) {
      this.partDone(request, error);
    } else if (request.op === BLOCK_OP.extents) {
      this.extentsDone(request, error);
    } else if (error !== null) {
      this.reply(request, nbdErrorOf(error, request.command));
    } else if (request.command === NBD_COMMAND.read) {
      this.replies.read(request);
    } else {
      this.reply(request, NBD_ERROR.none);
    }
  }

  /** A reply, or the part of one, has left. */
  sent(token: number): void {
    const request = this.pool.byToken(token);
    const { whole } = request;
    if (whole === null) {
      this.retire(request);
    } else {
      this.retirePart(request);
      if (!whole.isReplied) this.advance(whole);
      // When its last part carried the end of the reply, no message of its own follows.
      else if (whole.partsHeld === 0 && whole.partError === null) this.retire(whole);
    }
    this.settled();
  }

  /** Starts as many parts as may run now. Not for large writes: the client's pace starts theirs. */
  private advance(whole: NbdRequest): void {
    if (whole.isAdvancing) return; // a part was done inside submit(); the loop below goes on
    whole.isAdvancing = true;
    while (!this.isStopped && whole.mayBeginPart) {
      const part = this.beginPart(whole);
      if (part === null) break;
      if (part.op === BLOCK_OP.write) {
        this.slab.bytes.fill(0, part.bufferOffset, part.bufferOffset + part.lengthBytes);
      }
      this.submit(part);
    }
    whole.isAdvancing = false;
    this.setStarving(whole, whole.mayBeginPart);
    this.finishIfComplete(whole);
  }

  private setStarving(whole: NbdRequest, isStarving: boolean): void {
    const index = this.starving.indexOf(whole);
    if (isStarving && index < 0) this.starving.push(whole);
    if (!isStarving && index >= 0) this.starving.splice(index, 1);
  }

  private partDone(part: NbdRequest, error: StorageError | null): void {
    const whole = part.whole as NbdRequest;
    whole.partsPending--;
    if (error !== null) whole.partError ??= error;
    if (whole.command === NBD_COMMAND.read && whole.partError === null) {
      const isLast = whole.partsPending === 0 && !whole.hasPartsToBegin;
      whole.isReplied = isLast;
      this.replies.readPart(whole, part, isLast);
    } else {
      this.retirePart(part);
    }
    if (whole.isFed) this.advance(whole);
    this.settled(); // no reply may follow whose leaving would see to it
  }

  private finishIfComplete(whole: NbdRequest): void {
    const isRunning = whole.isAdvancing || whole.partsPending > 0 || whole.hasPartsToBegin;
    if (isRunning || whole.isReplied || this.isStopped) return;
    whole.isReplied = true;
    if (whole.partError !== null) {
      if (whole.isReplyBegun) this.options.broken(whole.partError);
      else this.reply(whole, nbdErrorOf(whole.partError, whole.command));
    } else if (whole.flushAfter) {
      whole.op = BLOCK_OP.flush;
      this.submit(whole);
    } else {
      this.reply(whole, NBD_ERROR.none);
    }
  }

  private extentsDone(request: NbdRequest, error: StorageError | null): void {
    const isUnsupported = isExtentsUnsupported(error);
    if (error !== null && !isUnsupported) {
      this.reply(request, nbdErrorOf(error, request.command));
      return;
    }
    const { view } = this.slab;
    const { bufferOffset, resultBytes, lengthBytes } = request;
    const extentBytes = isUnsupported ? 0 : resultBytes;
    const isOne = (request.commandFlags & NBD_COMMAND_FLAG.requestOne) !== 0;
    const countMax = isOne ? 1 : Number.POSITIVE_INFINITY;
    const descriptorBytes =
      extentsToDescriptors(view, bufferOffset, extentBytes, lengthBytes, countMax) ||
      writeDataDescriptor(view, bufferOffset, lengthBytes);
    this.replies.blockStatus(request, descriptorBytes);
  }

  private retirePart(part: NbdRequest): void {
    (part.whole as NbdRequest).partsHeld--;
    this.pool.give(part);
  }

  private retire(request: NbdRequest): void {
    this.openCount--;
    if (this.exclusive === request) this.exclusive = null;
    this.pool.give(request);
  }
}

// One connection of the data protocol, server side: decodes frames, submits them to a block device
// and answers each when it is done, in any order. It never blocks one request on another; when
// slab memory or the request limit is exhausted it stops reading until something finishes.

import {
  type BlockDevice,
  type BlockRequest,
  type BlockRequestOwner,
  BlockRequestPool,
} from '../core/block-device.js';
import { StorageError, toStorageError } from '../core/errors.js';
import { CONNECTION_REQUESTS_MAX } from '../core/limits.js';
import { NO_BUFFER } from '../core/slab.js';
import type { Connection, ConnectionHandler } from '../transport/connection.js';
import { takePayload } from '../transport/payload.js';
import {
  FRAME_HEADER_BYTES,
  FRAME_PAYLOAD_BYTES_MAX,
  FRAME_TYPE,
} from '../wire/replica/constants.js';
import { decodeFrameHeader, encodeFrameHeader, FrameHeader } from '../wire/replica/frame.js';
import { FrameOperation, OPERATION_STATE } from './operation.js';
import type { FrameServerPolicy } from './policy.js';

export interface FrameSessionOptions {
  readonly connection: Connection;
  readonly device: BlockDevice;
  readonly policy: FrameServerPolicy;
  /** Called once when the connection has ended and nothing of it is in flight any more. */
  readonly ended: (error: StorageError | null) => void;
}

export class FrameSession implements ConnectionHandler, BlockRequestOwner {
  private readonly connection: Connection;
  private readonly device: BlockDevice;
  private readonly policy: FrameServerPolicy;
  private readonly ended: (error: StorageError | null) => void;
  private readonly pool = new BlockRequestPool();
  private readonly operations: FrameOperation[] = [];
  private readonly idle: FrameOperation[] = [];
  private readonly header = new FrameHeader();
  /** Operations not idle. */
  private busyCount = 0;
  /** Write whose payload is arriving. */
  private receiving: FrameOperation | null = null;
  /** Bytes of an ignored payload still to come. */
  private skipBytes = 0;
  /** What the fence knows this connection by, and the generation that its engine said. */
  private pass: number;
  private generation = 0;
  private stalled = false;
  private draining = false;
  private isClosed = false;
  private closeError: StorageError | null = null;

  constructor(options: FrameSessionOptions) {
    this.connection = options.connection;
    this.device = options.device;
    this.policy = options.policy;
    this.ended = options.ended;
    this.pass = options.policy.fence?.newPass() ?? 0;
    options.connection.start(this);
  }

  received(beginOffset: number, endOffset: number): number {
    let at = beginOffset;
    try {
      for (;;) {
        if (this.receiving !== null) at = this.receivePayload(this.receiving, at, endOffset);
        if (this.skipBytes > 0) at = this.skip(at, endOffset);
        if (this.receiving !== null || endOffset - at < FRAME_HEADER_BYTES || this.isClosed) break;
        decodeFrameHeader(this.connection.slab.view, at, this.header);
        if (!this.accept(this.header)) break;
        at += FRAME_HEADER_BYTES;
      }
    } catch (error) {
      this.connection.destroy(toStorageError(error, 'BAD_FRAME'));
      return endOffset - beginOffset;
    }
    return at - beginOffset;
  }

  targetFilled(): void {
    const operation = this.receiving;
    if (operation !== null) this.partReceived(operation);
  }

  sent(token: number): void {
    const operation = this.operations[token - 1] as FrameOperation;
    this.finish(operation);
  }

  closed(error: StorageError | null): void {
    this.isClosed = true;
    this.closeError = error;
    this.receiving = null;
    for (const operation of this.operations) {
      const droppable =
        operation.state === OPERATION_STATE.replying ||
        operation.state === OPERATION_STATE.receiving;
      if (droppable) this.finish(operation);
    }
    this.endWhenIdle();
  }

  blockRequestDone(part: BlockRequest, error: StorageError | null): void {
    const operation = part.parent as FrameOperation;
    if (error !== null && operation.error === null) operation.error = error;
    operation.pendingParts--;
    if (operation.pendingParts === 0) this.reply(operation);
  }

  /** Ends the connection now, whatever is in flight. */
  abandon(): void {
    this.connection.destroy(new StorageError('CLOSED', 'the server is stopping'));
  }

  /** Only engines that said their generation can be superseded: others are refused one by one. */
  endIfSuperseded(): void {
    const error = this.generation === 0 ? null : this.refusal();
    if (error === null || this.isClosed || this.draining) return;
    this.replyUnasked(error);
    this.drain();
  }

  /** Ends the connection once everything in flight is answered. */
  drain(): void {
    this.draining = true;
    this.connection.pause();
    this.endWhenAnswered();
  }

  /** False when there is no room: the frame stays unconsumed and reading stops. */
  private accept(header: FrameHeader): boolean {
    if (!this.isKnown(header.type)) {
      if (header.type === FRAME_TYPE.hello) this.greeted(header.offsetBytes);
      this.skipBytes = header.dataBytes;
      return true;
    }
    if (this.busyCount >= CONNECTION_REQUESTS_MAX) return this.stall();
    const carriesData = header.type === FRAME_TYPE.write || header.type === FRAME_TYPE.writeFua;
    if (carriesData) header.sizeBytes = header.dataBytes;
    if (header.type === FRAME_TYPE.read && header.sizeBytes > FRAME_PAYLOAD_BYTES_MAX) {
      throw new StorageError('FRAME_TOO_LARGE', `a read of ${header.sizeBytes} bytes`);
    }
    const { offsetBytes } = header;
    if (this.policy.clipsUnmap && header.type === FRAME_TYPE.unmap) this.clipUnmap(header);
    const operation = this.takeOperation();
    if (header.type !== FRAME_TYPE.ping) {
      if (!operation.prepare(header, this.connection.slab, this.pool)) {
        this.idle.push(operation);
        return this.stall();
      }
    }
    // The answer repeats the offset as it came, whatever part of the range exists.
    operation.offsetBytes = offsetBytes;
    this.busyCount++;
    this.begin(operation, header, carriesData);
    return true;
  }

  private begin(operation: FrameOperation, header: FrameHeader, carriesData: boolean): void {
    if (!carriesData) this.skipBytes = header.dataBytes;
    if (header.type === FRAME_TYPE.ping) {
      operation.seq = header.seq;
      operation.type = header.type;
      operation.sizeBytes = 0;
      operation.error = this.refusal() ?? this.policy.ping();
      this.reply(operation);
    } else if (carriesData) {
      operation.state = OPERATION_STATE.receiving;
      operation.pendingParts = 0;
      this.receiving = operation;
    } else {
      this.submit(operation);
    }
  }

  /** A connection has one engine: the first frame decides. */
  private greeted(generation: number): void {
    const { fence } = this.policy;
    if (fence === undefined || this.generation !== 0) return;
    this.generation = generation;
    this.pass = fence.passOf(generation);
  }

  private refusal(): StorageError | null {
    return this.policy.fence?.refusal(this.pass, this.generation) ?? null;
  }

  private isKnown(type: number): boolean {
    switch (type) {
      case FRAME_TYPE.read:
      case FRAME_TYPE.write:
      case FRAME_TYPE.unmap:
      case FRAME_TYPE.ping:
        return true;
      case FRAME_TYPE.writeFua:
      case FRAME_TYPE.flush:
      case FRAME_TYPE.writeZeroes:
      case FRAME_TYPE.extents:
        return this.policy.extensions;
      default:
        return false;
    }
  }

  private clipUnmap(header: FrameHeader): void {
    const end = Math.min(header.offsetBytes + header.sizeBytes, this.device.sizeBytes);
    header.sizeBytes = Math.max(0, end - header.offsetBytes);
    if (header.sizeBytes === 0)
      header.offsetBytes = Math.min(header.offsetBytes, this.device.sizeBytes);
  }

  private receivePayload(operation: FrameOperation, begin: number, end: number): number {
    let at = begin;
    while (this.receiving === operation) {
      const part = operation.parts[operation.pendingParts] as BlockRequest;
      const { bufferOffset, lengthBytes } = part;
      const taken = takePayload(this.connection, at, end, bufferOffset, lengthBytes);
      at += taken;
      if (taken < lengthBytes) break;
      this.partReceived(operation);
    }
    return at;
  }

  private partReceived(operation: FrameOperation): void {
    operation.pendingParts++;
    if (operation.pendingParts < operation.parts.length) return;
    this.receiving = null;
    this.submit(operation);
  }

  private submit(operation: FrameOperation): void {
    operation.state = OPERATION_STATE.running;
    // Not before: a newer engine may have come while the payload was on its way.
    const refusal = this.refusal();
    if (refusal !== null) {
      operation.error = refusal;
      this.reply(operation);
      return;
    }
    operation.pendingParts = operation.parts.length;
    // A synchronous completion may recycle the operation: read nothing of it after the last part.
    for (let i = 0, count = operation.parts.length; i < count; i++) {
      const part = operation.parts[i] as BlockRequest;
      part.owner = this;
      this.device.submit(part);
    }
  }

  /** An error that no request asked for: it travels like the answer to a ping. */
  private replyUnasked(error: StorageError): void {
    const operation = this.takeOperation();
    operation.seq = 0;
    operation.type = FRAME_TYPE.ping;
    operation.offsetBytes = 0;
    operation.sizeBytes = 0;
    operation.error = error;
    this.busyCount++;
    this.reply(operation);
  }

  private reply(operation: FrameOperation): void {
    if (this.isClosed) {
      this.finish(operation);
      this.endWhenIdle();
      return;
    }
    operation.state = OPERATION_STATE.replying;
    const { slab } = this.connection;
    const at = this.connection.header(FRAME_HEADER_BYTES);
    if (at === NO_BUFFER) {
      this.connection.destroy(
        new StorageError('LIMIT_EXCEEDED', 'the peer sends requests but reads no answers'),
      );
      return;
    }
    if (operation.error !== null) {
      this.replyError(operation, operation.error, at);
      return;
    }
    const dataBytes = operation.replyBytes();
    const size =
      operation.type === FRAME_TYPE.unmap ? operation.resultBytes() : operation.sizeBytes;
    const sizeField =
      operation.type === FRAME_TYPE.extents ? dataBytes : Math.min(size, 0xffff_ffff);
    encodeFrameHeader(
      slab.view,
      at,
      operation.seq,
      FRAME_TYPE.response,
      operation.offsetBytes,
      sizeField,
      dataBytes,
    );
    this.connection.send(at, FRAME_HEADER_BYTES, dataBytes === 0 ? operation.token : 0);
    if (dataBytes > 0) this.sendData(operation, dataBytes);
  }

  private sendData(operation: FrameOperation, dataBytes: number): void {
    const last = operation.parts.length - 1;
    for (let i = 0; i <= last; i++) {
      const part = operation.parts[i] as BlockRequest;
      const partBytes = operation.type === FRAME_TYPE.extents ? dataBytes : part.lengthBytes;
      this.connection.send(part.bufferOffset, partBytes, i === last ? operation.token : 0);
    }
  }

  private replyError(operation: FrameOperation, error: StorageError, at: number): void {
    const { slab } = this.connection;
    const textBytes = operation.writeErrorText(slab, this.policy.errorText(error));
    const type = this.policy.errorType(error);
    encodeFrameHeader(
      slab.view,
      at,
      operation.seq,
      type,
      operation.offsetBytes,
      textBytes,
      textBytes,
    );
    this.connection.send(at, FRAME_HEADER_BYTES, textBytes === 0 ? operation.token : 0);
    if (textBytes > 0) this.connection.send(operation.bufferForText(), textBytes, operation.token);
  }

  private finish(operation: FrameOperation): void {
    operation.recycle(this.connection.slab, this.pool);
    this.idle.push(operation);
    this.busyCount--;
    if (this.isClosed) return;
    if (this.draining) this.endWhenAnswered();
    else if (this.stalled) this.unstall();
  }

  /** A write whose payload is still arriving is not waited for: nobody was told that it is done. */
  private endWhenAnswered(): void {
    if (this.busyCount === (this.receiving === null ? 0 : 1)) this.connection.end();
  }

  private endWhenIdle(): void {
    if (this.isClosed && this.busyCount === 0) this.ended(this.closeError);
  }

  private takeOperation(): FrameOperation {
    const idle = this.idle.pop();
    if (idle !== undefined) return idle;
    const operation = new FrameOperation(this.operations.length + 1);
    this.operations.push(operation);
    return operation;
  }

  private stall(): false {
    this.stalled = true;
    this.connection.pause();
    this.connection.slab.whenReleased(() => this.unstall());
    return false;
  }

  private unstall(): void {
    if (!this.stalled || this.isClosed || this.draining) return;
    this.stalled = false;
    this.connection.resume();
  }

  private skip(begin: number, end: number): number {
    const skipped = Math.min(this.skipBytes, end - begin);
    this.skipBytes -= skipped;
    return begin + skipped;
  }
}

// The request objects of one session and the slab buffers they hold. A session may hold only its
// share of the slab, so that one client that does not read cannot starve the others.

import { NBD_CONNECTION_PAYLOAD_BYTES_MAX } from '../../core/limits.js';
import { NO_BUFFER, type Slab } from '../../core/slab.js';
import { NbdRequest } from './request.js';

export class RequestPool {
  private readonly slab: Slab;
  private readonly roomReturned: () => void;
  /** Every object ever made, by token - 1. */
  private readonly requests: NbdRequest[] = [];
  private readonly free: NbdRequest[] = [];
  private heldBytes = 0;
  private waitsForSlab = false;

  /** @param roomReturned called after takeBuffer() failed for want of a slab buffer, when one is free. */
  constructor(slab: Slab, roomReturned: () => void) {
    this.slab = slab;
    this.roomReturned = roomReturned;
  }

  byToken(token: number): NbdRequest {
    return this.requests[token - 1] as NbdRequest;
  }

  take(): NbdRequest {
    const pooled = this.free.pop();
    if (pooled !== undefined) {
      pooled.reset();
      return pooled;
    }
    const request = new NbdRequest(this.requests.length + 1);
    this.requests.push(request);
    return request;
  }

  /** Takes back the object and its buffer. */
  give(request: NbdRequest): void {
    this.free.push(request);
    this.giveBuffer(request);
  }

  /** A buffer for hold(), or NO_BUFFER when the slab or the session's share is used up. */
  takeBuffer(lengthBytes: number): number {
    if (this.heldBytes + lengthBytes > NBD_CONNECTION_PAYLOAD_BYTES_MAX) return NO_BUFFER;
    const bufferOffset = this.slab.allocate(lengthBytes);
    if (bufferOffset === NO_BUFFER && !this.waitsForSlab) {
      this.waitsForSlab = true;
      this.slab.whenReleased(this.slabReleased);
    }
    return bufferOffset;
  }

  hold(request: NbdRequest, bufferOffset: number, bufferBytes: number): void {
    request.bufferOffset = bufferOffset;
    request.bufferBytes = bufferBytes;
    this.heldBytes += bufferBytes;
  }

  giveBuffer(request: NbdRequest): void {
    const { bufferOffset } = request;
    if (bufferOffset === NO_BUFFER) return;
    request.bufferOffset = NO_BUFFER;
    this.heldBytes -= request.bufferBytes;
    this.slab.release(bufferOffset); // last: it may call back into a session
  }

  /** At the end of the connection: takes back every buffer that the device does not use. */
  giveIdleBuffers(): void {
    for (const request of this.requests) {
      if (!request.isSubmitted) this.giveBuffer(request);
    }
  }

  private readonly slabReleased = (): void => {
    this.waitsForSlab = false;
    this.roomReturned();
  };
}

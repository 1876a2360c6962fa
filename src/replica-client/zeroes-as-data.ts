// Writes zeros as data, for replicas that cannot do better: a Go replica, or one that is being
// rebuilt. No payload memory is needed: every frame sends the same region of zeros.

import {
  BLOCK_OP,
  type BlockDevice,
  BlockRequest,
  type BlockRequestOwner,
} from '../core/block-device.js';
import type { StorageError } from '../core/errors.js';
import { REQUEST_BYTES_MAX } from '../core/limits.js';
import type { Slab } from '../core/slab.js';
import { KIB } from '../core/units.js';

/** bufferOffset of a write whose payload is the zero region. */
export const ZERO_PAYLOAD = -2;

/** Slab memory that holds zeros and is never written. */
export interface ZeroRegion {
  readonly offset: number;
  readonly lengthBytes: number;
}

const ZERO_REGION_BYTES = 64 * KIB;

export function reserveZeroRegion(slab: Slab): ZeroRegion {
  return { offset: slab.reserve(ZERO_REGION_BYTES), lengthBytes: ZERO_REGION_BYTES };
}

/** One writeZeroes request as a sequence of writes of at most REQUEST_BYTES_MAX. */
export class ZeroesAsData implements BlockRequestOwner {
  private readonly device: BlockDevice;
  private readonly request: BlockRequest;
  private readonly write = new BlockRequest();
  private doneBytes = 0;

  constructor(device: BlockDevice, request: BlockRequest) {
    this.device = device;
    this.request = request;
  }

  next(): void {
    const { request, write } = this;
    const lengthBytes = Math.min(request.lengthBytes - this.doneBytes, REQUEST_BYTES_MAX);
    write.owner = this;
    write.op = BLOCK_OP.write;
    write.offsetBytes = request.offsetBytes + this.doneBytes;
    write.lengthBytes = lengthBytes;
    write.bufferOffset = ZERO_PAYLOAD;
    write.fua = request.fua;
    this.doneBytes += lengthBytes;
    this.device.submit(write);
  }

  blockRequestDone(_write: BlockRequest, error: StorageError | null): void {
    if (error === null && this.doneBytes < this.request.lengthBytes) this.next();
    else this.request.done(error);
  }
}

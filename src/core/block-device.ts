// The one interface of the data path. A frontend, the engine, a replica connection, a replica and
// an image chain are each a BlockDevice or use one; requests are pooled objects that point into
// the process's slab, so a request costs no allocation.

import type { StorageError } from './errors.js';

export const BLOCK_OP = {
  read: 0,
  write: 1,
  flush: 2,
  unmap: 3,
  writeZeroes: 4,
  /**
   * Fills the buffer, which has EXTENTS_BUFFER_BYTES (core/limits.ts), with extents from
   * offsetBytes on: pairs of little-endian u32 lengthBytes, u32 EXTENT_* flags. May cover less
   * than lengthBytes, but at least one extent.
   */
  extents: 5,
} as const;
export type BlockOp = (typeof BLOCK_OP)[keyof typeof BLOCK_OP];

/** Extent flags, equal to NBD's base:allocation states (NBD proto.md, "base:allocation"). */
export const EXTENT_HOLE = 1;
export const EXTENT_ZERO = 2;
export const EXTENT_ENTRY_BYTES = 8;

/** Receives each request exactly once when it is finished; error is null on success. */
export interface BlockRequestOwner {
  blockRequestDone(request: BlockRequest, error: StorageError | null): void;
}

/** One block operation. The owner sets it up, submits it and may reuse it once it is done. */
export class BlockRequest {
  op: BlockOp = BLOCK_OP.read;
  offsetBytes = 0;
  lengthBytes = 0;
  /** Slab offset of the payload; belongs to the owner for the whole life of the request. */
  bufferOffset = -1;
  /** Force unit access: a write is durable before it is done. */
  fua = false;
  /** Bytes put into the buffer by `extents`; bytes of disk space released by `unmap`. */
  resultBytes = 0;
  owner: BlockRequestOwner | null = null;
  /** Owner's own note: a sequence number, a replica index. */
  tag = 0;
  /** Owner's own note: the request that this one is a part of. */
  parent: unknown = null;

  done(error: StorageError | null): void {
    const owner = this.owner;
    if (owner === null) throw new Error('a request was finished twice');
    this.owner = null;
    owner.blockRequestDone(this, error);
  }
}

export interface BlockDevice {
  readonly sizeBytes: number;
  /**
   * Starts a request. Never throws for bad input: the request is done with an error. done() may be
   * called before submit() returns. A range outside the device fails with OUT_OF_RANGE.
   */
  submit(request: BlockRequest): void;
}

/** Free list of requests. */
export class BlockRequestPool {
  private readonly free: BlockRequest[] = [];

  take(owner: BlockRequestOwner): BlockRequest {
    const request = this.takeIdle();
    request.owner = owner;
    return request;
  }

  /** A request whose owner is set later, when it is submitted. */
  takeIdle(): BlockRequest {
    const request = this.free.pop() ?? new BlockRequest();
    request.fua = false;
    request.resultBytes = 0;
    return request;
  }

  give(request: BlockRequest): void {
    request.parent = null;
    this.free.push(request);
  }
}

/** One request as a promise, for control paths and tests. */
export function submitAndWait(
  device: BlockDevice,
  fields: Partial<
    Pick<BlockRequest, 'op' | 'offsetBytes' | 'lengthBytes' | 'bufferOffset' | 'fua'>
  >,
): Promise<BlockRequest> {
  return new Promise((resolve, reject) => {
    const request = new BlockRequest();
    Object.assign(request, fields);
    request.owner = {
      blockRequestDone: (finished, error) => (error === null ? resolve(finished) : reject(error)),
    };
    device.submit(request);
  });
}

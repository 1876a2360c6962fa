// One flush: everything that was done before it came is durable afterwards (promise P2). Frozen
// layers are durable since they were frozen, and trims sync the snapshots they touch, so the head
// and the revision counter are all that needs a sync.

import type { BlockRequest } from '../core/block-device.js';
import { DISK_OP, type DiskFile, type DiskRequest } from '../disk/disk.js';
import type { ChainIo } from './chain-io.js';
import { diskError } from './disk-errors.js';

export class FlushOperation implements DiskRequest {
  readonly op = DISK_OP.sync;
  file: DiskFile;
  readonly bufferOffset = 0;
  readonly lengthBytes = 0;
  readonly fileOffsetBytes = 0;
  private readonly io: ChainIo;
  private readonly pool: FlushOperation[];
  private request: BlockRequest | null = null;
  private changesBefore = 0;
  private isAtCounter = false;

  constructor(io: ChainIo, pool: FlushOperation[]) {
    this.io = io;
    this.pool = pool;
    this.file = io.stack.head.file;
  }

  start(request: BlockRequest): void {
    const { io } = this;
    this.request = request;
    if (io.isReadOnly || io.syncFailure !== null || io.durableChanges >= io.changes) {
      this.finish();
      return;
    }
    this.changesBefore = io.changes;
    this.file = io.stack.head.file;
    this.isAtCounter = false;
    io.queue.submit(this);
  }

  complete(result: number): void {
    const { io } = this;
    if (result < 0) io.syncFailure ??= diskError(result, 'sync', this.file.path);
    else if (io.counter !== null && !this.isAtCounter) {
      this.isAtCounter = true;
      this.file = io.counter.file;
      io.queue.submit(this);
      return;
    } else io.durableChanges = Math.max(io.durableChanges, this.changesBefore);
    this.finish();
  }

  private finish(): void {
    const request = this.request as BlockRequest;
    this.request = null;
    this.pool.push(this);
    request.done(this.io.syncFailure);
  }
}

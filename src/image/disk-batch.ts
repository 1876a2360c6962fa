// Many small disk operations with one promise for all of them: the work of a purge, where a promise
// or an object for each 4 KiB would cost more than the disk does. It must never have more in flight
// than its depth: the requests of clients go through the same queue.

import type { StorageError } from '../core/errors.js';
import { DISK_OP, type DiskFile, type DiskOp, type DiskRequest } from '../disk/disk.js';
import type { ChainIo } from './chain-io.js';
import { diskError, EOPNOTSUPP } from './disk-errors.js';
import { writeZeroes } from './disk-work.js';

class Item implements DiskRequest {
  op: DiskOp = DISK_OP.read;
  file: DiskFile;
  bufferOffset = 0;
  lengthBytes = 0;
  fileOffsetBytes = 0;
  private readonly batch: DiskBatch;

  constructor(file: DiskFile, batch: DiskBatch) {
    this.file = file;
    this.batch = batch;
  }

  complete(result: number): void {
    this.batch.completed(this, result);
  }
}

const VERBS = {
  [DISK_OP.read]: 'read',
  [DISK_OP.write]: 'write',
  [DISK_OP.sync]: 'sync',
  [DISK_OP.punchHole]: 'clear',
  [DISK_OP.zeroRange]: 'clear',
} as const;

/** A reusable list of operations: add, add …, run, and again. */
export class DiskBatch {
  private readonly io: ChainIo;
  /** The first `count` are this run's; the others are kept for later ones. */
  private readonly items: Item[] = [];
  private count = 0;
  private startedCount = 0;
  private inFlightCount = 0;
  private error: StorageError | null = null;
  /** Clears that the file system cannot do. */
  private unsupported: Item[] = [];
  private end: () => void = () => undefined;
  private readonly depth: number;

  /** @param depth operations in flight at most. */
  constructor(io: ChainIo, depth: number) {
    this.io = io;
    this.depth = depth;
  }

  get length(): number {
    return this.count;
  }

  /** @param bufferOffset of read and write; others ignore it. */
  add(
    op: DiskOp,
    file: DiskFile,
    fileOffsetBytes: number,
    lengthBytes: number,
    bufferOffset: number,
  ): void {
    const item = this.items[this.count] ?? new Item(file, this);
    this.items[this.count++] = item;
    item.op = op;
    item.file = file;
    item.fileOffsetBytes = fileOffsetBytes;
    item.lengthBytes = lengthBytes;
    item.bufferOffset = bufferOffset;
  }

  /** All of them, in order of adding; when it returns or throws, nothing is in flight. @throws NO_SPACE, IO_ERROR. */
  async run(): Promise<void> {
    this.startedCount = 0;
    this.error = null;
    this.unsupported = [];
    await new Promise<void>((resolve) => {
      this.end = resolve;
      this.startMore();
    });
    this.count = 0;
    if (this.error !== null) throw this.error;
    const { queue, scratch } = this.io;
    for (const { file, fileOffsetBytes, lengthBytes } of this.unsupported) {
      await writeZeroes(queue, scratch, file, fileOffsetBytes, fileOffsetBytes + lengthBytes);
    }
  }

  completed(item: Item, result: number): void {
    this.inFlightCount--;
    const isTransfer = item.op === DISK_OP.read || item.op === DISK_OP.write;
    const isClear = item.op === DISK_OP.punchHole || item.op === DISK_OP.zeroRange;
    if (isClear && result === -EOPNOTSUPP) this.unsupported.push(item);
    else if (isTransfer ? result !== item.lengthBytes : result < 0)
      this.error ??= diskError(result, VERBS[item.op], item.file.path);
    this.startMore();
  }

  private startMore(): void {
    while (
      this.inFlightCount < this.depth &&
      this.startedCount < this.count &&
      this.error === null
    ) {
      this.inFlightCount++;
      this.io.queue.submit(this.items[this.startedCount++] as Item);
    }
    if (this.inFlightCount === 0) this.end();
  }
}

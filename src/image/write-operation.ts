// One write request on its way into the head. Whole sectors go from the request's buffer straight
// to the disk; anything else is merged with what the chain holds, piece by piece, in a scratch
// buffer. Pooled: an aligned write allocates nothing. The request is done only when the data, the
// revision counter and (with fua) the sync have succeeded.

import type { BlockRequest } from '../core/block-device.js';
import { toStorageError, type StorageError } from '../core/errors.js';
import type { RangeHolder } from '../core/range-lock.js';
import { alignDown, alignUp, SECTOR_BYTES } from '../core/units.js';
import { DISK_OP, type DiskFile, type DiskOp, type DiskRequest } from '../disk/disk.js';
import type { ChainIo } from './chain-io.js';
import { diskError } from './disk-errors.js';
import { visitExtents } from './layer-stack.js';
import type { RevisionTaker } from './revision-counter.js';
import { SCRATCH_BYTES, type ScratchTaker } from './scratch.js';
import { SectorReader, type SectorReaderOwner } from './sector-reader.js';

/** A request with this bufferOffset writes zeros. */
export const ZEROES = -1;

export class WriteOperation
  implements RangeHolder, SectorReaderOwner, ScratchTaker, DiskRequest, RevisionTaker
{
  op: DiskOp = DISK_OP.write;
  file: DiskFile;
  bufferOffset = 0;
  lengthBytes = 0;
  fileOffsetBytes = 0;
  private readonly io: ChainIo;
  private readonly pool: WriteOperation[];
  private readonly reader: SectorReader;
  private request: BlockRequest | null = null;
  private beginOffset = 0;
  private endOffset = 0;
  private scratchOffset = -1;
  private pieceOffset = 0;
  private pieceEnd = 0;
  /** Partial sectors of the piece that are still to be read: their offsets, or -1. */
  private headSector = -1;
  private tailSector = -1;
  /** The data path and the revision counter, whichever are unfinished. */
  private pendingCount = 0;
  private changesBefore = 0;
  private error: StorageError | null = null;

  constructor(io: ChainIo, pool: WriteOperation[]) {
    this.io = io;
    this.pool = pool;
    this.reader = new SectorReader(io, this);
    this.file = io.stack.head.file;
  }

  start(request: BlockRequest): void {
    this.request = request;
    this.error = null;
    this.beginOffset = alignDown(request.offsetBytes, SECTOR_BYTES);
    this.endOffset = alignUp(request.offsetBytes + request.lengthBytes, SECTOR_BYTES);
    if (this.io.lock.acquire(this, this.beginOffset, this.endOffset, true)) this.granted();
  }

  granted(): void {
    const { index } = this.io.stack;
    const beginSector = this.beginOffset / SECTOR_BYTES;
    const endSector = this.endOffset / SECTOR_BYTES;
    this.pendingCount = 1;
    if (index.isLoaded(beginSector, endSector)) this.write();
    else
      this.io.loadOwners(beginSector, endSector).then(
        () => this.write(),
        (e) => this.fail(toStorageError(e)),
      );
  }

  revisionWritten(error: StorageError | null): void {
    this.error ??= error;
    this.finishOne();
  }

  scratchGranted(bufferOffset: number): void {
    this.scratchOffset = bufferOffset;
    this.pieceEnd = this.beginOffset;
    this.startPiece();
  }

  sectorsRead(error: StorageError | null): void {
    if (error === null) this.readPartialSectors();
    else this.fail(error);
  }

  complete(result: number): void {
    if (this.op === DISK_OP.sync) this.completeSync(result);
    else this.completeWrite(result);
  }

  private write(): void {
    const { io } = this;
    const request = this.request as BlockRequest;
    io.isDirty = true;
    this.file = io.stack.head.file;
    if (io.counter !== null) {
      this.pendingCount++;
      io.counter.increment(this);
    }
    const isWhole =
      this.beginOffset === request.offsetBytes &&
      this.endOffset === request.offsetBytes + request.lengthBytes &&
      request.bufferOffset % SECTOR_BYTES === 0;
    if (isWhole) {
      this.pieceOffset = this.beginOffset;
      this.pieceEnd = this.endOffset;
      this.submitWrite(request.bufferOffset);
    } else io.scratch.take(this);
  }

  private submitWrite(bufferOffset: number): void {
    this.op = DISK_OP.write;
    this.bufferOffset = bufferOffset;
    this.fileOffsetBytes = this.pieceOffset;
    this.lengthBytes = this.pieceEnd - this.pieceOffset;
    this.io.queue.submit(this);
  }

  private completeWrite(result: number): void {
    if (result !== this.lengthBytes) {
      void this.findWhatWasWritten(diskError(result, 'write', this.file.path));
      return;
    }
    const { stack } = this.io;
    stack.index.fill(this.pieceOffset / SECTOR_BYTES, this.pieceEnd / SECTOR_BYTES, stack.headId);
    if (this.pieceEnd < this.endOffset) this.startPiece();
    else this.finishOne();
  }

  private sync(file: DiskFile): void {
    this.op = DISK_OP.sync;
    this.file = file;
    this.io.queue.submit(this);
  }

  private completeSync(result: number): void {
    const { io } = this;
    if (result < 0) io.syncFailure ??= diskError(result, 'sync', this.file.path);
    else if (io.counter !== null && this.file !== io.counter.file) {
      this.sync(io.counter.file);
      return;
    } else io.durableChanges = Math.max(io.durableChanges, this.changesBefore);
    this.error = io.syncFailure;
    this.finish();
  }

  /**
   * A failed write may have reached the disk in part. Only the head's extents know which sectors
   * became its own; the others must go on showing older layers, as they will after a reopen.
   */
  private async findWhatWasWritten(error: StorageError): Promise<void> {
    const { stack } = this.io;
    const note = (begin: number, end: number): void =>
      stack.index.fill(begin / SECTOR_BYTES, end / SECTOR_BYTES, stack.headId);
    try {
      await visitExtents(stack.head, this.pieceOffset, this.pieceEnd, note);
    } catch {
      note(this.pieceOffset, this.pieceEnd);
    }
    this.fail(error);
  }

  // --- requests that are not whole sectors ---------------------------------------------------

  private startPiece(): void {
    const request = this.request as BlockRequest;
    this.pieceOffset = this.pieceEnd;
    this.pieceEnd = Math.min(this.endOffset, this.pieceOffset + SCRATCH_BYTES);
    const lastSector = this.pieceEnd - SECTOR_BYTES;
    this.headSector = this.pieceOffset < request.offsetBytes ? this.pieceOffset : -1;
    const cutsTail = this.pieceEnd > request.offsetBytes + request.lengthBytes;
    this.tailSector = cutsTail && lastSector !== this.headSector ? lastSector : -1;
    this.readPartialSectors();
  }

  private readPartialSectors(): void {
    const sector = this.headSector >= 0 ? this.headSector : this.tailSector;
    if (sector < 0) {
      this.mergePiece();
      this.submitWrite(this.scratchOffset);
      return;
    }
    if (sector === this.headSector) this.headSector = -1;
    else this.tailSector = -1;
    const target = this.scratchOffset + (sector - this.pieceOffset);
    this.reader.start(sector, sector + SECTOR_BYTES, target);
  }

  private mergePiece(): void {
    const { offsetBytes, lengthBytes, bufferOffset } = this.request as BlockRequest;
    const begin = Math.max(this.pieceOffset, offsetBytes);
    const end = Math.min(this.pieceEnd, offsetBytes + lengthBytes);
    const target = this.scratchOffset + (begin - this.pieceOffset);
    const { bytes } = this.io.slab;
    if (bufferOffset === ZEROES) bytes.fill(0, target, target + (end - begin));
    else {
      const source = bufferOffset + (begin - offsetBytes);
      bytes.copyWithin(target, source, source + (end - begin));
    }
  }

  private fail(error: StorageError): void {
    this.error = error;
    this.finishOne();
  }

  private finishOne(): void {
    this.pendingCount--;
    if (this.pendingCount > 0) return;
    // Not before the revision is written: a flush counts on both.
    this.io.changes++;
    if ((this.request as BlockRequest).fua && this.error === null) {
      this.changesBefore = this.io.changes;
      this.sync(this.io.stack.head.file);
    } else this.finish();
  }

  private finish(): void {
    const request = this.request as BlockRequest;
    const { scratchOffset, error } = this;
    this.request = null;
    this.scratchOffset = -1;
    this.io.lock.release(this);
    this.pool.push(this);
    if (scratchOffset >= 0) this.io.scratch.give(scratchOffset);
    request.done(error);
  }
}

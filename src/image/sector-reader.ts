// Reads whole sectors across the layers: runs of one owner become one disk read each, sectors
// without owner and those beyond a layer's end are zeros. It must not be asked for sectors that
// the index has not loaded, nor while someone may change them.

import { StorageError } from '../core/errors.js';
import { SECTOR_BYTES } from '../core/units.js';
import { DISK_OP, type DiskFile, type DiskRequest } from '../disk/disk.js';
import type { ChainIo } from './chain-io.js';
import { diskError } from './disk-errors.js';
import { OWNER_NONE } from './owner-index.js';

/** Gets the end of a read, exactly once and possibly before start() returns. */
export interface SectorReaderOwner {
  sectorsRead(error: StorageError | null): void;
}

/** One disk read of a run; pooled. */
class RunRead implements DiskRequest {
  readonly op = DISK_OP.read;
  file: DiskFile;
  bufferOffset = 0;
  lengthBytes = 0;
  fileOffsetBytes = 0;
  /** Bytes that the file is known to have here; less is corruption. */
  expectedBytes = 0;
  reader: SectorReader;

  constructor(file: DiskFile, reader: SectorReader) {
    this.file = file;
    this.reader = reader;
  }

  complete(result: number): void {
    this.reader.runRead(this, result);
  }
}

const freeRuns: RunRead[] = [];

/** A reusable reader: one read at a time. */
export class SectorReader {
  private readonly io: ChainIo;
  private readonly owner: SectorReaderOwner;
  private pendingCount = 0;
  private error: StorageError | null = null;

  constructor(io: ChainIo, owner: SectorReaderOwner) {
    this.io = io;
    this.owner = owner;
  }

  /** @param beginOffset, endOffset, bufferOffset multiples of 4096. */
  start(beginOffset: number, endOffset: number, bufferOffset: number): void {
    const { index } = this.io.stack;
    const endSector = endOffset / SECTOR_BYTES;
    this.pendingCount = 1;
    this.error = null;
    for (let sector = beginOffset / SECTOR_BYTES; sector < endSector; ) {
      const owner = index.ownerAt(sector);
      const runEnd = index.runEnd(sector, endSector);
      const runOffset = sector * SECTOR_BYTES;
      const runBuffer = bufferOffset + (runOffset - beginOffset);
      this.startRun(owner, runOffset, (runEnd - sector) * SECTOR_BYTES, runBuffer);
      sector = runEnd;
    }
    this.finishOne();
  }

  runRead(run: RunRead, result: number): void {
    if (result < run.expectedBytes) this.error ??= shortRead(run, result);
    else if (result < run.lengthBytes) {
      this.io.slab.bytes.fill(0, run.bufferOffset + result, run.bufferOffset + run.lengthBytes);
    }
    freeRuns.push(run);
    this.finishOne();
  }

  private startRun(owner: number, offset: number, lengthBytes: number, bufferOffset: number): void {
    const layer = owner === OWNER_NONE ? null : this.io.stack.layerOf(owner);
    if (layer === null || offset >= layer.imageBytes) {
      this.io.slab.bytes.fill(0, bufferOffset, bufferOffset + lengthBytes);
      return;
    }
    const run = freeRuns.pop() ?? new RunRead(layer.file, this);
    run.reader = this;
    run.file = layer.file;
    run.bufferOffset = bufferOffset;
    run.lengthBytes = lengthBytes;
    run.fileOffsetBytes = offset;
    run.expectedBytes = Math.min(lengthBytes, layer.imageBytes - offset);
    this.pendingCount++;
    this.io.queue.submit(run);
  }

  private finishOne(): void {
    this.pendingCount--;
    if (this.pendingCount === 0) this.owner.sectorsRead(this.error);
  }
}

function shortRead(run: RunRead, result: number): StorageError {
  if (result < 0) return diskError(result, 'read', run.file.path);
  return new StorageError(
    'IMAGE_TRUNCATED',
    `${run.file.path} ends before offset ${run.fileOffsetBytes + run.expectedBytes}`,
    { path: run.file.path, result },
  );
}

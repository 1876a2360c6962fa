// Answers which parts of a range hold data, from the index: one entry per run, little-endian u32
// length and flags. It stops early when the buffer is full.

import {
  EXTENT_ENTRY_BYTES,
  EXTENT_HOLE,
  EXTENT_ZERO,
  type BlockRequest,
} from '../core/block-device.js';
import { toStorageError, type StorageError } from '../core/errors.js';
import { EXTENTS_BUFFER_BYTES } from '../core/limits.js';
import type { RangeHolder } from '../core/range-lock.js';
import { alignDown, alignUp, GIB, SECTOR_BYTES } from '../core/units.js';
import type { ChainIo } from './chain-io.js';
import { OWNER_NONE } from './owner-index.js';

/** Range that one answer looks at: an entry's length has 32 bits, and pages are loaded for it. */
const ANSWER_BYTES_MAX = GIB;

export class ExtentsOperation implements RangeHolder {
  private readonly io: ChainIo;
  private readonly request: BlockRequest;
  private readonly endOffset: number;

  constructor(io: ChainIo, request: BlockRequest) {
    this.io = io;
    this.request = request;
    this.endOffset = request.offsetBytes + Math.min(request.lengthBytes, ANSWER_BYTES_MAX);
  }

  start(): void {
    const begin = alignDown(this.request.offsetBytes, SECTOR_BYTES);
    const end = alignUp(this.endOffset, SECTOR_BYTES);
    if (this.io.lock.acquire(this, begin, end, false)) this.granted();
  }

  granted(): void {
    const firstSector = Math.floor(this.request.offsetBytes / SECTOR_BYTES);
    const endSector = Math.ceil(this.endOffset / SECTOR_BYTES);
    this.io.loadOwners(firstSector, endSector).then(
      () => {
        this.fill(firstSector, endSector);
        this.finish(null);
      },
      (error) => this.finish(toStorageError(error)),
    );
  }

  private fill(firstSector: number, endSector: number): void {
    const { index } = this.io.stack;
    const { view } = this.io.slab;
    const { bufferOffset, offsetBytes } = this.request;
    let filledBytes = 0;
    for (let sector = firstSector; sector < endSector; ) {
      const hasData = index.ownerAt(sector) !== OWNER_NONE;
      let next = index.runEnd(sector, endSector);
      while (next < endSector && (index.ownerAt(next) !== OWNER_NONE) === hasData) {
        next = index.runEnd(next, endSector);
      }
      const begin = Math.max(offsetBytes, sector * SECTOR_BYTES);
      const end = Math.min(this.endOffset, next * SECTOR_BYTES);
      view.setUint32(bufferOffset + filledBytes, end - begin, true);
      const flags = hasData ? 0 : EXTENT_HOLE | EXTENT_ZERO;
      view.setUint32(bufferOffset + filledBytes + 4, flags, true);
      filledBytes += EXTENT_ENTRY_BYTES;
      if (filledBytes === EXTENTS_BUFFER_BYTES) break;
      sector = next;
    }
    this.request.resultBytes = filledBytes;
  }

  private finish(error: StorageError | null): void {
    this.io.lock.release(this);
    this.request.done(error);
  }
}

// One read request on its way through the chain. Whole sectors go straight into the request's
// buffer; anything else passes through a scratch buffer. Pooled: a read allocates nothing.

import type { BlockRequest } from '../core/block-device.js';
import { toStorageError, type StorageError } from '../core/errors.js';
import type { RangeHolder } from '../core/range-lock.js';
import { alignDown, alignUp, SECTOR_BYTES } from '../core/units.js';
import type { ChainIo } from './chain-io.js';
import { SCRATCH_BYTES, type ScratchTaker } from './scratch.js';
import { SectorReader, type SectorReaderOwner } from './sector-reader.js';

export class ReadOperation implements RangeHolder, SectorReaderOwner, ScratchTaker {
  private readonly io: ChainIo;
  private readonly pool: ReadOperation[];
  private readonly reader: SectorReader;
  private request: BlockRequest | null = null;
  private beginOffset = 0;
  private endOffset = 0;
  private scratchOffset = -1;
  /** What the scratch buffer holds now. */
  private pieceOffset = 0;
  private pieceEnd = 0;

  constructor(io: ChainIo, pool: ReadOperation[]) {
    this.io = io;
    this.pool = pool;
    this.reader = new SectorReader(io, this);
  }

  start(request: BlockRequest): void {
    this.request = request;
    this.beginOffset = alignDown(request.offsetBytes, SECTOR_BYTES);
    this.endOffset = alignUp(request.offsetBytes + request.lengthBytes, SECTOR_BYTES);
    if (this.io.lock.acquire(this, this.beginOffset, this.endOffset, false)) this.granted();
  }

  granted(): void {
    const { index } = this.io.stack;
    const beginSector = this.beginOffset / SECTOR_BYTES;
    const endSector = this.endOffset / SECTOR_BYTES;
    if (index.isLoaded(beginSector, endSector)) this.read();
    else
      this.io.loadOwners(beginSector, endSector).then(
        () => this.read(),
        (e) => this.finish(toStorageError(e)),
      );
  }

  scratchGranted(bufferOffset: number): void {
    this.scratchOffset = bufferOffset;
    this.pieceEnd = this.beginOffset;
    this.readPiece();
  }

  sectorsRead(error: StorageError | null): void {
    if (this.scratchOffset < 0 || error !== null) {
      this.finish(error);
      return;
    }
    this.copyPiece();
    if (this.pieceEnd < this.endOffset) this.readPiece();
    else this.finish(null);
  }

  private read(): void {
    const request = this.request as BlockRequest;
    const isWhole =
      this.beginOffset === request.offsetBytes &&
      this.endOffset === request.offsetBytes + request.lengthBytes &&
      request.bufferOffset % SECTOR_BYTES === 0;
    if (isWhole) this.reader.start(this.beginOffset, this.endOffset, request.bufferOffset);
    else this.io.scratch.take(this);
  }

  private readPiece(): void {
    this.pieceOffset = this.pieceEnd;
    this.pieceEnd = Math.min(this.endOffset, this.pieceOffset + SCRATCH_BYTES);
    this.reader.start(this.pieceOffset, this.pieceEnd, this.scratchOffset);
  }

  private copyPiece(): void {
    const { offsetBytes, lengthBytes, bufferOffset } = this.request as BlockRequest;
    const begin = Math.max(this.pieceOffset, offsetBytes);
    const end = Math.min(this.pieceEnd, offsetBytes + lengthBytes);
    const source = this.scratchOffset + (begin - this.pieceOffset);
    const target = bufferOffset + (begin - offsetBytes);
    this.io.slab.bytes.copyWithin(target, source, source + (end - begin));
  }

  private finish(error: StorageError | null): void {
    const request = this.request as BlockRequest;
    const { scratchOffset } = this;
    this.request = null;
    this.scratchOffset = -1;
    this.io.lock.release(this);
    this.pool.push(this);
    if (scratchOffset >= 0) this.io.scratch.give(scratchOffset);
    request.done(error);
  }
}

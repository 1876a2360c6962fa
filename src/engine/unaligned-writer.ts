// Writes that do not cover whole sectors, while a replica is being rebuilt: that replica cannot
// read-modify-write from data it does not have yet. The engine reads the two edge sectors from a
// readable replica, merges, and writes whole sectors to everyone. Rare, so one at a time.

import { BLOCK_OP, BlockRequest, type BlockRequestOwner } from '../core/block-device.js';
import type { StorageError } from '../core/errors.js';
import type { Slab } from '../core/slab.js';
import { alignDown, SECTOR_BYTES } from '../core/units.js';

/** Where parts go; the range of the whole write is already held. */
export interface PartDevice {
  submitPart(request: BlockRequest): void;
}

interface Job {
  readonly request: BlockRequest;
  readonly finished: (error: StorageError | null) => void;
}

/** One piece of the write: an edge sector that is merged, or whole sectors as they are. */
interface Piece {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** Bytes of the piece that the client writes: [patchBegin, patchEnd), volume offsets. */
  readonly patchBegin: number;
  readonly patchEnd: number;
}

function piecesOf(offsetBytes: number, lengthBytes: number): Piece[] {
  const end = offsetBytes + lengthBytes;
  const pieces: Piece[] = [];
  let at = offsetBytes;
  while (at < end) {
    const sector = alignDown(at, SECTOR_BYTES);
    const wholeEnd = alignDown(end, SECTOR_BYTES);
    const isWhole = at === sector && wholeEnd > at;
    const pieceEnd = isWhole ? wholeEnd : sector + SECTOR_BYTES;
    pieces.push({
      offsetBytes: sector,
      lengthBytes: pieceEnd - sector,
      patchBegin: at,
      patchEnd: Math.min(end, pieceEnd),
    });
    at = pieceEnd;
  }
  return pieces;
}

export class UnalignedWriter implements BlockRequestOwner {
  private readonly device: PartDevice;
  private readonly slab: Slab;
  private readonly scratchOffset: number;
  private readonly part = new BlockRequest();
  private readonly waiting: Job[] = [];
  private job: Job | null = null;
  private pieces: Piece[] = [];
  private isReading = false;

  constructor(device: PartDevice, slab: Slab) {
    this.device = device;
    this.slab = slab;
    this.scratchOffset = slab.reserve(SECTOR_BYTES);
  }

  /** @param request a write or writeZeroes; stays the caller's, `finished` tells the result. */
  write(request: BlockRequest, finished: Job['finished']): void {
    this.waiting.push({ request, finished });
    if (this.job === null) this.nextJob();
  }

  blockRequestDone(_part: BlockRequest, error: StorageError | null): void {
    if (error !== null) {
      this.finishJob(error);
    } else if (this.isReading) {
      this.isReading = false;
      this.writeEdge(this.pieces[0] as Piece);
    } else {
      this.pieces.shift();
      this.nextPiece();
    }
  }

  private nextJob(): void {
    this.job = this.waiting.shift() ?? null;
    if (this.job === null) return;
    this.pieces = piecesOf(this.job.request.offsetBytes, this.job.request.lengthBytes);
    this.nextPiece();
  }

  private nextPiece(): void {
    const piece = this.pieces[0];
    if (piece === undefined) {
      this.finishJob(null);
      return;
    }
    const isWhole = piece.patchEnd - piece.patchBegin === piece.lengthBytes;
    if (isWhole) {
      const { request } = this.job as Job;
      this.submit(
        request.op,
        piece,
        request.bufferOffset + (piece.patchBegin - request.offsetBytes),
      );
    } else {
      this.isReading = true;
      this.submit(BLOCK_OP.read, piece, this.scratchOffset);
    }
  }

  private writeEdge(piece: Piece): void {
    const { request } = this.job as Job;
    const at = this.scratchOffset + (piece.patchBegin - piece.offsetBytes);
    if (request.op === BLOCK_OP.writeZeroes) {
      this.slab.bytes.fill(0, at, at + (piece.patchEnd - piece.patchBegin));
    } else {
      const from = request.bufferOffset + (piece.patchBegin - request.offsetBytes);
      this.slab.bytes.copyWithin(at, from, from + (piece.patchEnd - piece.patchBegin));
    }
    this.submit(BLOCK_OP.write, piece, this.scratchOffset);
  }

  private submit(op: BlockRequest['op'], piece: Piece, bufferOffset: number): void {
    const { part } = this;
    part.owner = this;
    part.op = op;
    part.offsetBytes = piece.offsetBytes;
    part.lengthBytes = piece.lengthBytes;
    part.bufferOffset = bufferOffset;
    part.fua = (this.job as Job).request.fua;
    this.device.submitPart(part);
  }

  private finishJob(error: StorageError | null): void {
    const { finished } = this.job as Job;
    this.job = null;
    this.pieces = [];
    this.isReading = false;
    finished(error);
    if (this.job === null) this.nextJob();
  }
}

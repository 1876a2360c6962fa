// Sends each request of a chain to the kind of operation that carries it out. Reads, writes and
// flushes come from free lists: they allocate nothing.

import { BLOCK_OP, BlockRequest, type BlockRequestOwner } from '../core/block-device.js';
import type { StorageError } from '../core/errors.js';
import { unreachable } from '../core/assert.js';
import { alignDown, alignUp, SECTOR_BYTES } from '../core/units.js';
import type { ChainIo } from './chain-io.js';
import { ExtentsOperation } from './extents-operation.js';
import { FlushOperation } from './flush-operation.js';
import { ReadOperation } from './read-operation.js';
import { TrimOperation, type RemovedAncestors } from './trim-operation.js';
import { WriteOperation, ZEROES } from './write-operation.js';

export class RequestRouter {
  /** Unmap marks the snapshots below the head as removed. */
  marksAncestors = false;
  private readonly io: ChainIo;
  private readonly ancestors: RemovedAncestors;
  private readonly reads: ReadOperation[] = [];
  private readonly writes: WriteOperation[] = [];
  private readonly flushes: FlushOperation[] = [];

  constructor(io: ChainIo, ancestors: RemovedAncestors) {
    this.io = io;
    this.ancestors = ancestors;
  }

  submit(request: BlockRequest): void {
    const { io } = this;
    const refusal = io.refuse(request);
    if (refusal !== null) {
      request.done(refusal);
      return;
    }
    const { op } = request;
    const isEmpty = request.lengthBytes === 0;
    if (op === BLOCK_OP.flush) this.takeFlush().start(request);
    else if (op === BLOCK_OP.unmap && (!isEmpty || this.emptyTrimActs())) {
      new TrimOperation(io, request, this.ancestors, this.marksAncestors).start();
    } else if (isEmpty) request.done(null);
    else if (op === BLOCK_OP.read) this.takeRead().start(request);
    else if (op === BLOCK_OP.write) this.takeWrite().start(request);
    else if (op === BLOCK_OP.writeZeroes) this.writeZeroes(request);
    else if (op === BLOCK_OP.extents) new ExtentsOperation(io, request).start();
    else if (op !== BLOCK_OP.unmap) unreachable(op);
  }

  /** As in Longhorn, an unmap of nothing still marks ancestors and counts as a revision. */
  private emptyTrimActs(): boolean {
    return this.marksAncestors || this.io.counter !== null;
  }

  private takeRead(): ReadOperation {
    return this.reads.pop() ?? new ReadOperation(this.io, this.reads);
  }

  private takeWrite(): WriteOperation {
    return this.writes.pop() ?? new WriteOperation(this.io, this.writes);
  }

  private takeFlush(): FlushOperation {
    return this.flushes.pop() ?? new FlushOperation(this.io, this.flushes);
  }

  /** Whole sectors are trimmed; what is left at both ends is written. */
  private writeZeroes(request: BlockRequest): void {
    const begin = request.offsetBytes;
    const end = begin + request.lengthBytes;
    const wholeBegin = alignUp(begin, SECTOR_BYTES);
    const wholeEnd = alignDown(end, SECTOR_BYTES);
    const parts = new ZeroParts(request);
    if (wholeBegin >= wholeEnd) {
      this.takeWrite().start(parts.add(BLOCK_OP.write, begin, end));
    } else {
      if (begin < wholeBegin) this.takeWrite().start(parts.add(BLOCK_OP.write, begin, wholeBegin));
      const middle = parts.add(BLOCK_OP.unmap, wholeBegin, wholeEnd);
      new TrimOperation(this.io, middle, this.ancestors, false).start();
      if (wholeEnd < end) this.takeWrite().start(parts.add(BLOCK_OP.write, wholeEnd, end));
    }
    parts.allStarted();
  }
}

/** The parts of one write of zeros; the request is done when all of them are. */
class ZeroParts implements BlockRequestOwner {
  private readonly request: BlockRequest;
  private pendingCount = 1;
  private error: StorageError | null = null;

  constructor(request: BlockRequest) {
    this.request = request;
  }

  add(op: typeof BLOCK_OP.write | typeof BLOCK_OP.unmap, begin: number, end: number): BlockRequest {
    const part = new BlockRequest();
    part.op = op;
    part.offsetBytes = begin;
    part.lengthBytes = end - begin;
    part.bufferOffset = ZEROES;
    part.fua = this.request.fua;
    part.owner = this;
    this.pendingCount++;
    return part;
  }

  allStarted(): void {
    this.finishOne(null);
  }

  blockRequestDone(_part: BlockRequest, error: StorageError | null): void {
    this.finishOne(error);
  }

  private finishOne(error: StorageError | null): void {
    this.error ??= error;
    this.pendingCount--;
    if (this.pendingCount === 0) this.request.done(this.error);
  }
}

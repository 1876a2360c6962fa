// The long work of a purge, next to I/O. Coalesce copies a child's data down into the file of its
// removed parent, after which the child takes that file over; prune punches out of the removed
// snapshot behind the head what the head hides. Both go range by range, and each range is held
// against trims and writes meanwhile, because those change what hides what.

import type { ByteRange } from '../core/byte-ranges.js';
import { StorageError } from '../core/errors.js';
import { NO_BUFFER, type Slab } from '../core/slab.js';
import { alignDown, alignUp, MIB, SECTOR_BYTES } from '../core/units.js';
import { DISK_OP, type DiskFile } from '../disk/disk.js';
import type { ChainIo } from './chain-io.js';
import type { WorkOptions } from './chain.js';
import { diskError } from './disk-errors.js';
import { clearSectors, runDisk, writeSectors } from './disk-work.js';
import { visitExtents, type Layer } from './layer-stack.js';

/** Pieces copied side by side: small extents would otherwise each wait for the disk twice in turn. */
const WORKERS_MAX = 8;
/** Bytes of one piece: one slab buffer for each worker, 1 MiB in all. */
const COPY_BYTES = MIB / WORKERS_MAX;
/** Range of the volume that one prune step looks at. */
const PRUNE_BYTES = 64 * MIB;

/** Between steps, with no range held. */
function checkGoesOn(io: ChainIo, options: WorkOptions): void {
  if (io.refusal !== null) throw io.refusal;
  if (options.signal?.aborted === true)
    throw new StorageError('CANCELLED', 'the purge was cancelled');
}

/** A buffer must be at hand before a range is held: whoever waits for the range may hold buffers. */
async function takeBuffer(slab: Slab, lengthBytes: number): Promise<number> {
  for (;;) {
    const bufferOffset = slab.allocate(lengthBytes);
    if (bufferOffset !== NO_BUFFER) return bufferOffset;
    await new Promise<void>((resolve) => slab.whenReleased(resolve));
  }
}

/** At least one buffer; more only while the slab has them to spare. */
async function takeBuffers(slab: Slab): Promise<number[]> {
  const buffers = [await takeBuffer(slab, COPY_BYTES)];
  while (buffers.length < WORKERS_MAX) {
    const bufferOffset = slab.allocate(COPY_BYTES);
    if (bufferOffset === NO_BUFFER) break;
    buffers.push(bufferOffset);
  }
  return buffers;
}

export class Coalescer {
  private readonly io: ChainIo;
  private readonly parent: DiskFile;
  private readonly child: Layer;
  private readonly parentIsLowest: boolean;
  private readonly options: WorkOptions;
  private doneBytes = 0;
  /** A worker failed: the others stop at their next piece. */
  private hasFailed = false;

  /**
   * @param parent open for writing.
   * @param parentIsLowest nothing lies below the parent, so that a hole in it reads zero.
   */
  constructor(
    io: ChainIo,
    parent: DiskFile,
    child: Layer,
    parentIsLowest: boolean,
    options: WorkOptions,
  ) {
    this.io = io;
    this.parent = parent;
    this.child = child;
    this.parentIsLowest = parentIsLowest;
    this.options = options;
  }

  /** Copies all data of the child; durable when it returns. @throws CANCELLED, NO_SPACE, IO_ERROR. */
  async run(): Promise<void> {
    const { child } = this;
    const parentBytes = await this.parent.sizeBytes();
    if (parentBytes > child.imageBytes) {
      throw new StorageError(
        'IMAGE_TRUNCATED',
        `${this.parent.path} has ${parentBytes} bytes, more than its child ${child.diskName}`,
        { parentBytes, childBytes: child.imageBytes },
      );
    }
    if (parentBytes < child.imageBytes) await this.parent.truncate(child.imageBytes);
    const totalBytes = await child.file.allocatedBytes();
    const buffers = await takeBuffers(this.io.slab);
    try {
      for (let begin = 0; begin < child.imageBytes; begin += PRUNE_BYTES) {
        const end = Math.min(child.imageBytes, begin + PRUNE_BYTES);
        await this.copyExtents(begin, end, buffers, totalBytes);
      }
    } finally {
      for (const buffer of buffers) this.io.slab.release(buffer);
    }
    await this.parent.sync();
    this.options.onProgress?.(totalBytes, totalBytes);
  }

  private async copyExtents(
    begin: number,
    end: number,
    buffers: readonly number[],
    totalBytes: number,
  ): Promise<void> {
    const pieces: ByteRange[] = [];
    await visitExtents(this.child, begin, end, (from, to) => {
      const last = alignUp(to, SECTOR_BYTES);
      for (let offset = alignDown(from, SECTOR_BYTES); offset < last; offset += COPY_BYTES) {
        pieces.push({ beginOffset: offset, endOffset: Math.min(last, offset + COPY_BYTES) });
      }
    });
    const remaining = pieces.values();
    const workers = buffers.map((buffer) => this.copyPieces(remaining, buffer, totalBytes));
    // All of them: the buffers are in use until the last one has ended.
    const results = await Promise.allSettled(workers);
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  /** One worker: takes pieces until none is left. */
  private async copyPieces(
    remaining: Iterator<ByteRange>,
    buffer: number,
    totalBytes: number,
  ): Promise<void> {
    for (;;) {
      checkGoesOn(this.io, this.options);
      const next = remaining.next();
      if (next.done === true || this.hasFailed) return;
      const { beginOffset, endOffset } = next.value;
      try {
        await this.copyRange(beginOffset, endOffset - beginOffset, buffer);
      } catch (error) {
        this.hasFailed = true;
        throw error;
      }
      this.doneBytes += endOffset - beginOffset;
      this.options.onProgress?.(Math.min(this.doneBytes, totalBytes), totalBytes);
    }
  }

  private async copyRange(offset: number, lengthBytes: number, buffer: number): Promise<void> {
    const { io } = this;
    const held = await io.holdRange(offset, offset + lengthBytes, false);
    try {
      const result = await runDisk(
        io.queue,
        DISK_OP.read,
        this.child.file,
        offset,
        lengthBytes,
        buffer,
      );
      if (result !== lengthBytes) throw diskError(result, 'read', this.child.file.path);
      for (let done = 0; done < lengthBytes; ) {
        const isZero = this.isZeroSector(buffer + done);
        let end = done + SECTOR_BYTES;
        while (end < lengthBytes && this.isZeroSector(buffer + end) === isZero) end += SECTOR_BYTES;
        await this.putRun(offset + done, offset + end, buffer + done, isZero);
        done = end;
      }
    } finally {
      held.release();
    }
  }

  /** Zeros (often an unwritten extent of a trim) keep hiding what is below, without blocks of zeros. */
  private async putRun(begin: number, end: number, buffer: number, isZero: boolean): Promise<void> {
    const { queue, scratch } = this.io;
    if (!isZero) {
      await writeSectors(queue, this.parent, begin, end - begin, buffer);
      return;
    }
    const op = this.parentIsLowest ? DISK_OP.punchHole : DISK_OP.zeroRange;
    await clearSectors(queue, scratch, op, this.parent, begin, end);
  }

  private isZeroSector(bufferOffset: number): boolean {
    const { view } = this.io.slab;
    for (let i = bufferOffset; i < bufferOffset + SECTOR_BYTES; i += 4) {
      if (view.getUint32(i, true) !== 0) return false;
    }
    return true;
  }
}

/**
 * Punches the head's extents out of the removed snapshot right behind it.
 * @param snapshot the snapshot's file, open for writing.
 */
export async function pruneBehind(
  io: ChainIo,
  snapshot: DiskFile,
  head: Layer,
  options: WorkOptions,
): Promise<void> {
  const snapshotBytes = await snapshot.sizeBytes();
  if (snapshotBytes > head.imageBytes) {
    throw new StorageError('IMAGE_TRUNCATED', `${snapshot.path} is larger than the head`, {
      snapshotBytes,
    });
  }
  for (let begin = 0; begin < snapshotBytes; begin += PRUNE_BYTES) {
    checkGoesOn(io, options);
    const end = Math.min(snapshotBytes, begin + PRUNE_BYTES);
    await pruneRange(io, snapshot, head, begin, end);
    options.onProgress?.(end, snapshotBytes);
  }
}

async function pruneRange(
  io: ChainIo,
  snapshot: DiskFile,
  head: Layer,
  begin: number,
  end: number,
): Promise<void> {
  const extents: [number, number][] = [];
  const collect = (from: number, to: number): void => {
    extents.push([alignDown(from, SECTOR_BYTES), Math.min(end, alignUp(to, SECTOR_BYTES))]);
  };
  const held = await io.holdRange(begin, end, true);
  try {
    await visitExtents(head, begin, end, collect);
    if (extents.length === 0) return;
    // What hides the snapshot's data must be durable before that data goes.
    await io.syncLayer(head);
    for (const [from, to] of extents) {
      await clearSectors(io.queue, io.scratch, DISK_OP.punchHole, snapshot, from, to);
    }
    await snapshot.sync();
  } finally {
    held.release();
  }
}

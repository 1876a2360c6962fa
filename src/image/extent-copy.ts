// Copies the data of one image file to the same places of another, or punches it out, next to I/O.
// It goes window by window in ascending order: a range is held only while its window is read and
// written, so no request waits longer than that, and nothing is held between two windows.

import type { ByteRange } from '../core/byte-ranges.js';
import { StorageError } from '../core/errors.js';
import { NO_BUFFER } from '../core/slab.js';
import { alignDown, alignUp, MIB, SECTOR_BYTES } from '../core/units.js';
import { DISK_OP, type DiskFile } from '../disk/disk.js';
import type { ChainIo } from './chain-io.js';
import type { WorkOptions } from './chain-info.js';
import { DiskBatch } from './disk-batch.js';
import { visitExtents, type Layer } from './layer-stack.js';

/** Windows under way: while one is written the next is read. */
const LANES = 2;
const LANE_DEPTH = 32;
/** Bytes of one window: one slab buffer. */
const WINDOW_BYTES = MIB;
/** Small extents in one window. */
const WINDOW_PIECES = 128;
/** Range of the volume whose extents are listed at a time. */
export const LISTED_BYTES = 64 * MIB;

/** Between windows, with no range held. */
export function checkGoesOn(io: ChainIo, options: WorkOptions): void {
  if (io.refusal !== null) throw io.refusal;
  if (options.signal?.aborted === true)
    throw new StorageError('CANCELLED', 'the purge was cancelled');
}

/** Whole sectors of a layer's extents: a normal list. */
export async function sectorRanges(
  layer: Layer,
  beginOffset: number,
  endOffset: number,
): Promise<ByteRange[]> {
  const ranges: { beginOffset: number; endOffset: number }[] = [];
  await visitExtents(layer, beginOffset, endOffset, (from, to) => {
    const begin = alignDown(from, SECTOR_BYTES);
    const end = alignUp(to, SECTOR_BYTES);
    const last = ranges.at(-1);
    if (last !== undefined && last.endOffset >= begin) last.endOffset = end;
    else ranges.push({ beginOffset: begin, endOffset: end });
  });
  return ranges;
}

/** Cuts a normal list into windows: ranges that together are not too long and not too many. */
function* windowsOf(ranges: readonly ByteRange[]): Generator<ByteRange[]> {
  let window: ByteRange[] = [];
  let bytes = 0;
  for (const { beginOffset, endOffset } of ranges) {
    for (let begin = beginOffset; begin < endOffset; ) {
      const end = Math.min(endOffset, begin + WINDOW_BYTES - bytes);
      window.push({ beginOffset: begin, endOffset: end });
      bytes += end - begin;
      begin = end;
      if (bytes < WINDOW_BYTES && window.length < WINDOW_PIECES) continue;
      yield window;
      window = [];
      bytes = 0;
    }
  }
  if (window.length > 0) yield window;
}

/** Holds all of a window against trims and writes meanwhile: they change what hides what. */
async function whileHeld(
  io: ChainIo,
  window: readonly ByteRange[],
  work: () => Promise<void>,
): Promise<void> {
  const { beginOffset } = window[0] as ByteRange;
  const { endOffset } = window.at(-1) as ByteRange;
  const held = await io.holdRange(beginOffset, endOffset, false);
  try {
    await work();
  } finally {
    held.release();
  }
}

/** Makes these ranges holes. They are listed already; what has become of them since must not matter. */
export async function punchRanges(
  io: ChainIo,
  file: DiskFile,
  ranges: readonly ByteRange[],
  options: WorkOptions,
): Promise<void> {
  const batch = new DiskBatch(io, LANE_DEPTH);
  for (const window of windowsOf(ranges)) {
    checkGoesOn(io, options);
    for (const { beginOffset, endOffset } of window) {
      batch.add(DISK_OP.punchHole, file, beginOffset, endOffset - beginOffset, 0);
    }
    await whileHeld(io, window, () => batch.run());
  }
}

export class ExtentCopier {
  private readonly io: ChainIo;
  private readonly source: Layer;
  private readonly target: DiskFile;
  private readonly targetIsLowest: boolean;
  private readonly options: WorkOptions;
  private doneBytes = 0;
  private totalBytes = 0;
  /** A lane failed: the others stop at their next window. */
  private hasFailed = false;

  /** @param targetIsLowest nothing lies below the target, so that a hole in it reads zero. */
  constructor(
    io: ChainIo,
    source: Layer,
    target: DiskFile,
    targetIsLowest: boolean,
    options: WorkOptions,
  ) {
    this.io = io;
    this.source = source;
    this.target = target;
    this.targetIsLowest = targetIsLowest;
    this.options = options;
  }

  /** Not durable when it returns. @throws CANCELLED, NO_SPACE, IO_ERROR. */
  async copy(): Promise<void> {
    const { slab } = this.io;
    this.totalBytes = await this.source.file.allocatedBytes();
    // A buffer must be at hand before a range is held: whoever waits for the range may hold buffers.
    const buffers = [await slab.allocateWhenFree(WINDOW_BYTES)];
    const more = slab.freeCountOf(WINDOW_BYTES) > 0 ? slab.allocate(WINDOW_BYTES) : NO_BUFFER;
    if (more !== NO_BUFFER && LANES > 1) buffers.push(more);
    try {
      for (let begin = 0; begin < this.source.imageBytes; begin += LISTED_BYTES) {
        const end = Math.min(this.source.imageBytes, begin + LISTED_BYTES);
        const windows = windowsOf(await sectorRanges(this.source, begin, end));
        // All of them: the buffers are in use until the last lane has ended.
        const lanes = buffers.map((buffer) => this.copyWindows(windows, buffer));
        const results = await Promise.allSettled(lanes);
        for (const result of results) if (result.status === 'rejected') throw result.reason;
        checkGoesOn(this.io, this.options);
      }
    } finally {
      for (const buffer of buffers) slab.release(buffer);
    }
    this.options.onProgress?.(this.totalBytes, this.totalBytes);
  }

  /** One lane: takes windows until none is left. */
  private async copyWindows(windows: Iterator<ByteRange[]>, buffer: number): Promise<void> {
    const batch = new DiskBatch(this.io, LANE_DEPTH);
    for (;;) {
      checkGoesOn(this.io, this.options);
      const next = this.hasFailed ? undefined : windows.next();
      if (next === undefined || next.done === true) return;
      const window = next.value;
      try {
        await whileHeld(this.io, window, () => this.copyWindow(window, batch, buffer));
      } catch (error) {
        this.hasFailed = true;
        throw error;
      }
      for (const { beginOffset, endOffset } of window) this.doneBytes += endOffset - beginOffset;
      this.options.onProgress?.(Math.min(this.doneBytes, this.totalBytes), this.totalBytes);
    }
  }

  private async copyWindow(
    window: readonly ByteRange[],
    batch: DiskBatch,
    buffer: number,
  ): Promise<void> {
    let at = buffer;
    for (const { beginOffset, endOffset } of window) {
      batch.add(DISK_OP.read, this.source.file, beginOffset, endOffset - beginOffset, at);
      at += endOffset - beginOffset;
    }
    await batch.run();
    at = buffer;
    for (const { beginOffset, endOffset } of window) {
      this.addRuns(batch, beginOffset, endOffset, at);
      at += endOffset - beginOffset;
    }
    await batch.run();
  }

  /** Zeros (often an unwritten extent of a trim) keep hiding what is below, without blocks of zeros. */
  private addRuns(batch: DiskBatch, beginOffset: number, endOffset: number, buffer: number): void {
    const clear = this.targetIsLowest ? DISK_OP.punchHole : DISK_OP.zeroRange;
    const lengthBytes = endOffset - beginOffset;
    for (let done = 0; done < lengthBytes; ) {
      const isZero = this.isZeroSector(buffer + done);
      let end = done + SECTOR_BYTES;
      while (end < lengthBytes && this.isZeroSector(buffer + end) === isZero) end += SECTOR_BYTES;
      const op = isZero ? clear : DISK_OP.write;
      batch.add(op, this.target, beginOffset + done, end - done, buffer + done);
      done = end;
    }
  }

  private isZeroSector(bufferOffset: number): boolean {
    const { view } = this.io.slab;
    for (let i = bufferOffset; i < bufferOffset + SECTOR_BYTES; i += 4) {
      if (view.getUint32(i, true) !== 0) return false;
    }
    return true;
  }
}

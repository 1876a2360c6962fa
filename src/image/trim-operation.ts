// One trim (unmap, or the whole sectors of a write of zeros). Afterwards the range reads zero, now
// and after any reopen, on every replica alike. Longhorn only punches the head, so that older
// snapshot data shows again; here zeros are written wherever an older layer has data, which hide it,
// for Longhorn too. An unwritten extent would cost less time, but power failures leave just that of
// writes that did not end: unfinished-writes.ts could not tell them apart. Removed snapshots right
// below the head give their space back as well, but never before what hides them is durable.

import type { BlockRequest } from '../core/block-device.js';
import { toStorageError, type StorageError } from '../core/errors.js';
import type { RangeHolder } from '../core/range-lock.js';
import { alignDown, alignUp, SECTOR_BYTES } from '../core/units.js';
import { DISK_OP } from '../disk/disk.js';
import type { ChainIo } from './chain-io.js';
import { clearSectors, writeZeroes } from './disk-work.js';
import { visitExtents, type Layer } from './layer-stack.js';
import {
  gapsBetween,
  mergeRanges,
  subtractRanges,
  totalBytes,
  type ByteRange,
} from '../core/byte-ranges.js';

/** The part of the chain's metadata that a trim needs. */
export interface RemovedAncestors {
  /**
   * Layers directly below the head that are removed and have no other child, newest first. With
   * mark, ancestors with one child are marked removed first.
   */
  belowHead(mark: boolean): Promise<Layer[]>;
}

interface LayerRanges {
  readonly layer: Layer;
  readonly ranges: readonly ByteRange[];
}

export class TrimOperation implements RangeHolder {
  private readonly io: ChainIo;
  private readonly request: BlockRequest;
  private readonly ancestors: RemovedAncestors;
  private readonly marksAncestors: boolean;
  private readonly beginOffset: number;
  private readonly endOffset: number;

  /** @param marksAncestors unmap with unmapMarkDiskChainRemoved. */
  constructor(
    io: ChainIo,
    request: BlockRequest,
    ancestors: RemovedAncestors,
    marksAncestors: boolean,
  ) {
    this.io = io;
    this.request = request;
    this.ancestors = ancestors;
    this.marksAncestors = marksAncestors;
    this.beginOffset = alignUp(request.offsetBytes, SECTOR_BYTES);
    this.endOffset = alignDown(request.offsetBytes + request.lengthBytes, SECTOR_BYTES);
  }

  start(): void {
    // A trim of less than a sector still marks ancestors; any range keeps the chain as it is.
    const lockEnd = Math.max(this.endOffset, this.beginOffset + SECTOR_BYTES);
    if (this.io.lock.acquire(this, this.beginOffset, lockEnd, true)) this.granted();
  }

  granted(): void {
    this.run().then(
      (releasedBytes) => this.finish(releasedBytes, null),
      (error) => this.finish(0, toStorageError(error)),
    );
  }

  private finish(releasedBytes: number, error: StorageError | null): void {
    this.request.resultBytes = Math.max(0, releasedBytes);
    // Not before: a flush that ran meanwhile has not made durable what came after its sync.
    this.io.changes++;
    this.io.lock.release(this);
    this.request.done(error);
  }

  private async run(): Promise<number> {
    const { io } = this;
    io.isDirty = true;
    const counted = this.countRevision();
    let releasedBytes = 0;
    try {
      const removed = await this.ancestors.belowHead(this.marksAncestors);
      if (this.beginOffset < this.endOffset) releasedBytes = await this.trim(removed);
    } finally {
      await counted;
    }
    if (this.request.fua) {
      await io.syncLayer(io.stack.head);
      await io.counter?.sync();
    }
    return releasedBytes;
  }

  private countRevision(): Promise<void> {
    const { counter } = this.io;
    if (counter === null) return Promise.resolve();
    const counted = new Promise<void>((resolve, reject) => {
      counter.increment({ revisionWritten: (e) => (e === null ? resolve() : reject(e)) });
    });
    // run() awaits it after the data; an earlier rejection must not count as unhandled.
    counted.catch(() => undefined);
    return counted;
  }

  /** Bytes of disk space given back. */
  private async trim(removed: readonly Layer[]): Promise<number> {
    const { io, beginOffset, endOffset } = this;
    const { stack } = io;
    await io.loadOwners(beginOffset / SECTOR_BYTES, endOffset / SECTOR_BYTES);
    const isRemoved = new Set(removed);
    const older = stack.all().filter((layer) => layer !== stack.head);
    const kept = mergeRanges(
      (await this.dataOf(older.filter((layer) => !isRemoved.has(layer)))).flatMap((d) => d.ranges),
    );
    const dead = await this.dataOf(removed);
    const deadRanges = mergeRanges(dead.flatMap((d) => d.ranges));
    const ownedBefore = this.headBytes();
    await this.hide(mergeRanges([...kept, ...deadRanges]));
    if (deadRanges.length > 0) {
      await io.syncLayer(stack.head);
      for (const { layer, ranges } of dead) await this.punchRemoved(layer, ranges);
      await this.punchHead(subtractRanges(deadRanges, kept));
    }
    const deadBytes = dead.reduce((sum, d) => sum + totalBytes(d.ranges), 0);
    return ownedBefore - this.headBytes() + deadBytes;
  }

  /** Data of these layers within the trimmed range; layers without any are left out. */
  private async dataOf(layers: readonly Layer[]): Promise<LayerRanges[]> {
    const found = await Promise.all(
      layers.map(async (layer) => {
        const ranges: ByteRange[] = [];
        await visitExtents(layer, this.beginOffset, this.endOffset, (begin, end) => {
          ranges.push({
            beginOffset: alignDown(begin, SECTOR_BYTES),
            endOffset: alignUp(end, SECTOR_BYTES),
          });
        });
        return { layer, ranges: mergeRanges(ranges) };
      }),
    );
    return found.filter(({ ranges }) => ranges.length > 0);
  }

  /** The head gets zeros over older data, and a hole elsewhere. */
  private async hide(olderData: readonly ByteRange[]): Promise<void> {
    const { io } = this;
    const { stack } = io;
    for (const { beginOffset, endOffset } of olderData) {
      const { file } = stack.head;
      try {
        await writeZeroes(io.queue, io.scratch, file, beginOffset, endOffset);
      } catch (error) {
        await visitExtents(stack.head, beginOffset, endOffset, (begin, end) =>
          this.note(begin, end, stack.headId),
        );
        throw error;
      }
      this.note(beginOffset, endOffset, stack.headId);
    }
    await this.punchHead(gapsBetween(olderData, this.beginOffset, this.endOffset));
  }

  /** Only where no older layer has data. */
  private async punchHead(ranges: readonly ByteRange[]): Promise<void> {
    const { io } = this;
    const { file } = io.stack.head;
    for (const { beginOffset, endOffset } of ranges) {
      if (this.headBytes(beginOffset, endOffset) === 0) continue;
      await clearSectors(io.queue, io.scratch, DISK_OP.punchHole, file, beginOffset, endOffset);
      this.note(beginOffset, endOffset, 0);
    }
  }

  private async punchRemoved(layer: Layer, ranges: readonly ByteRange[]): Promise<void> {
    const { io } = this;
    const file = await io.openWritable(layer);
    try {
      for (const { beginOffset, endOffset } of ranges) {
        await clearSectors(io.queue, io.scratch, DISK_OP.punchHole, file, beginOffset, endOffset);
      }
      await file.sync();
    } finally {
      await file.close();
    }
  }

  private note(beginOffset: number, endOffset: number, owner: number): void {
    this.io.stack.index.fill(beginOffset / SECTOR_BYTES, endOffset / SECTOR_BYTES, owner);
  }

  /** Bytes of the range that the head owns now. */
  private headBytes(beginOffset = this.beginOffset, endOffset = this.endOffset): number {
    const { index, headId } = this.io.stack;
    const endSector = endOffset / SECTOR_BYTES;
    let sectors = 0;
    for (let sector = beginOffset / SECTOR_BYTES; sector < endSector; ) {
      const next = index.runEnd(sector, endSector);
      if (index.ownerAt(sector) === headId) sectors += next - sector;
      sector = next;
    }
    return sectors * SECTOR_BYTES;
  }
}

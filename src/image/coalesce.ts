// The long work of a purge, next to I/O. Coalesce makes one file of a removed parent and its child:
// the smaller of the two is copied down into the larger, which the child then takes over (replace).
// Prune punches out of the removed snapshot behind the head what the head hides.
//
// Data only ever goes down, into a file whose new extents the file above hides: a power failure
// leaves blocks that are allocated and not written, which read zero. So when the parent is the
// smaller one, it first loses what the child hides; then no block is in both files, either may
// be on top, and the two files exchange their names in one step.

import { intersectRanges } from '../core/byte-ranges.js';
import { StorageError } from '../core/errors.js';
import type { DiskFile } from '../disk/disk.js';
import type { WorkOptions } from './chain-info.js';
import type { ChainIo } from './chain-io.js';
import {
  checkGoesOn,
  ExtentCopier,
  LISTED_BYTES,
  punchRanges,
  sectorRanges,
} from './extent-copy.js';
import type { Layer } from './layer-stack.js';

/** To punch a small extent takes longer than to copy it, as measured on ext4: three times. */
const PUNCH_COST = 2;

export class Coalescer {
  private readonly io: ChainIo;
  private readonly parent: Layer;
  private readonly child: Layer;
  private readonly parentIsLowest: boolean;
  private readonly options: WorkOptions;

  /**
   * @param parent, child of their own, open for writing; they stand for the files, not the names.
   * @param parentIsLowest nothing lies below the parent, so that a hole in it reads zero.
   */
  constructor(
    io: ChainIo,
    parent: Layer,
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

  /**
   * Durable when it returns: the file that now has the parent's name holds the data of both.
   * @param exchangeNames swaps the names of the two files, durably; false where that cannot be.
   * @throws CANCELLED, NO_SPACE, IO_ERROR.
   */
  async run(exchangeNames: () => Promise<boolean>): Promise<void> {
    const { parent, child } = this;
    if (parent.imageBytes > child.imageBytes) {
      throw new StorageError(
        'IMAGE_TRUNCATED',
        `${parent.file.path} has ${parent.imageBytes} bytes, more than its child ${child.diskName}`,
        { parentBytes: parent.imageBytes, childBytes: child.imageBytes },
      );
    }
    if (parent.imageBytes < child.imageBytes) {
      await parent.file.truncate(child.imageBytes);
      parent.imageBytes = child.imageBytes;
    }
    const parentBytes = await parent.file.allocatedBytes();
    const childBytes = await child.file.allocatedBytes();
    const hasSmallParent = parentBytes * PUNCH_COST < childBytes;
    const isExchanged = hasSmallParent && (await this.exchange(exchangeNames));
    if (isExchanged) await this.copyDown(parent, child.file);
    else await this.copyDown(child, parent.file);
  }

  private async exchange(exchangeNames: () => Promise<boolean>): Promise<boolean> {
    const { io, parent, child, options } = this;
    for (let begin = 0; begin < parent.imageBytes; begin += LISTED_BYTES) {
      checkGoesOn(io, options);
      const end = Math.min(parent.imageBytes, begin + LISTED_BYTES);
      const own = await sectorRanges(parent, begin, end);
      if (own.length === 0) continue;
      const hidden = intersectRanges(own, await sectorRanges(child, begin, end));
      await punchRanges(io, parent.file, hidden, options);
    }
    // The size and the holes, before the child's data may come to lie below.
    await parent.file.sync();
    checkGoesOn(io, options);
    return await exchangeNames();
  }

  private async copyDown(from: Layer, to: DiskFile): Promise<void> {
    await new ExtentCopier(this.io, from, to, this.parentIsLowest, this.options).copy();
    await to.sync();
  }
}

/**
 * Punches the head's extents out of the removed snapshot right behind it.
 * @param snapshot open for writing.
 */
export async function pruneBehind(
  io: ChainIo,
  snapshot: Layer,
  head: Layer,
  options: WorkOptions,
): Promise<void> {
  const snapshotBytes = snapshot.imageBytes;
  if (snapshotBytes > head.imageBytes) {
    throw new StorageError('IMAGE_TRUNCATED', `${snapshot.file.path} is larger than the head`, {
      snapshotBytes,
    });
  }
  for (let begin = 0; begin < snapshotBytes; begin += LISTED_BYTES) {
    checkGoesOn(io, options);
    const end = Math.min(snapshotBytes, begin + LISTED_BYTES);
    await pruneRange(io, snapshot, head, begin, end, options);
    options.onProgress?.(end, snapshotBytes);
  }
  await snapshot.file.sync();
}

async function pruneRange(
  io: ChainIo,
  snapshot: Layer,
  head: Layer,
  begin: number,
  end: number,
  options: WorkOptions,
): Promise<void> {
  const own = await sectorRanges(snapshot, begin, end);
  if (own.length === 0) return;
  const hiding = await listHead(io, head, begin, end);
  const hidden = intersectRanges(own, hiding);
  if (hidden.length === 0) return;
  // What hides the snapshot's data must be durable before that data goes. It stays: a trim that
  // takes data from the head takes it from the snapshot too.
  await io.syncLayer(head);
  await punchRanges(io, snapshot.file, hidden, options);
}

/** With no write under way: what a write has allocated and not yet written hides nothing for good. */
async function listHead(
  io: ChainIo,
  head: Layer,
  begin: number,
  end: number,
): ReturnType<typeof sectorRanges> {
  const held = await io.holdRange(begin, end, true);
  try {
    return await sectorRanges(head, begin, end);
  } finally {
    held.release();
  }
}

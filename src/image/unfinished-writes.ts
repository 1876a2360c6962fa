// What a power failure leaves of writes that did not end. A file system gives a write into a hole its
// space first, as an unwritten extent, and calls it written when the data is in. When the power fails
// in between, the head keeps an extent that reads zero and would hide the older layer's data, which
// may have been flushed long ago (P2). It must never touch an extent that somebody made on purpose:
// the caller names the ranges in which this program may have been writing, and there every unwritten
// extent of a head is such a leftover, because trims write real zeros.

import type { ByteRange } from '../core/byte-ranges.js';
import { alignDown, alignUp, SECTOR_BYTES } from '../core/units.js';
import { DISK_OP } from '../disk/disk.js';
import type { ChainIo } from './chain-io.js';
import { clearSectors } from './disk-work.js';

const BATCH = 1024;

/** Makes holes of them, durably. Before any sector of the head is read. @returns bytes cleared. */
export async function clearUnfinishedWrites(
  io: ChainIo,
  ranges: readonly ByteRange[],
): Promise<number> {
  const { head } = io.stack;
  if (!head.listsExtents) return 0;
  let clearedBytes = 0;
  for (const range of ranges) {
    const endOffset = Math.min(range.endOffset, head.imageBytes);
    for (let begin = range.beginOffset; begin < endOffset; ) {
      const extents = await head.file.unwrittenExtents(begin, endOffset, BATCH);
      for (const extent of extents) {
        // Where blocks are smaller than sectors, what is left of a sector keeps what it has.
        const from = alignUp(extent.beginOffset, SECTOR_BYTES);
        const to = alignDown(extent.endOffset, SECTOR_BYTES);
        if (from >= to) continue;
        await clearSectors(io.queue, io.scratch, DISK_OP.punchHole, head.file, from, to);
        clearedBytes += to - from;
      }
      if (extents.length < BATCH) break;
      begin = (extents.at(-1) as ByteRange).endOffset;
    }
  }
  if (clearedBytes > 0) await head.file.sync();
  return clearedBytes;
}

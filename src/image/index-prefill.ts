// Fills the owner index of a deep chain in the background, page by page, so that only the very first
// requests wait for extents to be listed. It starts with the first request, not at open: a process
// that opened the chain early (live upgrade) must see the files as they are at its first I/O. A page
// is loaded under its range, as a read would: no change of the chain runs meanwhile.

import { MIB, SECTOR_BYTES } from '../core/units.js';
import type { ChainIo } from './chain-io.js';

/** In a chain of fewer layers a page is loaded in no time when it is needed. */
const LAYERS_MIN = 4;
/** Pages beyond are loaded when needed: each sector takes a byte of memory. */
const PREFILL_SECTORS_MAX = 16 * MIB;

export class IndexPrefill {
  private readonly io: ChainIo;
  private isRunning = false;

  constructor(io: ChainIo) {
    this.io = io;
  }

  /** Called when a request found a page that is not loaded. */
  start(): void {
    if (this.isRunning || this.io.stack.count < LAYERS_MIN) return;
    this.isRunning = true;
    void this.run().finally(() => {
      this.isRunning = false;
    });
  }

  private async run(): Promise<void> {
    const { io } = this;
    for (let sector = 0; sector < PREFILL_SECTORS_MAX; ) {
      if (io.refusal !== null) return;
      const next = io.stack.index.firstUnloaded(sector);
      if (next === null) return;
      const { beginSector, endSector } = next;
      sector = endSector;
      const held = await io.holdRange(beginSector * SECTOR_BYTES, endSector * SECTOR_BYTES, false);
      try {
        // The chain may have been closed while this waited for the range.
        if (io.refusal === null) await io.stack.index.load(beginSector, endSector);
      } catch {
        // Whoever needs the page tries again and reports what is wrong.
        return;
      } finally {
        held.release();
      }
    }
  }
}

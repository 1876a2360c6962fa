// Which sectors were written, in two generations: since the flush before the last one, and since
// the last one. When a replica leaves, this is what it may have answered without having made it
// durable. One bit a sector, in chunks that exist only where something was written.

import type { ByteRange } from '../core/byte-ranges.js';
import { SECTOR_BYTES } from '../core/units.js';

/** Bits of one chunk: 128 MiB of volume in 4 KiB of memory. */
const CHUNK_SECTORS = 32_768;

export class WrittenRanges {
  private current = new Map<number, Uint8Array>();
  private previous = new Map<number, Uint8Array>();
  /** The chunk used last; writes are often near each other. */
  private lastIndex = -1;
  private lastChunk: Uint8Array | null = null;

  /** Any range; partial sectors count whole. */
  note(offsetBytes: number, lengthBytes: number): void {
    const first = Math.floor(offsetBytes / SECTOR_BYTES);
    const end = Math.ceil((offsetBytes + lengthBytes) / SECTOR_BYTES);
    for (let sector = first; sector < end; ) {
      const index = Math.floor(sector / CHUNK_SECTORS);
      const chunkEnd = Math.min(end, (index + 1) * CHUNK_SECTORS);
      setBits(this.chunk(index), sector % CHUNK_SECTORS, chunkEnd - sector);
      sector = chunkEnd;
    }
  }

  noteAll(ranges: readonly ByteRange[]): void {
    for (const { beginOffset, endOffset } of ranges)
      this.note(beginOffset, endOffset - beginOffset);
  }

  /** A flush begins: what it covers is kept apart until it has succeeded. */
  rotate(): void {
    const older = this.previous;
    this.previous = this.current;
    this.current = new Map();
    this.lastIndex = -1;
    // A flush that failed, or another one still running, has not covered the older ones.
    for (const [index, bits] of older) {
      const kept = this.previous.get(index);
      if (kept === undefined) this.previous.set(index, bits);
      else
        for (let i = 0; i < bits.length; i++) kept[i] = (kept[i] as number) | (bits[i] as number);
    }
  }

  /** The flush has succeeded: what was written before it is durable. */
  forgetPrevious(): void {
    this.previous = new Map();
  }

  /** Normal list. */
  ranges(): ByteRange[] {
    const found: { beginOffset: number; endOffset: number }[] = [];
    const indexes = [...new Set([...this.previous.keys(), ...this.current.keys()])];
    for (const index of indexes.sort((a, b) => a - b)) {
      const chunks = [this.previous.get(index), this.current.get(index)];
      collectRuns(chunks, index * CHUNK_SECTORS, found);
    }
    return found;
  }

  private chunk(index: number): Uint8Array {
    if (index === this.lastIndex && this.lastChunk !== null) return this.lastChunk;
    let chunk = this.current.get(index);
    if (chunk === undefined) {
      chunk = new Uint8Array(CHUNK_SECTORS / 8);
      this.current.set(index, chunk);
    }
    this.lastIndex = index;
    this.lastChunk = chunk;
    return chunk;
  }
}

function setBits(chunk: Uint8Array, first: number, count: number): void {
  for (let bit = first; bit < first + count; ) {
    if (bit % 8 === 0 && first + count - bit >= 8) {
      chunk[bit >>> 3] = 0xff;
      bit += 8;
    } else {
      chunk[bit >>> 3] = (chunk[bit >>> 3] as number) | (1 << (bit & 7));
      bit++;
    }
  }
}

/** Appends the runs of set bits of any of the chunks, joined to the last one found where they touch. */
function collectRuns(
  chunks: readonly (Uint8Array | undefined)[],
  firstSector: number,
  found: { beginOffset: number; endOffset: number }[],
): void {
  for (let byte = 0; byte < CHUNK_SECTORS / 8; byte++) {
    let bits = 0;
    for (const chunk of chunks) bits |= chunk?.[byte] ?? 0;
    for (let bit = 0; bits !== 0 && bit < 8; bit++) {
      if ((bits & (1 << bit)) === 0) continue;
      const beginOffset = (firstSector + byte * 8 + bit) * SECTOR_BYTES;
      const last = found.at(-1);
      if (last?.endOffset === beginOffset) last.endOffset += SECTOR_BYTES;
      else found.push({ beginOffset, endOffset: beginOffset + SECTOR_BYTES });
    }
  }
}

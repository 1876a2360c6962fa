// The content of volume.intents: two slots of 4 KiB, each a bitmap of regions. Pure codec; write-intents.ts
// has the file. It must never lose a bit that was durable, whatever a torn write leaves.
//
// Each sector of 512 bytes describes itself: magic, version, index, region size, volume size, checksum,
// then 3,840 bits. Hence a slot that is half old and half new reads as the union of what its sectors say:
// - adding bits to a slot: each sector holds the old bits or more;
// - reusing a slot whose bits were forgotten: each sector holds forgotten bits (harmless) or the new
//   ones, and nobody relies on the new ones before the whole slot is durable.
// A sector torn within its 512 bytes fails its checksum, and then nothing is known. Bits change
// their meaning (region size) only in a new file that replaces the old one.

import { crc32 } from 'node:zlib';
import { type ByteRange, mergeRanges } from '../core/byte-ranges.js';
import { MIB, SECTOR_BYTES } from '../core/units.js';

export const SLOT_BYTES = SECTOR_BYTES;
export const INTENTS_BYTES = 2 * SLOT_BYTES;
const PIECE_BYTES = 512;
const HEADER_BYTES = 32;
const PIECE_COUNT = SLOT_BYTES / PIECE_BYTES;
const PIECE_BITMAP_BYTES = PIECE_BYTES - HEADER_BYTES;
export const BITMAP_BYTES = PIECE_COUNT * PIECE_BITMAP_BYTES;
export const REGIONS_MAX = BITMAP_BYTES * 8;

const MAGIC = 0x544e_494c; // "LINT"
const VERSION = 1;
const FLAG_UNKNOWN = 1;

/** Regions of one slot. */
export interface IntentSet {
  /** True when writes may have landed anywhere. */
  readonly isUnknown: boolean;
  /** Bit i: region i, lowest bit first. */
  readonly bits: Uint8Array;
}

/** What a whole file says. */
export interface StoredIntents {
  readonly isUnknown: boolean;
  /** Normal list, not clipped to the volume. */
  readonly ranges: readonly ByteRange[];
  /** Of every piece; null when they differ or one is invalid. */
  readonly regionBytes: number | null;
}

/** Smallest power of two ≥ 1 MiB with which the volume's regions fit one slot. */
export function regionBytesFor(sizeBytes: number): number {
  let regionBytes = MIB;
  while (Math.ceil(sizeBytes / regionBytes) > REGIONS_MAX) regionBytes *= 2;
  return regionBytes;
}

/** @param slot SLOT_BYTES; overwritten whole. */
export function encodeSlot(
  slot: Uint8Array,
  sizeBytes: number,
  regionBytes: number,
  set: IntentSet,
): void {
  slot.fill(0);
  for (let i = 0; i < PIECE_COUNT; i++) {
    const piece = slot.subarray(i * PIECE_BYTES, (i + 1) * PIECE_BYTES);
    const view = new DataView(piece.buffer, piece.byteOffset, PIECE_BYTES);
    view.setUint32(0, MAGIC, true);
    view.setUint16(4, VERSION, true);
    view.setUint8(6, i);
    view.setUint8(7, set.isUnknown ? FLAG_UNKNOWN : 0);
    view.setBigUint64(8, BigInt(regionBytes), true);
    view.setBigUint64(16, BigInt(sizeBytes), true);
    const bits = set.bits.subarray(i * PIECE_BITMAP_BYTES, (i + 1) * PIECE_BITMAP_BYTES);
    piece.set(bits, HEADER_BYTES);
    view.setUint32(28, checksumOf(piece), true);
  }
}

/** What any file of this name says; anything odd means that nothing is known. */
export function decodeFile(content: Uint8Array): StoredIntents {
  let isUnknown = content.length !== INTENTS_BYTES;
  const ranges: ByteRange[] = [];
  const regionSizes = new Set<number | null>(isUnknown ? [null] : []);
  for (let at = 0; at + PIECE_BYTES <= content.length; at += PIECE_BYTES) {
    const index = (at % SLOT_BYTES) / PIECE_BYTES;
    const piece = decodePiece(content.subarray(at, at + PIECE_BYTES), index, ranges);
    if (piece === null || piece.isUnknown) isUnknown = true;
    regionSizes.add(piece?.regionBytes ?? null);
  }
  const [first = null] = regionSizes;
  const regionBytes = regionSizes.size === 1 ? first : null;
  return { isUnknown, ranges: mergeRanges(ranges), regionBytes };
}

export function rangesOf(bits: Uint8Array, regionBytes: number, firstRegion = 0): ByteRange[] {
  const ranges: ByteRange[] = [];
  for (let region = 0; region < bits.length * 8; region++) {
    if (!hasBit(bits, region)) continue;
    const beginOffset = (firstRegion + region) * regionBytes;
    ranges.push({ beginOffset, endOffset: beginOffset + regionBytes });
  }
  return mergeRanges(ranges);
}

export function hasBit(bits: Uint8Array, index: number): boolean {
  return ((bits[index >>> 3] as number) & (1 << (index & 7))) !== 0;
}

/** Marks every region that the range touches. */
export function setBits(
  bits: Uint8Array,
  regionBytes: number,
  beginOffset: number,
  endOffset: number,
): void {
  const last = Math.min(REGIONS_MAX, Math.ceil(endOffset / regionBytes)) - 1;
  for (let region = Math.floor(beginOffset / regionBytes); region <= last; region++) {
    bits[region >>> 3] = (bits[region >>> 3] as number) | (1 << (region & 7));
  }
}

/** Adds the piece's regions; null when it is invalid. */
function decodePiece(
  piece: Uint8Array,
  index: number,
  ranges: ByteRange[],
): { isUnknown: boolean; regionBytes: number } | null {
  const view = new DataView(piece.buffer, piece.byteOffset, PIECE_BYTES);
  if (view.getUint32(0, true) !== MAGIC || view.getUint16(4, true) !== VERSION) return null;
  if (view.getUint8(6) !== index || view.getUint32(28, true) !== checksumOf(piece)) return null;
  const regionBytes = Number(view.getBigUint64(8, true));
  ranges.push(
    ...rangesOf(piece.subarray(HEADER_BYTES), regionBytes, index * PIECE_BITMAP_BYTES * 8),
  );
  return { isUnknown: view.getUint8(7) !== 0, regionBytes };
}

/** Of everything but the checksum itself. */
function checksumOf(piece: Uint8Array): number {
  return crc32(piece.subarray(HEADER_BYTES), crc32(piece.subarray(0, 28)));
}

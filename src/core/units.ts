// Units and the only conversions between them. Offsets and lengths are bytes held in plain
// numbers (exact up to 2^53 - 1, far beyond any volume); 64-bit wire fields enter through one door.

import { StorageError } from './errors.js';

/** Tracking unit of the image chain, of read-modify-write and of unmap (Longhorn's VolumeSectorSize). */
export const SECTOR_BYTES = 4096;
export const KIB = 1024;
export const MIB = 1024 * 1024;
export const GIB = 1024 * 1024 * 1024;

const TWO_32 = 0x1_0000_0000;
const SAFE_HIGH_MAX = 0x1f_ffff;

/** Joins two unsigned 32-bit halves. @throws UNSAFE_INTEGER above 2^53 - 1. */
export function u64FromHalves(high: number, low: number, what: string): number {
  if (high > SAFE_HIGH_MAX) {
    throw new StorageError('UNSAFE_INTEGER', `${what} is above 2^53 - 1`, { high, low });
  }
  return high * TWO_32 + low;
}

/** @throws UNSAFE_INTEGER outside the exact range of a number. */
export function bigintToNumber(value: bigint, what: string): number {
  if (value > 9007199254740991n || value < -9007199254740991n) {
    throw new StorageError('UNSAFE_INTEGER', `${what} is beyond 2^53 - 1`, {
      value: String(value),
    });
  }
  return Number(value);
}

/** Upper 32 bits of a non-negative byte offset. */
export function highHalf(value: number): number {
  return Math.floor(value / TWO_32);
}

/** Lower 32 bits of a non-negative byte offset. */
export function lowHalf(value: number): number {
  return value % TWO_32;
}

export function isSectorAligned(valueBytes: number): boolean {
  return valueBytes % SECTOR_BYTES === 0;
}

export function alignDown(valueBytes: number, unitBytes: number): number {
  return valueBytes - (valueBytes % unitBytes);
}

export function alignUp(valueBytes: number, unitBytes: number): number {
  return alignDown(valueBytes + unitBytes - 1, unitBytes);
}

const SIZE_PATTERN = /^(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?$/i;
const SIZE_FACTOR: Record<string, number> = {
  '': 1,
  k: KIB,
  m: MIB,
  g: GIB,
  t: 1024 * GIB,
  p: 1024 * 1024 * GIB,
};

/** Parses `42`, `42k`, `42mb`, `1.5GiB` (1024-based like Longhorn's CLI). @throws INVALID_ARGUMENT. */
export function parseSizeBytes(text: string): number {
  const match = SIZE_PATTERN.exec(text.trim());
  const factor = match === null ? undefined : SIZE_FACTOR[(match[2] ?? '').toLowerCase()];
  const size = match === null ? Number.NaN : Math.floor(Number(match[1]) * (factor ?? Number.NaN));
  if (!Number.isSafeInteger(size)) {
    throw new StorageError('INVALID_ARGUMENT', `'${text}' is not a size such as 512m or 10g`);
  }
  return size;
}

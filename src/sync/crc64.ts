// CRC-64 with the ISO 3309 polynomial, as Longhorn records it for snapshots (Go's crc64.ISO).
// The polynomial x^64 + x^4 + x^3 + x + 1 is so sparse that eight bytes are folded with a few
// shifts and no tables: x^64 equals 1 + x + x^3 + x^4. Bits are reflected: bit 63 stands for x^0.

import { assert } from '../core/assert.js';
import { KIB } from '../core/units.js';

/** Longer runs of zeros are skipped by a multiplication instead of being fed through. */
const ZERO_SKIP_BYTES_MIN = 256 * KIB;
const WORD_MASK = 0xffff_ffff_ffff_ffffn;
/** x^0 in reflected order. */
const ONE = 1n << 63n;
/** x^64 modulo the polynomial. */
const POLYNOMIAL = 0xd800_0000_0000_0000n;

export class Crc64 {
  // All bits set at the start, as Go inverts before and after.
  private low = -1;
  private high = -1;

  /** @param bytes at any length; whole 8-byte words at a 4-byte aligned address are fast. */
  update(bytes: Uint8Array): void {
    const wordBytes = bytes.byteOffset % 4 === 0 ? bytes.length - (bytes.length % 8) : 0;
    if (wordBytes > 0) {
      this.updateWords(new Int32Array(bytes.buffer, bytes.byteOffset, wordBytes / 4));
    }
    for (let i = wordBytes; i < bytes.length; i++) this.updateByte(bytes[i] as number);
  }

  /** The same as update with so many zero bytes, in a time that hardly depends on the count. */
  updateZeros(count: number): void {
    if (count >= ZERO_SKIP_BYTES_MIN) {
      const state = (BigInt(this.high >>> 0) << 32n) | BigInt(this.low >>> 0);
      const moved = multiply(state, powerOfX(count * 8));
      this.low = Number(moved & 0xffff_ffffn) | 0;
      this.high = Number(moved >> 32n) | 0;
      return;
    }
    const words = Math.floor(count / 8);
    for (let i = 0; i < words; i++) this.fold(0, 0);
    for (let i = words * 8; i < count; i++) this.updateByte(0);
  }

  /** 16 lower-case hex digits. */
  digest(): string {
    const hex = (word: number): string => (~word >>> 0).toString(16).padStart(8, '0');
    return hex(this.high) + hex(this.low);
  }

  private updateWords(words: Int32Array): void {
    assert(words.length % 2 === 0, 'a CRC word is two halves');
    let low = this.low;
    let high = this.high;
    for (let i = 0; i < words.length; i += 2) {
      const l = low ^ (words[i] as number);
      const h = high ^ (words[i + 1] as number);
      // Bits that the shifts push out below x^63 stand for x^64 and up: fold them once more.
      const over = (l << 31) ^ (l << 29) ^ (l << 28);
      low = l ^ ((l >>> 1) | (h << 31)) ^ ((l >>> 3) | (h << 29)) ^ ((l >>> 4) | (h << 28));
      high = h ^ (h >>> 1) ^ (h >>> 3) ^ (h >>> 4);
      high ^= over ^ (over >>> 1) ^ (over >>> 3) ^ (over >>> 4);
    }
    this.low = low;
    this.high = high;
  }

  private fold(lowWord: number, highWord: number): void {
    FOLDED[0] = lowWord;
    FOLDED[1] = highWord;
    this.updateWords(FOLDED);
  }

  private updateByte(byte: number): void {
    let low = this.low ^ byte;
    let high = this.high;
    for (let bit = 0; bit < 8; bit++) {
      const isCarry = (low & 1) === 1;
      low = (low >>> 1) | (high << 31);
      high = (high >>> 1) ^ (isCarry ? 0xd800_0000 : 0);
    }
    this.low = low;
    this.high = high;
  }
}

const FOLDED = new Int32Array(2);

/** Product of two reflected polynomials modulo the CRC's. */
function multiply(a: bigint, b: bigint): bigint {
  let product = 0n;
  let shifted = b;
  for (let bit = 63n; bit >= 0n; bit--) {
    if (((a >> bit) & 1n) === 1n) product ^= shifted;
    const carry = shifted & 1n;
    shifted >>= 1n;
    if (carry === 1n) shifted ^= POLYNOMIAL;
  }
  return product & WORD_MASK;
}

/** x^(2^index), filled on demand. */
const SQUARES: bigint[] = [ONE >> 1n];

/** x^exponent modulo the polynomial; the exponent may exceed 32 bits. */
function powerOfX(exponent: number): bigint {
  let result = ONE;
  let rest = exponent;
  for (let index = 0; rest > 0; index++) {
    const previous = SQUARES[index - 1];
    if (index >= SQUARES.length && previous !== undefined) {
      SQUARES.push(multiply(previous, previous));
    }
    if (rest % 2 === 1) result = multiply(result, SQUARES[index] ?? ONE);
    rest = Math.floor(rest / 2);
  }
  return result;
}

// The set of bytes a transfer has covered, as merged ranges. Workers cover a file nearly in order,
// so the list stays short; a peer that scatters its pieces on purpose makes it give up, which only
// means that the transfer never counts as complete.

import type { Interval } from './query.js';

const INTERVALS_MAX = 65_536;

export class IntervalSet {
  /** Ascending, disjoint, never touching. */
  private begins: number[] = [];
  private ends: number[] = [];
  private hasOverflowed = false;

  add(interval: Interval): void {
    const { beginOffset, endOffset } = interval;
    if (beginOffset >= endOffset || this.hasOverflowed) return;
    // First range that ends at or after the new one's begin: everything before stays.
    const first = lowerBound(this.ends, beginOffset);
    let after = first;
    let begin = beginOffset;
    let end = endOffset;
    while (after < this.begins.length && (this.begins[after] as number) <= endOffset) {
      begin = Math.min(begin, this.begins[after] as number);
      end = Math.max(end, this.ends[after] as number);
      after++;
    }
    this.begins.splice(first, after - first, begin);
    this.ends.splice(first, after - first, end);
    if (this.begins.length > INTERVALS_MAX) this.hasOverflowed = true;
  }

  /** True when every byte of the interval was added. */
  covers(interval: Interval): boolean {
    if (interval.beginOffset >= interval.endOffset) return true;
    if (this.hasOverflowed) return false;
    const index = lowerBound(this.ends, interval.endOffset);
    const begin = this.begins[index];
    return begin !== undefined && begin <= interval.beginOffset;
  }

  get intervalCount(): number {
    return this.begins.length;
  }
}

/** Index of the first value that is at least the wanted one. */
function lowerBound(ascending: readonly number[], wanted: number): number {
  let low = 0;
  let high = ascending.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((ascending[middle] as number) < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Orders overlapping block requests: writers exclude everything that overlaps them, readers share.
// Requests that must wait run in arrival order. In-flight sets are small (hundreds), so a linear
// scan over two typed arrays is cheaper than any tree.

import { assert } from './assert.js';

/** Something that waits for its range; granted() runs it, possibly much later. */
export interface RangeHolder {
  granted(): void;
}

interface Waiter {
  readonly holder: RangeHolder;
  readonly beginOffset: number;
  readonly endOffset: number;
  readonly exclusive: boolean;
}

export class RangeLock {
  private begins = new Float64Array(64);
  private ends = new Float64Array(64);
  private exclusives = new Uint8Array(64);
  private holders: (RangeHolder | null)[] = [];
  private count = 0;
  private waiting: Waiter[] = [];

  /** Ranges held now; waiting ones are not counted. */
  get heldCount(): number {
    return this.count;
  }

  get waitingCount(): number {
    return this.waiting.length;
  }

  /**
   * True when the range is held at once; false when it is queued and granted() comes later.
   * @param endOffset exclusive
   */
  acquire(
    holder: RangeHolder,
    beginOffset: number,
    endOffset: number,
    exclusive: boolean,
  ): boolean {
    if (this.conflicts(beginOffset, endOffset, exclusive, this.waiting.length)) {
      this.waiting.push({ holder, beginOffset, endOffset, exclusive });
      return false;
    }
    this.hold(holder, beginOffset, endOffset, exclusive);
    return true;
  }

  /** Gives the holder's range back and grants whoever can run now. */
  release(holder: RangeHolder): void {
    const last = this.count - 1;
    let index = last;
    while (index >= 0 && this.holders[index] !== holder) index--;
    assert(index >= 0, 'a released range was held');
    this.begins[index] = this.begins[last] as number;
    this.ends[index] = this.ends[last] as number;
    this.exclusives[index] = this.exclusives[last] as number;
    this.holders[index] = this.holders[last] as RangeHolder;
    this.holders[last] = null;
    this.count = last;
    if (this.waiting.length > 0) this.grantWaiting();
  }

  private conflicts(
    begin: number,
    end: number,
    exclusive: boolean,
    waitersBefore: number,
  ): boolean {
    for (let i = 0; i < this.count; i++) {
      const overlaps = (this.begins[i] as number) < end && begin < (this.ends[i] as number);
      if (overlaps && (exclusive || this.exclusives[i] === 1)) return true;
    }
    for (let i = 0; i < waitersBefore; i++) {
      const waiter = this.waiting[i] as Waiter;
      const overlaps = waiter.beginOffset < end && begin < waiter.endOffset;
      if (overlaps && (exclusive || waiter.exclusive)) return true;
    }
    return false;
  }

  private hold(holder: RangeHolder, begin: number, end: number, exclusive: boolean): void {
    if (this.count === this.begins.length) this.grow();
    this.begins[this.count] = begin;
    this.ends[this.count] = end;
    this.exclusives[this.count] = exclusive ? 1 : 0;
    this.holders[this.count] = holder;
    this.count++;
  }

  private grow(): void {
    const size = this.begins.length * 2;
    const begins = new Float64Array(size);
    const ends = new Float64Array(size);
    const exclusives = new Uint8Array(size);
    begins.set(this.begins);
    ends.set(this.ends);
    exclusives.set(this.exclusives);
    this.begins = begins;
    this.ends = ends;
    this.exclusives = exclusives;
  }

  private grantWaiting(): void {
    const ready: Waiter[] = [];
    for (let i = 0; i < this.waiting.length; ) {
      const waiter = this.waiting[i] as Waiter;
      if (this.conflicts(waiter.beginOffset, waiter.endOffset, waiter.exclusive, i)) {
        i++;
        continue;
      }
      this.waiting.splice(i, 1);
      this.hold(waiter.holder, waiter.beginOffset, waiter.endOffset, waiter.exclusive);
      ready.push(waiter);
    }
    for (const waiter of ready) waiter.holder.granted();
  }
}

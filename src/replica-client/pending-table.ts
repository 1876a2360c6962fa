// Requests of one data connection that are not finished, by slot; the slot plus one is the frame's
// sequence number and its send token. A request is finished when it was both sent and answered.

import type { BlockRequest } from '../core/block-device.js';
import type { StorageError } from '../core/errors.js';

/** Sequence number of pings; slots begin at 1 (Longhorn's clients also begin at 1). */
export const PING_SEQ = 0;

const SENT = 1;
const ANSWERED = 2;
const FLUSHING = 4;

export class PendingTable {
  private readonly requests: (BlockRequest | null)[] = [];
  private readonly errors: (StorageError | null)[] = [];
  private readonly states: number[] = [];
  private readonly freeSlots: number[] = [];
  count = 0;

  add(request: BlockRequest): number {
    const slot = this.freeSlots.pop() ?? this.requests.length;
    this.requests[slot] = request;
    this.errors[slot] = null;
    this.states[slot] = 0;
    this.count++;
    return slot;
  }

  get(slot: number): BlockRequest | null {
    return this.requests[slot] ?? null;
  }

  errorOf(slot: number): StorageError | null {
    return this.errors[slot] ?? null;
  }

  isAnswered(slot: number): boolean {
    return ((this.states[slot] ?? 0) & ANSWERED) !== 0;
  }

  /** True when the request is now both sent and answered. */
  markSent(slot: number): boolean {
    return this.mark(slot, SENT);
  }

  markAnswered(slot: number, error: StorageError | null): boolean {
    this.errors[slot] = error;
    return this.mark(slot, ANSWERED);
  }

  /** Begins the flush that follows a request with fua. False when it was that flush that finished. */
  startFlush(slot: number): boolean {
    if (((this.states[slot] as number) & FLUSHING) !== 0) return false;
    this.states[slot] = FLUSHING;
    return true;
  }

  remove(slot: number): void {
    this.requests[slot] = null;
    this.freeSlots.push(slot);
    this.count--;
  }

  /** Empties the table. */
  takeAll(): BlockRequest[] {
    const all = this.requests.filter((request) => request !== null);
    this.requests.length = 0;
    this.freeSlots.length = 0;
    this.count = 0;
    return all;
  }

  private mark(slot: number, bit: number): boolean {
    if (this.get(slot) === null) return false;
    const state = (this.states[slot] as number) | bit;
    this.states[slot] = state;
    return (state & (SENT | ANSWERED)) === (SENT | ANSWERED);
  }
}

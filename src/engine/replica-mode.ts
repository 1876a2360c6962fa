// Modes of a replica as its engine sees it, and the only transitions there are (Longhorn's
// types.Mode). ERR is terminal: a replica returns only by being removed and added again.

import { assert } from '../core/assert.js';

export type ReplicaMode = 'WO' | 'RW' | 'ERR';

const NEXT = {
  WO: ['RW', 'ERR'], // rebuilt and verified | rebuild or write failed
  RW: ['ERR'], // a write, flush, read or ping failed or timed out
  ERR: [],
} as const satisfies Record<ReplicaMode, readonly ReplicaMode[]>;

export function canBecome(from: ReplicaMode, to: ReplicaMode): boolean {
  return (NEXT[from] as readonly ReplicaMode[]).includes(to);
}

/** A bug when the edge does not exist. */
export function assertTransition(from: ReplicaMode, to: ReplicaMode): void {
  assert(canBecome(from, to), `a replica in mode ${from} never becomes ${to}`);
}

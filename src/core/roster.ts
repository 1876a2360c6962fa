// The roster: which replicas hold every acknowledged write, as the engine last recorded it on each
// of them. It is written durably to the members before a write that an absent replica missed is
// acknowledged (P3), so whoever starts the volume later trusts the members of the newest roster it
// finds and nobody else. It also keeps what is needed to bring an absent replica back by copying
// only what it missed. Pure data; see docs/adr/0007-roster.md.

import type { ByteRange } from './byte-ranges.js';

/**
 * Label of a fork that a returning replica cut itself: its content is that replica's old head. It goes
 * when the rebuild replaces the record of the disk by the others'.
 */
export const RETURNED_LABEL = 'replica-returned';

export interface AbsentReplica {
  readonly replicaId: string;
  /**
   * Disk name of the system snapshot cut on the members after it left: everything written later is
   * in disks that did not exist then. '' when none was cut; only comparing can help then.
   */
  readonly forkDisk: string;
  /** Merged; what it may not have received: in flight when it left, or written before the fork. */
  readonly inFlight: readonly ByteRange[];
  /** Merged; what it had answered but not yet been told to make durable. */
  readonly unflushed: readonly ByteRange[];
  /** Kernel it ran on when it left; when it comes back on another one, `unflushed` may be lost. */
  readonly hostBootId: string;
  /**
   * False when it left while no engine watched: then what only it received is known to it alone,
   * and its own write intents count too.
   */
  readonly isExact: boolean;
  /** Members before it left. With as many again the entry is no longer needed. */
  readonly memberCountBefore: number;
}

export interface Roster {
  /** Generation of the engine that wrote it. */
  readonly generation: number;
  /** Counts the rosters of one engine, from 1. */
  readonly number: number;
  /** Ids of the replicas that hold every acknowledged write. */
  readonly members: readonly string[];
  readonly absent: readonly AbsentReplica[];
  /** Written by an orderly shutdown: all members are alike and durable. */
  readonly isClean: boolean;
}

/** Negative when `a` is older than `b`. */
export function compareRosters(a: Roster, b: Roster): number {
  return a.generation - b.generation || a.number - b.number;
}

/** The newest of the rosters that were found; null when there is none. */
export function newestRoster(rosters: readonly (Roster | null)[]): Roster | null {
  let newest: Roster | null = null;
  for (const roster of rosters) {
    if (roster !== null && (newest === null || compareRosters(roster, newest) > 0)) newest = roster;
  }
  return newest;
}

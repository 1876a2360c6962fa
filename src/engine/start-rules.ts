// Which replicas a starting engine trusts, and how large the volume is. Pure; the rules are
// the roster's (docs/adr/0007-roster.md), and Longhorn's where there is none (facts: engine-semantics
// §2). Connecting is done by start.ts.

import { rosterOf } from '../api/roster-message.js';
import { type ByteRange, coarsenRanges, mergeRanges, uniteRanges } from '../core/byte-ranges.js';
import { ROSTER_RANGES_MAX } from '../core/limits.js';
import { newestRoster, type AbsentReplica, type Roster } from '../core/roster.js';
import type { ReplicaInfo, WriteIntents } from './ports.js';

/**
 * Size of the volume: `currentSize` is what the control plane believes, `size` what it wants. An
 * expansion that reached every replica before a crash is accepted.
 */
export function decideVolumeSize(
  sizeBytes: number,
  currentSizeBytes: number,
  replicaSizes: readonly number[],
): number {
  if (currentSizeBytes === 0) return sizeBytes;
  const common = replicaSizes[0];
  const allExpanded = common !== undefined && replicaSizes.every((size) => size === common);
  return allExpanded && common === sizeBytes ? sizeBytes : currentSizeBytes;
}

export interface Candidate {
  readonly address: string;
  readonly info: ReplicaInfo;
}

/** Slack between the modification times of heads that still count as written together. */
const SALVAGE_SLACK_NS = 5_000_000_000n;

/**
 * The replicas to trust when none is known to be good: among those whose head changed last (give
 * or take 5 s), the one whose head holds most; a tie goes to the newest.
 */
export function salvage(candidates: readonly Candidate[]): Candidate | null {
  const modifiedNs = (c: Candidate): bigint => BigInt(c.info.lastModifyTime || '0');
  let newestNs = 0n;
  for (const candidate of candidates) {
    if (modifiedNs(candidate) > newestNs) newestNs = modifiedNs(candidate);
  }
  let best: Candidate | null = null;
  for (const candidate of candidates) {
    if (modifiedNs(candidate) + SALVAGE_SLACK_NS <= newestNs) continue;
    if (best === null || isBetter(candidate, best)) best = candidate;
  }
  return best;

  function isBetter(a: Candidate, b: Candidate): boolean {
    if (a.info.headFileSize !== b.info.headFileSize)
      return a.info.headFileSize > b.info.headFileSize;
    return modifiedNs(a) > modifiedNs(b);
  }
}

/**
 * Addresses to distrust because their revision counter is behind or kept differently.
 * @param areMembers of a roster: then their counters differ by no more than what was in flight.
 */
export function behindByRevision(
  candidates: readonly Candidate[],
  counterDisabled: boolean,
  areMembers = false,
): string[] {
  const mismatched = candidates.filter((c) => c.info.revisionCounterDisabled !== counterDisabled);
  if (counterDisabled || areMembers) return mismatched.map((c) => c.address);
  const matching = candidates.filter((c) => !mismatched.includes(c));
  const newest = Math.max(...matching.map((c) => c.info.revisionCounter), 0);
  return candidates
    .filter((c) => mismatched.includes(c) || c.info.revisionCounter !== newest)
    .map((c) => c.address);
}

/** The newest roster that the replicas keep; null when Longhorn's rules must do. */
export function rosterAmong(candidates: readonly Candidate[]): Roster | null {
  return newestRoster(candidates.map(({ info }) => rosterOf(info.roster)));
}

/** An engine that keeps no rosters has written to it since it had one. */
export function isVoided({ info }: Candidate): boolean {
  return info.rosterVoid;
}

/** Union of what the members may have written since the last checkpoint; null: everything. */
export function unionOfIntents(intents: readonly WriteIntents[]): WriteIntents {
  let union: readonly ByteRange[] = [];
  for (const ranges of intents) {
    if (ranges === null) return null;
    union = uniteRanges(union, mergeRanges(ranges));
  }
  return union;
}

/**
 * Absent replicas of a starting volume: those of the newest roster, and its members that are not
 * used. What left unseen, or got no fork, may lack anything written since the last checkpoint.
 * @param members ids of the replicas that are used.
 */
export function absentAtStart(
  roster: Roster,
  members: readonly string[],
  intents: WriteIntents,
): AbsentReplica[] {
  const remembered = roster.absent
    .filter(({ replicaId }) => !members.includes(replicaId))
    .flatMap((entry) => (entry.forkDisk === '' ? unforked(entry, intents) : [entry]));
  const lost = roster.members
    .filter((replicaId) => !members.includes(replicaId))
    .flatMap((replicaId) => {
      const entry: AbsentReplica = {
        replicaId,
        forkDisk: '',
        inFlight: [],
        unflushed: [],
        hostBootId: '',
        isExact: roster.isClean,
        memberCountBefore: roster.members.length,
      };
      return roster.isClean ? [entry] : unforked(entry, intents);
    });
  return [...remembered, ...lost];
}

/** Without intents nothing is known, and comparing must do. */
function unforked(entry: AbsentReplica, intents: WriteIntents): AbsentReplica[] {
  if (intents === null) return [];
  const inFlight = coarsenRanges(uniteRanges(entry.inFlight, intents), ROSTER_RANGES_MAX);
  return [{ ...entry, inFlight, isExact: false }];
}

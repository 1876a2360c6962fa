// Which replicas a starting engine trusts, and how large the volume is. Pure; the rules are
// Longhorn's (facts: engine-semantics §2). Connecting is done by engine.ts.

import type { ReplicaInfo } from './ports.js';

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

/** Addresses to distrust because their revision counter is behind or kept differently. */
export function behindByRevision(
  candidates: readonly Candidate[],
  counterDisabled: boolean,
): string[] {
  const mismatched = candidates.filter((c) => c.info.revisionCounterDisabled !== counterDisabled);
  if (counterDisabled) return mismatched.map((c) => c.address);
  const matching = candidates.filter((c) => !mismatched.includes(c));
  const newest = Math.max(...matching.map((c) => c.info.revisionCounter), 0);
  return candidates
    .filter((c) => mismatched.includes(c) || c.info.revisionCounter !== newest)
    .map((c) => c.address);
}

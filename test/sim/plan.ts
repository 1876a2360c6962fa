// What a seed decides in advance: how large the world is and how often what goes wrong. Not every
// seed has every fault, because one kind would otherwise hide another.

import type { Rng } from './rng.js';

export interface Plan {
  readonly nodeCount: number;
  readonly sectorCount: number;
  readonly operations: number;
  /** Client requests in flight at most. */
  readonly depth: number;
  readonly hasRevisionCounter: boolean;
  readonly latencyUs: number;
  readonly jitterUs: number;
  /** Mean time between faults, milliseconds; 0: none. */
  readonly faultEveryMs: number;
  /** Relative frequency of each kind of fault. */
  readonly faults: Readonly<Record<FaultKind, number>>;
  /** Relative frequency of each administrator's operation. */
  readonly admin: Readonly<Record<AdminKind, number>>;
  readonly adminEveryMs: number;
  readonly rpcLoss: number;
  /** Long pauses between requests, so that timers run out. */
  readonly pauseRate: number;
  readonly flushRate: number;
}

export const FAULT_KINDS = [
  'killReplica',
  'killEngine',
  'losePower',
  'partition',
  'cut',
  'slowLink',
  'diskError',
  'diskFull',
  'slowDisk',
  'leaveBehind',
  'killAll',
  'losePowerAll',
] as const;
export type FaultKind = (typeof FAULT_KINDS)[number];

export const ADMIN_KINDS = [
  'snapshot',
  'revert',
  'deleteSnapshot',
  'purge',
  'removeReplica',
  'restart',
  'compare',
  'expand',
] as const;
export type AdminKind = (typeof ADMIN_KINDS)[number];

/** Kinds that are rare where they are drawn at all. */
const RARE: ReadonlySet<string> = new Set([
  'killAll',
  'losePowerAll',
  'leaveBehind',
  'expand',
  'revert',
]);

export function planOf(rng: Rng): Plan {
  return {
    nodeCount: rng.pick([2, 3, 3, 3, 3, 4]),
    sectorCount: rng.pick([32, 64, 64, 96]),
    operations: rng.between(80, 220),
    depth: rng.pick([1, 4, 8, 16]),
    hasRevisionCounter: rng.chance(0.2),
    latencyUs: rng.pick([50, 200, 1000]),
    jitterUs: rng.pick([20, 300, 3000]),
    faultEveryMs: rng.pick([0, 1000, 3000, 5000, 10_000, 20_000]),
    faults: weights(rng, FAULT_KINDS),
    admin: weights(rng, ADMIN_KINDS),
    adminEveryMs: rng.pick([100, 500, 2000]),
    rpcLoss: rng.pick([0, 0, 0, 0.005, 0.03]),
    pauseRate: rng.pick([0, 0.02, 0.1]),
    flushRate: rng.pick([0, 0.03, 0.15]),
  };
}

function weights<K extends string>(rng: Rng, kinds: readonly K[]): Record<K, number> {
  const entries = kinds.map((kind): [K, number] => {
    const isDrawn = rng.chance(0.5);
    return [kind, isDrawn ? rng.between(1, 4) * (RARE.has(kind) ? 0.3 : 1) : 0];
  });
  return Object.fromEntries(entries) as Record<K, number>;
}

/** A kind by its weight; null when none is drawn. */
export function draw<K extends string>(rng: Rng, from: Readonly<Record<K, number>>): K | null {
  const entries = Object.entries(from) as [K, number][];
  const total = entries.reduce((sum, [, weight]) => sum + weight, 0);
  let at = rng.next() * total;
  for (const [kind, weight] of entries) {
    at -= weight;
    if (weight > 0 && at < 0) return kind;
  }
  return null;
}

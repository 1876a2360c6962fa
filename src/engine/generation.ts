// The number an engine takes when it starts. Pure; see docs/adr/0007-roster.md.

/** Numbers that one millisecond of wall time leaves apart. */
const PER_MILLISECOND = 1024;

/**
 * Larger than all its replicas have seen; of two engines that see none of each other's replicas,
 * the one started later has the larger one.
 * @param random in [0, 1)
 */
export function nextGeneration(seen: readonly number[], wallMs: number, random: number): number {
  const byTime = wallMs * PER_MILLISECOND + Math.floor(random * PER_MILLISECOND);
  return Math.max(byTime, ...seen.map((generation) => generation + 1));
}

// Finds replicas whose disk changed a snapshot behind their back, and takes them out of service. It
// hashes the snapshot anew on every replica, because such a change leaves every time stamp as it
// was, and lets the replicas outvote each other. It must never take out a replica that nothing
// speaks against, nor the last one that may be good.

import { sleepMs } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import { type Connections, withContext } from './connections.js';
import { getReplica, listReplicas, updateReplica } from './replicas.js';
import { hashOnReplicas, type HashStatus, hashStatusOf } from './snapshot-hash.js';
import { onEach } from './task-error.js';

const POLL_MS = 100;

/**
 * `good`: as most replicas have it. `corrupted`: not so. `undecided`: nobody can tell which replicas
 * are good. `unknown`: it could not be hashed.
 */
export type Verdict = 'good' | 'corrupted' | 'undecided' | 'unknown';

export interface CheckResult {
  readonly verdict: Verdict;
  /** Hexadecimal CRC-64: of the content or, when silently corrupted, of what it once was. */
  readonly checksum: string;
  /** Its checksum was recorded, and the content changed since without the file being written. */
  readonly silentlyCorrupted: boolean;
  readonly error: string;
}

/**
 * The votes are what the replicas hold, and of one that is silently corrupted what it held once. Only
 * a checksum that more than half of the votes name is good; a single vote is one.
 */
export function judgeChecksums(
  statuses: Readonly<Record<string, HashStatus>>,
): Record<string, CheckResult> {
  const all = Object.values(statuses);
  const voters = all.filter(({ state, checksum }) => state === 'complete' && checksum !== '');
  const votes = new Map<string, number>();
  for (const { checksum } of voters) votes.set(checksum, (votes.get(checksum) ?? 0) + 1);
  const [chosen] = [...votes].find(([, count]) => 2 * count > voters.length) ?? [];
  const isGood = ({ checksum, silentlyCorrupted }: HashStatus): boolean =>
    checksum === chosen && !silentlyCorrupted;
  const isDecided = voters.some(isGood);
  const verdictOn = (status: HashStatus): Verdict => {
    if (!voters.includes(status)) return 'unknown';
    if (!isDecided) return 'undecided';
    return isGood(status) ? 'good' : 'corrupted';
  };
  return Object.fromEntries(
    Object.entries(statuses).map(([address, status]) => {
      const { checksum, silentlyCorrupted, error } = status;
      return [address, { verdict: verdictOn(status), checksum, silentlyCorrupted, error }];
    }),
  );
}

/**
 * Hashes the snapshot on every replica in service and sets those that are corrupted to ERR: what
 * such a replica holds is compared as a whole when it is added again. Returns when that is done.
 * @param signal ends the waiting; the hashing goes on.
 * @returns by replica address, sorted. @throws NOT_FOUND; INVALID_STATE while the snapshot may
 * rightly differ (removed, being purged, a rebuild); CANCELLED.
 */
export async function checkSnapshot(
  connections: Connections,
  name: string,
  signal?: AbortSignal,
): Promise<Record<string, CheckResult>> {
  const live = (await listReplicas(connections)).filter(({ mode }) => mode !== 'ERR');
  const addresses = live.map(({ address }) => address).sort();
  return withContext(`failed to check snapshot ${name}`, async () => {
    const parent = await commonParent(connections, addresses, name);
    // One that runs may be content with what is recorded, and starting another would be no news to it.
    await onEach(addresses, (address) =>
      connections.syncAgent(address).snapshotHashCancel({ snapshotName: name }),
    );
    await hashOnReplicas(connections, live, name, true);
    const statuses = await onEach(addresses, (address) =>
      endedHash(connections, address, name, signal),
    );
    // A merge into the snapshot changes its layer, on one replica sooner than on the other.
    if ((await commonParent(connections, addresses, name)) !== parent) {
      throw new StorageError('INVALID_STATE', 'snapshots below it were merged meanwhile');
    }
    const results = judgeChecksums(
      Object.fromEntries(addresses.map((address, i) => [address, statuses[i] as HashStatus])),
    );
    for (const [address, { verdict }] of Object.entries(results)) {
      if (verdict === 'corrupted') await updateReplica(connections, address, 'ERR');
    }
    return results;
  });
}

async function endedHash(
  connections: Connections,
  address: string,
  name: string,
  signal: AbortSignal | undefined,
): Promise<HashStatus> {
  for (;;) {
    const status = await hashStatusOf(connections, address, name);
    if (status.state !== 'in_progress') return status;
    await sleepMs(connections.options.clock, POLL_MS, signal);
    if (signal?.aborted === true) throw new StorageError('CANCELLED', 'no longer waiting');
  }
}

/** Disk below the snapshot, when the layer must hold the same on every replica. @throws if not. */
async function commonParent(
  connections: Connections,
  addresses: readonly string[],
  name: string,
): Promise<string> {
  const parents = await onEach(addresses, async (address) => {
    const { disks } = await getReplica(connections, address);
    const disk = disks[`volume-snap-${name}.img`];
    if (disk === undefined) throw new StorageError('NOT_FOUND', `there is no snapshot ${name}`);
    if (disk.removed) {
      const text = `snapshot ${name} is marked as removed, so replicas may hold different parts`;
      throw new StorageError('INVALID_STATE', text);
    }
    const { isPurging } = await connections.syncAgent(address).snapshotPurgeStatus({});
    if (isPurging) throw new StorageError('INVALID_STATE', 'a purge is running');
    return disk.parent;
  });
  const [parent] = parents;
  if (parent === undefined) throw new StorageError('NO_BACKEND', 'no replica is in service');
  if (parents.some((other) => other !== parent)) {
    const text = 'replicas have different snapshots below it; purge all of them first';
    throw new StorageError('INVALID_STATE', text);
  }
  return parent;
}

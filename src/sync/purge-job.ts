// Purges one replica: marks the snapshots nobody asked for as removed, then gets rid of every
// removed one, from the leaves to the root. The replica process decides what each removal takes and
// does it, data work included: it alone can hold ranges against writes and trims. Each step begins
// after the one before it is durable, so a crash leaves a chain that opens and a purge that can run
// again; this job never touches a file itself.
// Source: pkg/sync/rpc/server.go snapshotPurge (on-disk §8.3).

import type {
  DiskWorkProgress,
  PrepareRemoveAction,
  Replica,
  ReplicaServiceDefinition,
} from '../api/generated/replica.js';
import { StorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import { isSnapshotDiskName } from '../image/names.js';
import { LONG_CALL_DEADLINE_MS } from '../rpc/client.js';
import type { RpcClient } from '../rpc/client.js';
import { percent } from './operation-status.js';

export type ReplicaClient = RpcClient<typeof ReplicaServiceDefinition>;

export interface PurgeOptions {
  readonly log: Logger;
  readonly replica: ReplicaClient;
  readonly signal: AbortSignal;
  readonly onProgress: (percentDone: number) => void;
}

export async function purgeSnapshots(options: PurgeOptions): Promise<void> {
  await markUnwantedSnapshots(options);
  const handled = new Set<string>();
  for (;;) {
    const replica = await getReplica(options);
    const name = nextRemovedDisk(replica, handled);
    if (name === null) return;
    handled.add(name);
    const left = countRemoved(replica, handled);
    const before = handled.size - 1;
    await removeDisk(options, name, (share) => {
      options.onProgress(percent(before + share, before + 1 + left));
    });
  }
}

async function getReplica(options: PurgeOptions): Promise<Replica> {
  const { replica } = await options.replica.replicaGet({}, { signal: options.signal });
  if (replica === undefined) throw new StorageError('PEER_ERROR', 'the replica sent no state');
  return replica;
}

/** Snapshots of rebuilds and expansions have no owner who would ever remove them. */
async function markUnwantedSnapshots(options: PurgeOptions): Promise<void> {
  const { disks, head } = await getReplica(options);
  for (const [name, disk] of Object.entries(disks)) {
    if (name === head || !isSnapshotDiskName(name) || disk.removed || disk.userCreated) continue;
    await options.replica.diskMarkAsRemoved({ name }, { signal: options.signal });
  }
}

function isRemovedSnapshot(replica: Replica, name: string): boolean {
  return replica.disks[name]?.removed === true && isSnapshotDiskName(name);
}

function countRemoved(replica: Replica, handled: ReadonlySet<string>): number {
  const names = Object.keys(replica.disks);
  return names.filter((name) => isRemovedSnapshot(replica, name) && !handled.has(name)).length;
}

/** The removed snapshot farthest from the root; the one right behind the head comes last. */
function nextRemovedDisk(replica: Replica, handled: ReadonlySet<string>): string | null {
  let best: string | null = null;
  let bestRank = Number.NEGATIVE_INFINITY;
  for (const name of Object.keys(replica.disks)) {
    if (!isRemovedSnapshot(replica, name) || handled.has(name)) continue;
    const rank = name === replica.parent ? -1 : depthOf(replica, name);
    if (rank > bestRank) {
      best = name;
      bestRank = rank;
    }
  }
  return best;
}

function depthOf(replica: Replica, name: string): number {
  const seen = new Set<string>();
  let parent = replica.disks[name]?.parent ?? '';
  while (parent !== '' && !seen.has(parent)) {
    seen.add(parent);
    parent = replica.disks[parent]?.parent ?? '';
  }
  return seen.size;
}

async function removeDisk(
  options: PurgeOptions,
  name: string,
  onShare: (share: number) => void,
): Promise<void> {
  const { operations } = await options.replica.diskPrepareRemove(
    { name },
    { signal: options.signal },
  );
  for (const operation of operations) {
    options.log.info('purge.step', { ...operation });
    await runStep(options, operation, onShare);
  }
}

async function runStep(
  options: PurgeOptions,
  step: PrepareRemoveAction,
  onShare: (share: number) => void,
): Promise<void> {
  const { replica, signal } = options;
  const { source, target } = step;
  const longCall = { signal, deadlineMs: LONG_CALL_DEADLINE_MS };
  switch (step.action) {
    case 'coalesce':
      return await followWork(replica.diskCoalesce({ source, target }, longCall), onShare);
    case 'prune':
      return await followWork(replica.diskPrune({ source, target }, longCall), onShare);
    case 'replace':
      await replica.diskReplace({ target, source }, { signal });
      return;
    case 'remove':
      await replica.diskRemove({ name: source, force: false }, { signal });
      return;
    default:
      throw new StorageError('UNSUPPORTED', `unknown purge step '${step.action}'`);
  }
}

/** Waits for the end of the stream, which comes when the work is durable. */
async function followWork(
  work: AsyncIterable<DiskWorkProgress>,
  onShare: (share: number) => void,
): Promise<void> {
  for await (const { doneBytes, totalBytes } of work) onShare(doneBytes / Math.max(totalBytes, 1));
}

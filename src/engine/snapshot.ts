// Snapshots of the whole volume: limits, the cut itself behind the write barrier, and revert.

import { randomUUID } from 'node:crypto';
import { BLOCK_OP, submitAndWait } from '../core/block-device.js';
import type { Clock } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import { CHAIN_LAYERS_MAX } from '../core/limits.js';
import { checkSnapshotName } from '../core/snapshot-name.js';
import type { FrontendPort } from './frontend-port.js';
import type { ReplicaInfo, ReplicaPort, SnapshotRecord } from './ports.js';
import type { MemberResult, ReplicaGroup } from './replica-group.js';
import type { EngineSettings } from './settings.js';
import type { Volume } from './volume.js';

/** Time stamps in metadata: RFC 3339, whole seconds, UTC. */
export function createdNow(clock: Clock): string {
  return clock
    .wallTime()
    .toISOString()
    .replace(/\.\d+Z$/, 'Z');
}

export function snapshotDiskName(name: string): string {
  return `volume-snap-${name}.img`;
}

/** @throws TOO_MANY_SNAPSHOTS, SNAPSHOT_SPACE_EXCEEDED, NO_BACKEND. Longhorn's canDoSnapshot. */
export async function checkSnapshotLimits(
  group: ReplicaGroup,
  settings: EngineSettings,
): Promise<void> {
  const infos = (await group.infos()).map(({ info }) => info);
  if (infos.length === 0) {
    throw new StorageError('NO_BACKEND', 'cannot get an valid result for snapshot usage');
  }
  const most = (pick: (info: ReplicaInfo) => number): number => Math.max(...infos.map(pick));
  const usage = most((info) => info.snapshotCountUsage);
  if (usage >= settings.snapshotMaxCount) {
    throw new StorageError(
      'TOO_MANY_SNAPSHOTS',
      `snapshot count usage ${usage} is equal or larger than snapshotMaxCount ${settings.snapshotMaxCount}`,
    );
  }
  const total = most((info) => info.snapshotCountTotal);
  if (total >= CHAIN_LAYERS_MAX) {
    throw new StorageError(
      'TOO_MANY_SNAPSHOTS',
      `snapshot count total is already too big: ${total}`,
    );
  }
  if (settings.snapshotMaxBytes === 0) return;
  const remaining = settings.snapshotMaxBytes - most((info) => info.snapshotSizeUsage);
  const head = most((info) => info.headFileSize);
  if (head > remaining) {
    throw new StorageError(
      'SNAPSHOT_SPACE_EXCEEDED',
      `snapshot free space ${remaining} is not enough for head file ${head}`,
    );
  }
}

/** Cuts the snapshot on every live replica; the caller holds the barrier. */
export async function cutSnapshot(
  group: ReplicaGroup,
  record: SnapshotRecord,
  alsoOn: ReplicaPort | null = null,
): Promise<void> {
  const results = await group.onLive((port) => port.control.snapshot(record));
  const existing = results.find((result) => result.error?.code === 'ALREADY_EXISTS');
  if (existing?.error) {
    // One that is being rebuilt may lack the layer of that name, and have cut another one.
    const alone = ({ member, error }: MemberResult): boolean =>
      error === null && member.mode === 'WO';
    for (const { member } of results.filter(alone)) group.fail(member, existing.error);
    throw existing.error;
  }
  group.settle(results);
  if (group.membership.readable.length === 0) {
    throw new StorageError('NO_BACKEND', 'no backend available');
  }
  if (alsoOn !== null) await alsoOn.control.snapshot(record);
}

/**
 * Does ahead what a cut would do while clients wait: the snapshot's files are made, and what was
 * written becomes durable. The first of two flushes takes as long as there is much to sync, the second
 * only what came meanwhile.
 */
export async function prepareCut(
  group: ReplicaGroup,
  volume: Volume,
  record: SnapshotRecord,
  alsoOn: ReplicaPort | null = null,
): Promise<void> {
  const prepare = (port: ReplicaPort): Promise<void> => port.control.prepareSnapshot(record);
  // Longhorn's replicas cannot; who does not for another reason fails at the cut as well.
  await Promise.all([group.onLive(prepare), alsoOn && prepare(alsoOn).catch(() => undefined)]);
  for (let flush = 1; flush <= 2; flush++) {
    // What fails here fails at the cut too, which knows what follows from it.
    await submitAndWait(volume, { op: BLOCK_OP.flush }).catch(() => undefined);
  }
}

/** Returns the snapshot's name: the given one, or a new UUID. @throws INVALID_NAME and as above. */
export async function takeSnapshot(
  group: ReplicaGroup,
  volume: Volume,
  settings: EngineSettings,
  clock: Clock,
  name: string,
  labels: Readonly<Record<string, string>>,
): Promise<string> {
  const snapshotName = name === '' ? randomUUID() : name;
  // Before any replica is asked: one of Longhorn's fails at a name that is none, and would leave.
  checkSnapshotName(snapshotName);
  await checkSnapshotLimits(group, settings);
  const record = { name: snapshotName, userCreated: true, created: createdNow(clock), labels };
  await prepareCut(group, volume, record);
  await volume.withBarrier(() => cutSnapshot(group, record));
  return snapshotName;
}

/** @throws INVALID_STATE, NOT_FOUND; in Longhorn's order: modes, snapshot, frontend. */
export async function revertToSnapshot(
  group: ReplicaGroup,
  volume: Volume,
  frontend: FrontendPort,
  clock: Clock,
  name: string,
): Promise<void> {
  const { membership } = group;
  if (membership.readable.length === 0 || membership.hasWriteOnly) {
    throw new StorageError(
      'INVALID_STATE',
      'not valid state to revert, rebuilding in process or all replica are in ERR state',
    );
  }
  await checkRevertTarget(group, name);
  if (frontend.state === 'up') {
    throw new StorageError('INVALID_STATE', 'volume frontend enabled, aborting snapshot revert');
  }
  const created = createdNow(clock);
  const diskName = snapshotDiskName(name);
  await volume.withBarrier(() =>
    group.onLiveOrFail((port) => port.control.revert(diskName, created)),
  );
  // They may all have been lost before they were asked.
  if (membership.readable.length === 0) {
    throw new StorageError('NO_BACKEND', 'no backend available');
  }
}

async function checkRevertTarget(group: ReplicaGroup, name: string): Promise<void> {
  for (const { info } of await group.infos()) {
    const disk = info.disks[snapshotDiskName(name)];
    if (disk === undefined) continue;
    if (!disk.removed) return;
    throw new StorageError('INVALID_STATE', `cannot revert to removed snapshot ${name}`);
  }
  throw new StorageError(
    'NOT_FOUND',
    `cannot do revert since the target snapshot ${name} is not found`,
  );
}

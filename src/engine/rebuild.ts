// The engine's part of a rebuild: let a new replica in as WO behind a snapshot, say which files it
// needs, and make it RW when its chain equals the others'. The client drives the steps in between
// (client/rebuild.ts).

import type { SyncFileInfo } from '../api/generated/common.js';
import type { Clock } from '../core/clock.js';
import { StorageError, toStorageError } from '../core/errors.js';
import type { Member, Membership } from './membership.js';
import type { ReplicaInfo, ReplicaPort, SnapshotRecord } from './ports.js';
import type { ReplicaGroup } from './replica-group.js';
import type { RosterKeeper } from './roster-keeper.js';
import { filesToSync, missedRanges, type Return, snapshotDisks } from './resync.js';
import { checkSnapshotLimits, createdNow, cutSnapshot, prepareCut } from './snapshot.js';
import type { EngineSettings } from './settings.js';
import type { Volume } from './volume.js';

export interface RebuildParts {
  readonly group: ReplicaGroup;
  readonly keeper: RosterKeeper;
  readonly volume: Volume;
  readonly settings: EngineSettings;
  readonly clock: Clock;
  readonly newId: () => string;
}

/** Adds a replica that receives writes from now on. Adding a known address changes nothing. */
export async function addReplica(
  parts: RebuildParts,
  address: string,
  needsSnapshot: boolean,
  mode: 'WO' | 'RW',
): Promise<void> {
  const { group, volume, settings } = parts;
  const { membership } = group;
  if (membership.find(address) !== undefined) return;
  if (volume.isExpanding) {
    throw new StorageError('BUSY', 'cannot add WO replica during expansion');
  }
  if (mode === 'WO' && membership.hasWriteOnly) {
    throw new StorageError('BUSY', 'can only have one WO replica at a time');
  }
  if (needsSnapshot) await checkSnapshotLimits(group, settings);
  const port = await group.connect(address, {
    isUpgrade: false,
    expectedSizeBytes: volume.sizeBytes,
    engineGeneration: parts.keeper.engineGeneration,
    mayTakeOver: false,
  });
  try {
    checkIsAnother(membership, port);
    if (mode === 'WO') await parts.keeper.tellOutsider(port);
    const record = rebuildSnapshot(parts);
    if (needsSnapshot) await prepareCut(group, volume, record, port);
    await volume.withBarrier(async () => {
      if (port.sizeBytes !== volume.sizeBytes && membership.all.length > 0) {
        throw new StorageError(
          'INVALID_ARGUMENT',
          `replica ${address} has ${port.sizeBytes} bytes, the volume ${volume.sizeBytes}`,
        );
      }
      if (needsSnapshot) await cutSnapshot(group, record, port);
      if (membership.all.length === 0) volume.resize(port.sizeBytes);
      const member = group.add(address, mode, port);
      if (mode === 'RW') await parts.keeper.memberAdded(member);
    });
  } catch (error) {
    if (membership.find(address) === undefined) group.closePort(port);
    throw error;
  }
}

/** A directory that was copied has the id of the original, whose place in the roster is not its own. */
function checkIsAnother(membership: Membership, { address, replicaId }: ReplicaPort): void {
  const same = membership.live.find(({ port }) => port?.replicaId === replicaId);
  if (same === undefined) return;
  const text = `${address} is a copy of ${same.address} with the same id; delete its volume.roster`;
  throw new StorageError('INVALID_STATE', text);
}

function rebuildSnapshot({ newId, clock }: RebuildParts): SnapshotRecord {
  return { name: newId(), userCreated: false, created: createdNow(clock), labels: {} };
}

/**
 * WO → RW, when everything it has is durable and all members know it as one of them. The caller
 * holds the barrier.
 */
export async function promote(parts: RebuildParts, member: Member): Promise<void> {
  const { group, keeper } = parts;
  if (member.port !== null) await group.flush(member.port);
  await keeper.admit(member, () => group.promote(member));
}

function writeOnlyMember(
  group: ReplicaGroup,
  address: string,
): { member: Member; port: ReplicaPort } {
  const member = group.membership.find(address);
  if (member === undefined) {
    throw new StorageError('NOT_FOUND', `cannot find replica ${address}`);
  }
  if (member.mode !== 'WO' || member.port === null) {
    const text = `invalid mode ${member.mode} for replica ${address} to prepare rebuild`;
    throw new StorageError('INVALID_STATE', text);
  }
  return { member, port: member.port };
}

interface ReferenceReplica {
  readonly port: ReplicaPort;
  readonly info: ReplicaInfo;
}

/** The readable replica with most disks. */
async function referenceReplica(group: ReplicaGroup): Promise<ReferenceReplica> {
  let best: ReferenceReplica | null = null;
  for (const { member, info } of await group.infos()) {
    if (member.mode !== 'RW' || member.port === null) continue;
    const isLarger = best === null || snapshotDisks(info).length > snapshotDisks(best.info).length;
    if (isLarger) best = { port: member.port, info };
  }
  if (best === null) throw new StorageError('NO_BACKEND', 'cannot find any healthy replica');
  return best;
}

/** What is to be copied, and whose files they are. */
export interface RebuildPlan {
  readonly files: SyncFileInfo[];
  readonly sourceAddress: string;
}

/** Files the new replica needs. Its own leftovers that nobody else has are removed. */
export async function prepareRebuild(parts: RebuildParts, address: string): Promise<RebuildPlan> {
  const { group, volume } = parts;
  const { port } = writeOnlyMember(group, address);
  return volume.withBarrier(async () => {
    const source = await referenceReplica(group);
    const target = await port.control.get();
    if (!target.revisionCounterDisabled) await port.control.setRevisionCounter(0);
    const files = filesToSync(source.info, target, await whatReturned(source, port));
    const wanted = snapshotDisks(source.info);
    for (const name of snapshotDisks(target)) {
      if (!wanted.includes(name)) await port.control.removeDisk(name, true);
    }
    await source.port.control.sendFile(`${source.info.head}.meta`, port, `${target.head}.meta`);
    return { files, sourceAddress: source.port.address };
  });
}

/**
 * What the source knows of a replica that comes back; null when it has to be compared. Nobody else may
 * testify: a purge may have gone further there, and files of the two do not fit together then.
 */
async function whatReturned(source: ReferenceReplica, port: ReplicaPort): Promise<Return | null> {
  if (!port.keepsRoster || !source.port.keepsRoster) return null;
  // Who cannot tell is no reason to fail: comparing needs nobody's memory.
  const absence = await source.port.control.absence(port.replicaId).catch(() => null);
  if (absence === null) return null;
  const { absent } = absence;
  const intents = absent.isExact ? [] : await port.control.writeIntents();
  const ranges = missedRanges(absent, port.hostBootId, intents);
  return ranges === null ? null : { absence, ranges };
}

/** WO → RW when the chains are the same; otherwise → ERR. On an RW replica it changes nothing. */
export async function verifyRebuild(parts: RebuildParts, address: string): Promise<void> {
  const { group, volume } = parts;
  const existing = group.membership.find(address);
  if (existing?.mode === 'RW') return;
  const { member, port } = writeOnlyMember(group, address);
  try {
    await volume.withBarrier(async () => {
      const source = await referenceReplica(group);
      const target = await port.control.get();
      compareChains(source.info, target);
      if (!source.info.revisionCounterDisabled) {
        await port.control.setRevisionCounter(source.info.revisionCounter);
      }
      // It may have been lost meanwhile.
      await promote(parts, writeOnlyMember(group, address).member);
    });
  } catch (error) {
    group.fail(member, toStorageError(error));
    throw error;
  }
}

/** Names and what each stands on. */
function compareChains(source: ReplicaInfo, target: ReplicaInfo): void {
  const standing = (info: ReplicaInfo): string[] =>
    snapshotDisks(info)
      .map((name) => `${name}<${info.disks[name]?.parent ?? ''}`)
      .sort();
  const want = standing(source);
  const have = standing(target);
  const isSame = want.length === have.length && want.every((name, index) => name === have[index]);
  if (isSame) return;
  throw new StorageError(
    'CHAIN_BROKEN',
    `replica's chain [${have.join(' ')}] does not equal the healthy one's [${want.join(' ')}]`,
  );
}

// Starting a volume: connect every replica, decide which to trust and how large the volume is
// (start-rules.ts), drop the rest. A replica that is not used is closed again, so that the next
// start finds it closed.

import { planAlignment } from './alignment.js';
import { rosterOf } from '../api/roster-message.js';
import { StorageError, toStorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import type { AbsentReplica, Roster } from '../core/roster.js';
import type { ReplicaInfo, ReplicaPort, WriteIntents } from './ports.js';
import type { ReplicaGroup } from './replica-group.js';
import type { EngineSettings } from './settings.js';
import {
  absentAtStart,
  behindByRevision,
  decideVolumeSize,
  isVoided,
  rosterAmong,
  salvage,
  unionOfIntents,
} from './start-rules.js';

export interface StartRequest {
  readonly addresses: readonly string[];
  readonly sizeBytes: number;
  readonly currentSizeBytes: number;
}

interface Connected {
  readonly address: string;
  readonly port: ReplicaPort;
  readonly info: ReplicaInfo;
}

interface Rejected {
  readonly address: string;
  readonly error: StorageError;
}

/** What a volume starts with. */
export interface Started {
  readonly sizeBytes: number;
  readonly absent: readonly AbsentReplica[];
  /** Ranges in which the members may differ; null: all of them. */
  readonly mayDiffer: WriteIntents;
  /** Address of a member that has what was acknowledged even if it was not flushed, if there is one. */
  readonly reference: string | null;
  /** True when a member may lack some of that: nothing counts as flushed before it is made good. */
  readonly lacksUnflushed: boolean;
  /** Opened, but not used: to be told who is in step, so that none of them is started alone, and closed. */
  readonly unused: readonly ReplicaPort[];
}

export interface StartParts {
  readonly group: ReplicaGroup;
  readonly settings: EngineSettings;
  readonly log: Logger;
}

/** What a replica said before anybody opened it. */
export interface Probed {
  readonly address: string;
  readonly info: ReplicaInfo;
}

/** Asks all replicas; those that do not answer are left out. */
export async function probeReplicas(
  group: ReplicaGroup,
  addresses: readonly string[],
): Promise<Probed[]> {
  const answers = await Promise.all(
    addresses.map(async (address) => ({ address, info: await group.probe(address) })),
  );
  return answers.flatMap(({ address, info }) => (info === null ? [] : [{ address, info }]));
}

/**
 * Adds the replicas to the group.
 * @param probed what they said before; one that cannot be opened still tells who is in step.
 * @throws NO_BACKEND, INVALID_ARGUMENT, INVALID_STATE; FENCED when one serves a newer engine.
 */
export async function startReplicas(
  parts: StartParts,
  request: StartRequest,
  engineGeneration: number,
  probed: readonly Probed[],
): Promise<Started> {
  const { group, settings, log } = parts;
  checkDuplicates(request.addresses);
  const { connected, rejected } = await connectAll(parts, request, engineGeneration);
  try {
    // A newer engine starts the volume at the same time; it might not reach those that we have.
    const fenced = rejected.find(({ error }) => error.code === 'FENCED');
    if (fenced !== undefined) throw fenced.error;
    checkIds(connected);
    const unopened = probed.filter(
      ({ address }) => !connected.some((replica) => replica.address === address),
    );
    const roster = rosterToTrust(connected, unopened, settings);
    const selected = selectTrusted(connected, rejected, settings, request, roster);
    const { volumeBytes } = selected;
    const trusted = await alignChains(selected.trusted, rejected);
    for (const { address, error } of rejected) {
      log.error('replica.rejected', { replica: address, error });
    }
    if (trusted.length === 0) throw noBackend(request.addresses, rejected);
    const intents = await readIntents(trusted, roster);
    await equaliseCounters(trusted);
    addMembers(group, request.addresses, trusted, rejected);
    const ids = trusted.map(({ port }) => port.replicaId);
    // What stands on another branch has nothing in common with a fork of this one.
    const diverged = selected.trusted.filter((replica) => !trusted.includes(replica));
    const absent = (roster === null ? [] : absentAtStart(roster, ids, intents)).filter(
      ({ replicaId }) => !diverged.some(({ port }) => port.replicaId === replicaId),
    );
    const mayDiffer = roster?.isClean === true ? [] : intents;
    const unused = connected.filter((replica) => !trusted.includes(replica));
    const ports = unused.map(({ port }) => port);
    const complete = trusted.find(({ info }) => !info.lacksUnflushed);
    const reference = complete?.address ?? null;
    const lacksUnflushed = trusted.some(({ info }) => info.lacksUnflushed);
    const toTell = { reference, lacksUnflushed, unused: ports };
    return { sizeBytes: volumeBytes, absent, mayDiffer, ...toTell };
  } catch (error) {
    if (group.membership.all.length === 0) for (const { port } of connected) group.closePort(port);
    throw error;
  }
}

async function connectAll(
  { group, settings }: StartParts,
  request: StartRequest,
  engineGeneration: number,
): Promise<{ connected: Connected[]; rejected: Rejected[] }> {
  const connected: Connected[] = [];
  const rejected: Rejected[] = [];
  const isOnly = request.addresses.length === 1;
  await Promise.all(
    request.addresses.map(async (address) => {
      try {
        const port = await group.connect(address, {
          isUpgrade: settings.isUpgrade,
          expectedSizeBytes: request.currentSizeBytes,
          engineGeneration,
          mayTakeOver: true,
        });
        connected.push(await lookAt(group, settings, address, port, isOnly));
      } catch (error) {
        rejected.push({ address, error: toStorageError(error) });
      }
    }),
  );
  // In the order they were given, whichever answered first.
  connected.sort(
    (a, b) => request.addresses.indexOf(a.address) - request.addresses.indexOf(b.address),
  );
  return { connected, rejected };
}

function addMembers(
  group: ReplicaGroup,
  addresses: readonly string[],
  trusted: readonly Connected[],
  rejected: readonly Rejected[],
): void {
  for (const address of addresses) {
    const port = trusted.find((replica) => replica.address === address)?.port ?? null;
    const member = group.add(address, port === null ? 'ERR' : 'RW', port);
    member.failure = rejected.find((replica) => replica.address === address)?.error ?? null;
  }
}

/**
 * Null: Longhorn's rules must do. When an engine that keeps no rosters has used only some of the
 * replicas, only revision counters could tell which are newer. @throws INVALID_STATE without them.
 */
function rosterToTrust(
  connected: readonly Connected[],
  unopened: readonly Probed[],
  settings: EngineSettings,
): Roster | null {
  const roster = rosterAmong([...connected, ...unopened]);
  if (roster === null) return null;
  // Who is no member is stale, whoever has opened it since.
  const voided = connected.filter(
    (replica) => isVoided(replica) && roster.members.includes(replica.port.replicaId),
  );
  if (voided.length === 0) return roster;
  if (!settings.revisionCounterDisabled) return null;
  const names = voided.map(({ address }) => address).join(' ');
  const text = `another engine has written to ${names} but not to the other replicas; start with only those that are to be kept`;
  throw new StorageError('INVALID_STATE', text);
}

/** Members whose chains a crash left different are made alike, or left out. */
async function alignChains(
  members: readonly Connected[],
  rejected: Rejected[],
): Promise<readonly Connected[]> {
  const { cuts, diverged } = planAlignment(members.map(({ info }) => info));
  const aligned = members.filter((replica, index) => {
    if (!diverged.includes(index)) return true;
    reject(rejected, replica, 'its head stands on another snapshot than the others');
    return false;
  });
  for (const { index, record } of cuts) {
    await (members[index] as Connected).port.control.snapshot(record);
  }
  return aligned;
}

/** Asked only where an unclean end left something in doubt; otherwise nothing is. */
async function readIntents(
  trusted: readonly Connected[],
  roster: Roster | null,
): Promise<WriteIntents> {
  const isInDoubt =
    roster === null
      ? trusted.some(({ info }) => info.state === 'dirty')
      : !roster.isClean || roster.absent.some(({ forkDisk }) => forkDisk === '');
  if (!isInDoubt) return [];
  return unionOfIntents(
    await Promise.all(trusted.map(({ port }) => port.control.writeIntents().catch(() => null))),
  );
}

/** After a crash they may differ by what was in flight, like the data, which is made equal. */
async function equaliseCounters(trusted: readonly Connected[]): Promise<void> {
  const newest = Math.max(...trusted.map(({ info }) => info.revisionCounter));
  for (const { port, info } of trusted) {
    if (info.revisionCounter < newest) await port.control.setRevisionCounter(newest);
  }
}

function checkDuplicates(addresses: readonly string[]): void {
  const duplicate = addresses.find((address, index) => addresses.indexOf(address) !== index);
  if (duplicate === undefined) return;
  const text = `invalid ReplicaAddress: duplicate replica addresses ${duplicate}`;
  throw new StorageError('INVALID_ARGUMENT', text);
}

/** A directory that was copied has the id of the original, and only one of them is a member. */
function checkIds(connected: readonly Connected[]): void {
  for (const [index, { address, port }] of connected.entries()) {
    const same = connected.slice(0, index).find((other) => other.port.replicaId === port.replicaId);
    if (same === undefined) continue;
    const text = `replicas ${same.address} and ${address} are copies of one another with the same id; start with only one of them`;
    throw new StorageError('INVALID_STATE', text);
  }
}

async function lookAt(
  group: ReplicaGroup,
  settings: EngineSettings,
  address: string,
  port: ReplicaPort,
  isOnly: boolean,
): Promise<Connected> {
  try {
    let info = await port.control.get();
    // A crash after a rebuilt replica became a member, before its flag was cleared.
    const isMember = rosterOf(info.roster)?.members.includes(port.replicaId) ?? isOnly;
    if (isMember && info.rebuilding) {
      await port.control.setRebuilding(false);
      info = await port.control.get();
    }
    if (info.state !== 'open' && info.state !== 'dirty') {
      throw new StorageError('INVALID_STATE', `invalid state ${info.state} for replica ${address}`);
    }
    if (info.unmapMarkDiskChainRemoved !== settings.unmapMarkSnapChainRemoved) {
      await port.control.setUnmapMarkDiskChainRemoved(settings.unmapMarkSnapChainRemoved);
    }
    return { address, port, info };
  } catch (error) {
    group.closePort(port);
    throw error;
  }
}

function selectTrusted(
  connected: readonly Connected[],
  rejected: Rejected[],
  settings: EngineSettings,
  request: StartRequest,
  roster: Roster | null,
): { trusted: Connected[]; volumeBytes: number } {
  let candidates = connected.filter((replica) => {
    const isStale = roster !== null && !roster.members.includes(replica.port.replicaId);
    if (isStale) reject(rejected, replica, 'it is stale, not a member of the newest roster');
    return !isStale;
  });
  const sizes = candidates.map(({ port }) => port.sizeBytes);
  const volumeBytes = decideVolumeSize(request.sizeBytes, request.currentSizeBytes, sizes);
  const sectorBytes = candidates[0]?.info.sectorSize;
  candidates = candidates.filter((replica) => {
    const { info, port } = replica;
    const fits = port.sizeBytes === volumeBytes && info.sectorSize === sectorBytes;
    if (!fits)
      reject(rejected, replica, `its size ${info.size} is not the volume's ${volumeBytes}`);
    return fits;
  });
  if (settings.isUpgrade) return { trusted: candidates, volumeBytes };
  // A member that keeps no roster may have been the only one left, and could not be told.
  const allKnow = roster !== null && candidates.every(({ port }) => port.keepsRoster);
  const behind = behindByRevision(candidates, settings.revisionCounterDisabled, allKnow);
  candidates = candidates.filter((replica) => {
    if (!behind.includes(replica.address)) return true;
    reject(rejected, replica, 'its revision counter is behind or kept differently');
    return false;
  });
  // Members of a roster hold every acknowledged write, so there is nothing to choose.
  const mustChoose =
    settings.revisionCounterDisabled && settings.salvageRequested && roster === null;
  if (!mustChoose) return { trusted: candidates, volumeBytes };
  const chosen = salvage(candidates);
  for (const replica of candidates) {
    if (replica.address !== chosen?.address) reject(rejected, replica, 'salvage chose another');
  }
  const trusted = candidates.filter((replica) => replica.address === chosen?.address);
  return { trusted, volumeBytes };
}

function reject(rejected: Rejected[], replica: Connected, reason: string): void {
  const { address } = replica;
  const text = `replica ${address} is not used: ${reason}`;
  rejected.push({ address, error: new StorageError('INVALID_STATE', text) });
}

function noBackend(addresses: readonly string[], rejected: readonly Rejected[]): StorageError {
  const unreachable = rejected.some(({ error }) =>
    ['CONNECTION_REFUSED', 'CONNECTION_LOST'].includes(error.code),
  );
  const why = unreachable ? 'service unavailable' : 'replica error';
  const text = `no available backend due to ${why} from the addresses [${addresses.join(' ')}]`;
  const reasons = rejected.map(({ address, error }) => `${address}: ${error.message}`);
  return new StorageError('NO_BACKEND', text, { unreachable, reasons });
}

// How a replica stands to its engine and to the other copies: its own id, the newest engine generation
// it serves, and the roster (docs/adr/0007-roster.md). Everything that is promised here is on disk
// before it is promised. An engine that keeps no rosters (generation 0) makes the roster void.

import { StorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import { type AbsentReplica, compareRosters, type Roster } from '../core/roster.js';
import type { Disk } from '../disk/disk.js';
import type { DiskInfo } from '../image/chain.js';
import { VOLUME_META } from '../image/names.js';
import { SUPERSEDED_TEXT } from '../wire/replica/constants.js';
import type { DiskAtFork, RosterRecord } from './roster-record.js';
import { newRecord, RosterStore } from './roster-store.js';

export interface StandingOptions {
  readonly disk: Disk;
  readonly directory: string;
  readonly log: Logger;
  /** Makes the id of a directory that has none. */
  readonly newId: () => string;
  /** Of the kernel that runs now; '' when unknown. */
  readonly hostBootId: string;
}

/** What a member knows of an absent replica. */
export interface KnownAbsence {
  readonly absent: AbsentReplica;
  /** Disks that existed at the fork and have not changed since → their parents then. */
  readonly unchangedDisks: Readonly<Record<string, string>>;
}

const NOTHING_KNOWN = newRecord('');

export class Standing {
  private readonly options: StandingOptions;
  private store: RosterStore | null = null;
  private seen: RosterRecord = NOTHING_KNOWN;

  constructor(options: StandingOptions) {
    this.options = options;
  }

  get record(): RosterRecord {
    return this.store?.record ?? this.seen;
  }

  /** Reads what the directory says, while no engine has it. */
  async look(): Promise<void> {
    if (this.store !== null) return;
    this.seen = (await RosterStore.look(this.options).catch(() => null)) ?? NOTHING_KNOWN;
  }

  /**
   * An engine is about to be served. Durable when resolved.
   * @throws FENCED when a newer one has been.
   */
  async admit(generation: number): Promise<void> {
    const { log } = this.options;
    // A Longhorn engine leaves nothing behind where there was nothing.
    if (generation === 0 && (await RosterStore.look(this.options)) === null) return;
    checkGeneration(generation, this.record.engineGeneration);
    this.store ??= await RosterStore.open(this.options);
    const { store } = this;
    const isForeign = generation === 0 || (await this.wasUsedByAnother(store.record));
    if (isForeign && store.record.roster !== null) log.warn('roster.void', { generation });
    const { hostBootId } = this.options;
    await store.update(({ roster, engineGeneration, isVoid, ...before }) => ({
      engineGeneration: Math.max(engineGeneration, generation),
      lacksUnflushed: before.lacksUnflushed || hasLostPower(before, hostBootId),
      bootId: hostBootId,
      closedMeta: null,
      ...(isForeign && { roster: null, forks: {}, isVoid: isVoid || roster !== null }),
    }));
  }

  /**
   * Stores who is in step. An older one than is stored changes nothing: its engine has gone on.
   * @param disksNow are noted for a fork that is new.
   * @throws FENCED from another engine than is served.
   */
  async setRoster(
    roster: Roster,
    disksNow: () => Promise<readonly DiskInfo[]>,
    head: string,
  ): Promise<void> {
    const { store } = this;
    if (store === null) throw new StorageError('NOT_OPEN', 'replica no longer exist');
    const { forks } = store.record;
    const hasNewFork = roster.absent.some(
      ({ forkDisk }) => forkDisk !== '' && forks[forkDisk] === undefined,
    );
    const disks = hasNewFork ? await disksNow() : [];
    await store.update((record) => {
      checkGeneration(roster.generation, record.engineGeneration);
      if (record.roster !== null && compareRosters(roster, record.roster) < 0) return null;
      return { roster, isVoid: false, forks: forksOf(roster, record, disks, head) };
    });
  }

  /** All replicas have made durable and alike what was in doubt. */
  async checkpointed(): Promise<void> {
    await this.store?.update((record) =>
      record.lacksUnflushed ? { lacksUnflushed: false } : null,
    );
  }

  /** Disks that a purge must leave alone. */
  get pinnedDisks(): ReadonlySet<string> {
    const absent = this.record.roster?.absent ?? [];
    return new Set(absent.map(({ forkDisk }) => forkDisk).filter((name) => name !== ''));
  }

  /** Null when only comparing can tell what it misses. */
  absence(replicaId: string, disks: readonly DiskInfo[]): KnownAbsence | null {
    const { roster, forks } = this.record;
    const absent = roster?.absent.find((entry) => entry.replicaId === replicaId);
    const atFork = absent === undefined ? undefined : forks[absent.forkDisk];
    if (absent === undefined || atFork === undefined) return null;
    const unchangedDisks: Record<string, string> = {};
    for (const { name, parent, changedNs } of disks) {
      const then = atFork[name];
      if (then?.changedNs === String(changedNs) && then.parent === parent) {
        unchangedDisks[name] = parent;
      }
    }
    return disks.some(({ name }) => name === absent.forkDisk) ? { absent, unchangedDisks } : null;
  }

  /** No engine is served any more. @param isClean volume.meta says so too. */
  async leave(isClean: boolean): Promise<void> {
    const { store } = this;
    if (store === null) return;
    try {
      if (isClean) {
        const closedMeta = await this.metaIdentity();
        await store.update(() => ({ closedMeta }));
      }
    } catch (error) {
      // Then the next open takes it for the end of a crash.
      this.options.log.warn('roster.close.failed', { error });
    }
    this.seen = store.record;
    this.store = null;
    await store.close();
  }

  /** After the data was deleted: the directory is nobody's copy any more. */
  async remove(): Promise<void> {
    const { disk, directory } = this.options;
    await RosterStore.remove(disk, directory);
    this.seen = NOTHING_KNOWN;
  }

  private async wasUsedByAnother({ closedMeta }: RosterRecord): Promise<boolean> {
    return closedMeta !== null && closedMeta !== (await this.metaIdentity());
  }

  /** Every program that opens a replica directory for writing replaces this file. */
  private async metaIdentity(): Promise<string> {
    const { disk, directory } = this.options;
    const { inode, changedNs } = await disk.stat(`${directory}/${VOLUME_META}`);
    return `${inode}:${changedNs}`;
  }
}

/** @throws FENCED. */
export function checkGeneration(generation: number, newest: number): void {
  if (generation !== 0 && generation < newest) throw supersededError(generation, newest);
}

export function supersededError(generation: number, newest: number): StorageError {
  const text = `engine generation ${generation} ${SUPERSEDED_TEXT} ${newest}`;
  return new StorageError('FENCED', text, { generation, newest });
}

/** It was open when another kernel ran; whatever ended that took the caches with it. */
function hasLostPower(
  { closedMeta, bootId }: Pick<RosterRecord, 'closedMeta' | 'bootId'>,
  hostBootId: string,
): boolean {
  return closedMeta === null && bootId !== '' && bootId !== hostBootId;
}

/**
 * The disks at each fork of the roster: as noted before, or for a new fork as they are now. Who became
 * a member later was not there, and cannot say what has changed since: none are noted.
 */
function forksOf(
  roster: Roster,
  record: RosterRecord,
  disks: readonly DiskInfo[],
  head: string,
): RosterRecord['forks'] {
  const forks: Record<string, Readonly<Record<string, DiskAtFork>>> = {};
  const headParent = disks.find(({ name }) => name === head)?.parent;
  for (const { forkDisk } of roster.absent) {
    if (forkDisk === '') continue;
    const isJustCut = headParent === forkDisk;
    forks[forkDisk] =
      record.forks[forkDisk] ??
      Object.fromEntries(
        disks
          .filter(({ name }) => isJustCut && name !== head)
          .map(({ name, parent, changedNs }) => [name, { parent, changedNs: String(changedNs) }]),
      );
  }
  return forks;
}

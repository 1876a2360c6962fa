// Keeps the roster: who is in step, stored durably on every member. While a roster that leaves out a
// replica is not yet stored, no write may be acknowledged (P3); the volume asks `isSettled` and waits
// here. A member that cannot store a roster leaves as well. See docs/adr/0007-roster.md.

import { coarsenRanges, uniteRanges, type ByteRange } from '../core/byte-ranges.js';
import { type Clock, sleepMs } from '../core/clock.js';
import { StorageError, toStorageError } from '../core/errors.js';
import { ROSTER_ABSENT_MAX, ROSTER_RANGES_MAX } from '../core/limits.js';
import type { Logger } from '../core/log.js';
import type { AbsentReplica, Roster } from '../core/roster.js';
import type { Member, Membership } from './membership.js';
import type { ReplicaPort } from './ports.js';

/** Waits for the roster to be stored; error when no member is left that could. */
export interface RosterWaiter {
  rosterSettled(error: StorageError | null): void;
}

/** What a replica that leaves may lack. */
export interface Missing {
  readonly inFlight: readonly ByteRange[];
  readonly unflushed: readonly ByteRange[];
}

export interface RosterKeeperOptions {
  readonly membership: Membership;
  readonly clock: Clock;
  readonly log: Logger;
  /** How long a member may take to store a roster, as for its data. */
  readonly silenceMaxMs: () => number;
  /** Moves a member that cannot store the roster to ERR. */
  readonly failMember: (member: Member, error: StorageError) => void;
}

export class RosterKeeper {
  /** False while a member's leaving is not yet durable on all others. */
  isSettled = true;
  private readonly options: RosterKeeperOptions;
  private generation = 0;
  private number = 0;
  private absent: readonly AbsentReplica[] = [];
  /** A WO replica that becomes a member with the next roster. */
  private joining: Member | null = null;
  /** Grows with each change that a stored roster must show. */
  private revision = 0;
  private changed: (() => void) | null = null;
  /** While set, who leaves is to be compared as a whole when it returns. */
  private keepsNoEntries = false;
  private storing: Promise<void> | null = null;
  /** As all members have it. */
  private stored: Roster | null = null;
  private waiters: RosterWaiter[] = [];
  /** Set when a newer engine has the volume. */
  private fencedBy: StorageError | null = null;

  constructor(options: RosterKeeperOptions) {
    this.options = options;
  }

  /** Number of this engine's start; 0 before it. */
  get engineGeneration(): number {
    return this.generation;
  }

  get absentReplicas(): readonly AbsentReplica[] {
    return this.absent;
  }

  /** False while the members have not all stored what changed last. */
  get isStored(): boolean {
    return this.isSettled && this.storing === null;
  }

  /** True when an absent replica has no fork yet. */
  get needsFork(): boolean {
    return this.absent.some(({ forkDisk }) => forkDisk === '');
  }

  /** Takes a generation; rosters count from 1 again. */
  begin(generation: number): void {
    this.generation = generation;
    this.number = 0;
    this.absent = [];
    this.joining = null;
    this.stored = null;
    this.isSettled = true;
  }

  /** From now on nothing is stored: who is in step is for the newer engine to say. */
  fence(error: StorageError): void {
    this.fencedBy = error;
    this.isSettled = false;
    this.markChanged();
    for (const waiter of this.waiters.splice(0)) waiter.rosterSettled(error);
  }

  /** Stores the first roster of a started volume. @throws NO_BACKEND when no member could store it. */
  async start(absent: readonly AbsentReplica[]): Promise<void> {
    this.absent = absent.slice(-ROSTER_ABSENT_MAX);
    await this.storeNow();
  }

  /** Resolves when what changed so far is stored, or no member is left. */
  async whenStored(): Promise<void> {
    await this.storing;
  }

  wait(waiter: RosterWaiter): void {
    if (this.fencedBy !== null) waiter.rosterSettled(this.fencedBy);
    else this.waiters.push(waiter);
  }

  /**
   * A replica that is no member learns it: one that will be filled, before it is, and one that is
   * stale. Nobody takes it for one then when it is found alone. @throws what storing fails with.
   */
  async tellOutsider(port: ReplicaPort): Promise<void> {
    await this.storing;
    if (port.keepsRoster && this.stored !== null) await port.control.setRoster(this.stored);
  }

  /**
   * A member is no longer one; it left the membership already.
   * @param missing null when nothing is to be remembered for its return.
   */
  memberLeft(member: Member, replicaId: string, hostBootId: string, missing: Missing | null): void {
    if (this.joining === member) this.joining = null;
    const others = this.absent.filter((entry) => entry.replicaId !== replicaId);
    const count = this.options.membership.readable.length + 1;
    const isLeftOut = missing === null || this.keepsNoEntries;
    const entry = isLeftOut ? [] : [absentEntry(replicaId, hostBootId, missing, count)];
    this.absent = [...others, ...entry].slice(-ROSTER_ABSENT_MAX);
    this.isSettled = false;
    this.markChanged();
    void this.store();
  }

  /** A replica that was no member yet is gone. */
  joinerLeft(member: Member): void {
    if (this.joining !== member) return;
    this.joining = null;
    this.markChanged();
  }

  /**
   * The fork of those that have none: the entries are complete with it.
   * @param since what was written between their leaving and the fork.
   */
  async forked(forkDisk: string, since: readonly ByteRange[]): Promise<void> {
    this.absent = this.absent.map((entry) => {
      if (entry.forkDisk !== '') return entry;
      return { ...entry, forkDisk, inFlight: limited(uniteRanges(entry.inFlight, since)) };
    });
    await this.storeNow();
  }

  /** Runs an operation that makes it unclear on which head a replica stands that leaves meanwhile. */
  async withoutEntries(operation: () => Promise<void>): Promise<void> {
    this.keepsNoEntries = true;
    try {
      await operation();
    } finally {
      this.keepsNoEntries = false;
    }
  }

  /**
   * No fork could be cut: who has none comes back by comparing. That must be stored: an entry without
   * a fork says that the write intents still hold everything since it left.
   */
  async forkFailed(): Promise<void> {
    this.absent = this.absent.filter(({ forkDisk }) => forkDisk !== '');
    this.markChanged();
    await this.store();
  }

  /**
   * Stores a roster with the WO replica as a member, on it too. The caller holds the barrier.
   * @param promote makes it RW; called when all have stored it, before anything else can happen.
   * @throws INVALID_STATE when it left meanwhile; NO_BACKEND.
   */
  async admit(member: Member, promote: () => void): Promise<void> {
    this.joining = member;
    const memberCount = this.options.membership.readable.length + 1;
    const replicaId = member.port?.replicaId;
    const before = this.absent;
    this.absent = before.filter(
      (entry) => entry.replicaId !== replicaId && entry.memberCountBefore > memberCount,
    );
    await this.storeNow();
    if (this.joining !== member) {
      this.absent = before;
      await this.storeNow();
      throw new StorageError('INVALID_STATE', `replica ${member.address} left while it joined`);
    }
    this.joining = null;
    promote();
  }

  /** A replica was added as RW, as the first one or at somebody's word. @throws NO_BACKEND. */
  async memberAdded(member: Member): Promise<void> {
    const replicaId = member.port?.replicaId;
    this.absent = this.absent.filter((entry) => entry.replicaId !== replicaId);
    await this.storeNow();
  }

  /** The roster of an orderly end; everything is flushed. */
  async storeClean(): Promise<void> {
    await this.storeNow(true);
  }

  private markChanged(): void {
    this.revision++;
    this.changed?.();
  }

  private async storeNow(isClean = false): Promise<void> {
    if (isClean) await this.storing;
    this.markChanged();
    await this.store(isClean);
    if (this.fencedBy !== null) throw this.fencedBy;
    // A replica that joins has stored it, or it would not be joining any more.
    if (this.options.membership.readable.length > 0 || this.joining !== null) return;
    throw new StorageError('NO_BACKEND', 'no replica could store who is in step');
  }

  /** Ends when the members as they are then have stored the roster. */
  private store(isClean = false): Promise<void> {
    if (this.fencedBy !== null) return Promise.resolve();
    this.storing ??= this.storeUntilStable(isClean);
    return this.storing;
  }

  private async storeUntilStable(isClean: boolean): Promise<void> {
    while (this.fencedBy === null) {
      const { revision } = this;
      const { readable } = this.options.membership;
      const roster = this.next(isClean);
      const targets = this.joining === null ? readable : [...readable, this.joining];
      const whenChanged = new Promise<void>((resolve) => {
        this.changed = resolve;
      });
      await Promise.race([
        Promise.all(targets.map((member) => this.storeOn(member, roster))),
        whenChanged,
      ]);
      if (this.revision !== revision) continue;
      // Together with the comparison: whoever leaves from here on starts another round.
      this.changed = null;
      this.storing = null;
      // One without members was stored nowhere: nobody may be told that all are stale.
      if (targets.length > 0) this.stored = roster;
      if (readable.length > 0) this.tellOthers(roster);
      this.settle();
      return;
    }
    this.storing = null;
  }

  private next(isClean: boolean): Roster {
    const { readable } = this.options.membership;
    const members = readable.map(idOf);
    if (this.joining !== null) members.push(idOf(this.joining));
    const { generation, absent } = this;
    return { generation, number: ++this.number, members, absent, isClean };
  }

  private async storeOn(member: Member, roster: Roster): Promise<void> {
    const { port } = member;
    if (port === null || !port.keepsRoster) return;
    try {
      await this.inTime(port.control.setRoster(roster), member);
    } catch (thrown) {
      const error = toStorageError(thrown);
      if (error.code === 'NO_SPACE' && roster.absent.length > 0) {
        // A small one has its space already, and dropping entries is always safe.
        if (roster.number < this.number) return;
        this.absent = [];
        this.markChanged();
        return;
      }
      if (member === this.joining) {
        this.joining = null;
        this.markChanged();
      }
      this.options.failMember(member, error);
    }
  }

  /** A replica may answer pings, and have no data in flight, while it cannot store anything. */
  private async inTime(stored: Promise<void>, { address }: Member): Promise<void> {
    const { clock, silenceMaxMs } = this.options;
    const answered = new AbortController();
    const { signal } = answered;
    const late = sleepMs(clock, silenceMaxMs(), signal).then(() => {
      if (!signal.aborted) throw new StorageError('TIMEOUT', `${address}: storing the roster`);
    });
    try {
      await Promise.race([stored, late]);
    } finally {
      answered.abort();
    }
  }

  /** A WO replica that knows the roster knows that it is no member, should it be started alone. */
  private tellOthers(roster: Roster): void {
    const { log, membership } = this.options;
    log.info('roster.stored', { number: roster.number, members: roster.members });
    for (const { mode, port, address } of membership.live) {
      if (mode !== 'WO' || port?.keepsRoster !== true) continue;
      port.control.setRoster(roster).catch((error: unknown) => {
        log.warn('roster.not.told', { replica: address, error });
      });
    }
  }

  private settle(): void {
    this.isSettled = true;
    const waiting = this.waiters;
    this.waiters = [];
    const isLost = this.options.membership.readable.length === 0;
    const error = isLost ? new StorageError('NO_BACKEND', 'no backend available') : null;
    for (const waiter of waiting) waiter.rosterSettled(error);
  }
}

function idOf(member: Member): string {
  return member.port?.replicaId ?? `address:${member.address}`;
}

function absentEntry(
  replicaId: string,
  hostBootId: string,
  missing: Missing,
  memberCountBefore: number,
): AbsentReplica {
  return {
    replicaId,
    forkDisk: '',
    inFlight: limited(missing.inFlight),
    unflushed: limited(missing.unflushed),
    hostBootId,
    isExact: true,
    memberCountBefore,
  };
}

export function limited(ranges: readonly ByteRange[]): readonly ByteRange[] {
  return coarsenRanges(ranges, ROSTER_RANGES_MAX);
}

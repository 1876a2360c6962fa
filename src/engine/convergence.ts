// Convergence: makes members alike again that may differ in some ranges, after an engine that was
// not stopped in order or a write that failed without removing anybody. One member is the
// reference: all reads go to it until every listed range was compared with it and repaired on the
// others. It must never write what is older than an acknowledged write, so a piece is held
// exclusively from before it is read until it is written, and it is an active write to every
// barrier. See docs/adr/0007-roster.md.

import {
  BLOCK_OP,
  type BlockOp,
  EXTENT_ENTRY_BYTES,
  EXTENT_ZERO,
  submitAndWait,
} from '../core/block-device.js';
import {
  type ByteRange,
  gapsBetween,
  mergeRanges,
  subtractRanges,
  totalBytes,
  uniteRanges,
} from '../core/byte-ranges.js';
import { type Clock, sleepMs } from '../core/clock.js';
import { StorageError, toStorageError } from '../core/errors.js';
import { REQUEST_BYTES_MAX } from '../core/limits.js';
import type { Logger } from '../core/log.js';
import { NO_BUFFER, type Slab } from '../core/slab.js';
import { alignDown, alignUp, KIB, MIB, SECTOR_BYTES } from '../core/units.js';
import type { Member, Membership } from './membership.js';

/** The most that a client may have to wait for. */
export const PIECE_BYTES_MAX = 256 * KIB;
/** How much is asked about before anything of it is read: a page of a replica's index. */
export const EXTENTS_WINDOW_BYTES = 256 * MIB;
/** A member without space for a repair is asked again after this. */
export const NO_SPACE_RETRY_MS = 5000;

/** What the volume asks of a convergence that runs. */
export interface Converging {
  /** The member that serves all reads; null when none is readable. */
  reference(): Member | null;
  /** Where members may still differ; a normal list. */
  readonly remaining: readonly ByteRange[];
  /**
   * True when a member lost what was acknowledged but not flushed: a flush must not be acknowledged
   * before that is made good (P2).
   */
  readonly holdsFlushes: boolean;
  /** Resolves when it ends. */
  whenDone(): Promise<void>;
}

export interface HeldRange {
  release(): void;
}

/** The part of the volume that a convergence needs. */
export interface ConvergedVolume {
  readonly sizeBytes: number;
  /** True while requests of clients are in flight, or wait. */
  readonly isBusy: boolean;
  /** Set while members may differ. */
  converging: Converging | null;
  /** Exclusive; counts as an active write until it is released. */
  holdRange(beginOffset: number, endOffset: number): Promise<HeldRange>;
}

export interface ConvergenceOptions {
  readonly membership: Membership;
  readonly volume: ConvergedVolume;
  readonly slab: Slab;
  readonly clock: Clock;
  readonly log: Logger;
  /** Moves a member to ERR. */
  readonly failMember: (member: Member, error: StorageError) => void;
  /** All readable members are alike; not called when none is left. */
  readonly done: () => void;
}

export class Convergence implements Converging {
  /** Where members may still differ; the piece in work is in it until it is done. */
  remaining: readonly ByteRange[] = [];
  holdsFlushes = false;
  private readonly options: ConvergenceOptions;
  /** Everything to be compared with the same reference. */
  private listed: readonly ByteRange[] = [];
  private chosen: Member | null = null;
  /** The list up to here needs no question about extents any more. */
  private mappedEnd = 0;
  /** Grows with each add(). */
  private additions = 0;
  private comparedBytes = 0;
  private repairedBytes = 0;
  private running: Promise<void> | null = null;
  private stopping = new AbortController();
  private waiters: (() => void)[] = [];

  constructor(options: ConvergenceOptions) {
    this.options = options;
  }

  /** True from add() until all is alike, or stop(). */
  get isRunning(): boolean {
    return this.options.volume.converging === this;
  }

  get progress(): { doneBytes: number; totalBytes: number } {
    const total = totalBytes(this.listed);
    return { doneBytes: total - totalBytes(this.remaining), totalBytes: total };
  }

  /**
   * From now on reads are served by one member. Ranges may be added while it runs.
   * @param ranges where members may differ; null: anywhere.
   * @param preferred the reference, if it is readable and none was chosen before.
   * @param holdsFlushes see Converging.
   */
  add(
    ranges: readonly ByteRange[] | null,
    preferred: Member | null = null,
    holdsFlushes = false,
  ): void {
    const { volume, membership, log } = this.options;
    const whole = [{ beginOffset: 0, endOffset: volume.sizeBytes }];
    const added = mergeRanges((ranges ?? whole).map((range) => this.inSectors(range)));
    if (added.length === 0 || membership.readable.length < 2) return;
    this.additions++;
    this.holdsFlushes ||= holdsFlushes;
    if (this.isRunning) {
      // Read anew even where it was compared before: it may differ since.
      this.listed = uniteRanges(this.listed, added);
      this.remaining = uniteRanges(this.remaining, added);
      return;
    }
    this.listed = added;
    this.remaining = added;
    this.mappedEnd = 0;
    this.comparedBytes = 0;
    this.repairedBytes = 0;
    this.chosen = preferred;
    volume.converging = this;
    const reference = this.reference();
    const bytes = totalBytes(added);
    log.info('convergence.started', { reference: reference?.address, totalBytes: bytes });
    this.stopping = new AbortController();
    const { signal } = this.stopping;
    // The one before may still be at its last step, which it then does not end with.
    const before = this.running ?? Promise.resolve();
    this.running = before.then(() => this.run(signal));
  }

  /**
   * When the reference has left, the first readable member takes its place within this call, so
   * that no two reads see different members; and all ranges start over with it.
   */
  reference(): Member | null {
    const { readable } = this.options.membership;
    if (this.chosen !== null && readable.includes(this.chosen)) return this.chosen;
    this.chosen = readable[0] ?? null;
    this.remaining = this.listed;
    this.mappedEnd = 0;
    return this.chosen;
  }

  /** Resolves when it does not run, or runs no more. */
  whenDone(): Promise<void> {
    if (!this.isRunning) return Promise.resolve();
    return new Promise((resolve) => this.waiters.push(resolve));
  }

  /**
   * Ends after the piece in work; for a volume that stops. Reads are pinned no longer.
   * @returns true when the readable members are alike: nothing was left to do.
   */
  async stop(): Promise<boolean> {
    this.stopping.abort();
    await this.running;
    const isAlike = !this.isRunning;
    if (!isAlike) this.end();
    return isAlike;
  }

  private inSectors({ beginOffset, endOffset }: ByteRange): ByteRange {
    const { sizeBytes } = this.options.volume;
    return {
      beginOffset: alignDown(beginOffset, SECTOR_BYTES),
      endOffset: Math.min(alignUp(endOffset, SECTOR_BYTES), sizeBytes),
    };
  }

  private async run(signal: AbortSignal): Promise<void> {
    const { membership, clock, volume } = this.options;
    const bufferOffset = await this.takeBuffer(signal);
    if (bufferOffset === NO_BUFFER) return;
    try {
      while (!signal.aborted && this.reference() !== null) {
        const next = this.remaining[0];
        if (next === undefined || membership.readable.length < 2) break;
        const startedMs = clock.nowMs();
        const isFull = await this.step(next, bufferOffset);
        // No more than half of the time is ours while clients want it, unless somebody waits.
        const yields = volume.isBusy && this.waiters.length === 0;
        const pauseMs = yields ? clock.nowMs() - startedMs : 0;
        const waitMs = isFull ? NO_SPACE_RETRY_MS : pauseMs;
        if (waitMs > 0) await sleepMs(clock, waitMs, signal);
      }
    } finally {
      this.options.slab.release(bufferOffset);
    }
    if (!signal.aborted) this.finish();
  }

  private async takeBuffer(signal: AbortSignal): Promise<number> {
    const { slab } = this.options;
    while (!signal.aborted) {
      const bufferOffset = slab.allocate(REQUEST_BYTES_MAX);
      if (bufferOffset !== NO_BUFFER) return bufferOffset;
      await new Promise<void>((resolve) => {
        slab.whenReleased(resolve);
        signal.addEventListener('abort', () => resolve(), { once: true });
      });
    }
    return NO_BUFFER;
  }

  private finish(): void {
    const { log, membership, done } = this.options;
    const { comparedBytes, repairedBytes } = this;
    this.end();
    log.info('convergence.finished', { comparedBytes, repairedBytes });
    if (membership.readable.length > 0) done();
  }

  private end(): void {
    this.options.volume.converging = null;
    this.holdsFlushes = false;
    this.listed = [];
    this.remaining = [];
    this.chosen = null;
    for (const resolve of this.waiters.splice(0)) resolve();
  }

  /** @returns true when a member had no space. */
  private async step(next: ByteRange, bufferOffset: number): Promise<boolean> {
    const { beginOffset, endOffset } = next;
    if (endOffset - beginOffset > PIECE_BYTES_MAX && beginOffset >= this.mappedEnd) {
      await this.skipZeroes(next, bufferOffset);
      return false;
    }
    // One buffer of the slab serves all members, so many members have smaller pieces.
    const { readable } = this.options.membership;
    const share = alignDown(Math.floor(REQUEST_BYTES_MAX / readable.length), SECTOR_BYTES);
    const lengthBytes = Math.min(share, PIECE_BYTES_MAX, endOffset - beginOffset);
    const piece = { beginOffset, endOffset: beginOffset + lengthBytes };
    const held = await this.options.volume.holdRange(piece.beginOffset, piece.endOffset);
    try {
      return await this.converge(piece, bufferOffset);
    } finally {
      held.release();
    }
  }

  private async converge(piece: ByteRange, bufferOffset: number): Promise<boolean> {
    const { membership } = this.options;
    const reference = this.reference();
    const { readable, live } = membership;
    const lengthBytes = piece.endOffset - piece.beginOffset;
    // Membership may have changed while the range was waited for.
    if (reference === null || readable.length * lengthBytes > REQUEST_BYTES_MAX) return false;
    const at = (index: number): number => bufferOffset + index * lengthBytes;
    const reads = readable.map((member, index) => this.read(member, piece, at(index)));
    if ((await Promise.all(reads)).includes(false)) return false;
    const source = at(readable.indexOf(reference));
    const differing = mergeRanges(
      readable.flatMap((_, index) => this.differences(source, at(index), lengthBytes)),
    );
    if (differing.length > 0) {
      // Every member gets it into its head, the reference and those that had it too: otherwise the
      // same content lies in different layers, and checksums of a snapshot would not agree.
      const repairs = readable.flatMap((member) => differing.map((run) => ({ member, run })));
      // Repairs go into the members' heads, and a WO replica gets only the layers below its head
      // from others: it must have them, too. It may have been given its layers by any member, so it
      // is written the whole piece. What it lacks elsewhere comes with its rebuild.
      const whole = { beginOffset: 0, endOffset: lengthBytes };
      const joiners = live.filter((member) => member.mode === 'WO');
      const writes = [...repairs, ...joiners.map((member) => ({ member, run: whole }))];
      const outcomes = await Promise.all(
        writes.map(({ member, run }) => this.repair(member, piece, run, source)),
      );
      if (outcomes.includes('noSpace')) return true;
      if (outcomes.includes('failed')) return false;
    }
    // A new reference compares all anew, this piece included.
    if (this.reference() !== reference) return false;
    this.comparedBytes += lengthBytes;
    this.repairedBytes += totalBytes(differing);
    this.remaining = subtractRanges(this.remaining, [piece]);
    return false;
  }

  /** Runs of sectors that differ, relative to the piece. */
  private differences(source: number, copy: number, lengthBytes: number): ByteRange[] {
    const { bytes } = this.options.slab;
    const wanted = Buffer.from(bytes.buffer, bytes.byteOffset + source, lengthBytes);
    const found = Buffer.from(bytes.buffer, bytes.byteOffset + copy, lengthBytes);
    if (source === copy || wanted.equals(found)) return [];
    const sectors: ByteRange[] = [];
    for (let beginOffset = 0; beginOffset < lengthBytes; beginOffset += SECTOR_BYTES) {
      const endOffset = Math.min(beginOffset + SECTOR_BYTES, lengthBytes);
      const order = wanted.compare(found, beginOffset, endOffset, beginOffset, endOffset);
      if (order !== 0) sectors.push({ beginOffset, endOffset });
    }
    return mergeRanges(sectors);
  }

  /**
   * A member without space keeps its place: it has every acknowledged write, and reads do not reach
   * it. It is repaired when there is space.
   */
  private async repair(
    member: Member,
    piece: ByteRange,
    run: ByteRange,
    source: number,
  ): Promise<'done' | 'failed' | 'noSpace'> {
    const target = {
      beginOffset: piece.beginOffset + run.beginOffset,
      endOffset: piece.beginOffset + run.endOffset,
    };
    try {
      await this.submit(member, BLOCK_OP.write, target, source + run.beginOffset);
      return 'done';
    } catch (thrown) {
      const error = toStorageError(thrown);
      const mayWait = error.code === 'NO_SPACE' && member.mode === 'RW' && !this.holdsFlushes;
      if (mayWait) return 'noSpace';
      this.options.failMember(member, error);
      return 'failed';
    }
  }

  /**
   * Takes out of the list what reads as zeroes on all members. The range is not held: a write that
   * comes meanwhile reaches all members, or is listed itself. But members' heads must not be
   * changed between two answers, so an empty range is held, which only barriers wait for.
   */
  private async skipZeroes(next: ByteRange, bufferOffset: number): Promise<void> {
    const { volume, membership } = this.options;
    const { beginOffset } = next;
    const endOffset = Math.min(beginOffset + EXTENTS_WINDOW_BYTES, next.endOffset);
    const held = await volume.holdRange(volume.sizeBytes, volume.sizeBytes);
    try {
      const reference = this.reference();
      const { additions } = this;
      let coveredEnd = endOffset;
      let data: readonly ByteRange[] = [];
      // One after the other: they share the buffer.
      for (const member of membership.readable) {
        const window = { beginOffset, endOffset };
        const found = await this.dataIn(member, window, bufferOffset);
        if (found === null) return;
        coveredEnd = Math.min(coveredEnd, found.coveredEnd);
        data = uniteRanges(data, found.data);
      }
      // What was added meanwhile may have changed after it was answered.
      if (this.reference() !== reference || this.additions !== additions) return;
      const zeroes = gapsBetween(data, beginOffset, coveredEnd);
      this.remaining = subtractRanges(this.remaining, zeroes);
      this.mappedEnd = Math.max(this.mappedEnd, coveredEnd);
    } finally {
      held.release();
    }
  }

  /** Null when the member failed, or does not know. */
  private async dataIn(
    member: Member,
    window: ByteRange,
    bufferOffset: number,
  ): Promise<{ data: ByteRange[]; coveredEnd: number } | null> {
    const { view } = this.options.slab;
    let resultBytes: number;
    try {
      resultBytes = await this.submit(member, BLOCK_OP.extents, window, bufferOffset);
    } catch (thrown) {
      const error = toStorageError(thrown);
      if (error.code === 'UNSUPPORTED') this.mappedEnd = Number.POSITIVE_INFINITY;
      else this.unreadable(member, error);
      return null;
    }
    const data: ByteRange[] = [];
    let at = window.beginOffset;
    for (let position = 0; position < resultBytes; position += EXTENT_ENTRY_BYTES) {
      const end = at + view.getUint32(bufferOffset + position, true);
      const flags = view.getUint32(bufferOffset + position + 4, true);
      if ((flags & EXTENT_ZERO) === 0) data.push({ beginOffset: at, endOffset: end });
      at = end;
    }
    return { data: mergeRanges(data), coveredEnd: at };
  }

  /** False when it failed, and the member with it. */
  private async read(member: Member, range: ByteRange, bufferOffset: number): Promise<boolean> {
    try {
      await this.submit(member, BLOCK_OP.read, range, bufferOffset);
      return true;
    } catch (error) {
      this.unreadable(member, toStorageError(error));
      return false;
    }
  }

  /** A sector that cannot be read is no reason to lose the last readable member. */
  private unreadable(member: Member, error: StorageError): void {
    const isLast = this.options.membership.readable.length === 1;
    if (!(isLast && error.code === 'PEER_ERROR')) this.options.failMember(member, error);
  }

  private async submit(
    member: Member,
    op: BlockOp,
    { beginOffset, endOffset }: ByteRange,
    bufferOffset: number,
  ): Promise<number> {
    const { port, address } = member;
    if (port === null) throw new StorageError('CONNECTION_LOST', `${address}: EOF`);
    const lengthBytes = endOffset - beginOffset;
    const fields = { op, offsetBytes: beginOffset, lengthBytes, bufferOffset };
    return (await submitAndWait(port, fields)).resultBytes;
  }
}

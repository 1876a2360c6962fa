// The volume: one block device over its replicas. A write goes to every live replica and is
// acknowledged when all that are still live have answered (P1); a read goes to one readable replica
// and moves on when that fails (P4). Overlapping requests run in arrival order, alike on every
// replica. Membership and snapshots change only behind the barrier, when no write is in flight.

import {
  BLOCK_OP,
  type BlockDevice,
  BlockRequest,
  BlockRequestPool,
} from '../core/block-device.js';
import { mergeRanges, type ByteRange } from '../core/byte-ranges.js';
import type { Clock } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import { RangeLock } from '../core/range-lock.js';
import { alignDown, alignUp, isSectorAligned, SECTOR_BYTES } from '../core/units.js';
import type { ConvergedVolume, Converging, HeldRange } from './convergence.js';
import type { Member, Membership } from './membership.js';
import { VolumeMetrics } from './metrics.js';
import type { Missing, RosterWaiter } from './roster-keeper.js';
import type { UnalignedWriter } from './unaligned-writer.js';
import { type OperationHost, VolumeOperation } from './volume-operation.js';
import { checkBounds } from './bounds.js';
import { answerOf, decideWriteOutcome, type WriteResult } from './write-outcome.js';
import { WrittenRanges } from './written-ranges.js';

/** Tells when a write may be acknowledged: not while a replica's leaving is not durable (P3). */
export interface AcknowledgementGate {
  readonly isSettled: boolean;
  wait(waiter: RosterWaiter): void;
}

export interface VolumeOptions {
  readonly membership: Membership;
  readonly clock: Clock;
  readonly gate: AcknowledgementGate;
  /** Moves a replica to ERR and lets go of it. */
  readonly failMember: (member: Member, error: StorageError) => void;
}

export class Volume implements BlockDevice, ConvergedVolume, OperationHost {
  readonly metrics = new VolumeMetrics();
  /** Set while an expansion runs: unmaps are refused. */
  isExpanding = false;
  /** Handles unaligned writes while a replica is WO; set once by the engine. */
  unalignedWriter: UnalignedWriter | null = null;
  converging: Converging | null = null;
  /** Told before a client hears of a write that left the members different; set by the engine. */
  diverged: ((range: ByteRange) => void) | null = null;
  /** Requests that change data, ever. */
  writesEntered = 0;
  private size = 0;
  private readonly membership: Membership;
  private readonly clock: Clock;
  private readonly gate: AcknowledgementGate;
  private readonly failMember: VolumeOptions['failMember'];
  /** Set when a newer engine has the volume: every request ends with it. */
  private refusal: StorageError | null = null;
  private readonly copies = new BlockRequestPool();
  private readonly idle: VolumeOperation[] = [];
  private readonly ranges = new RangeLock();
  /** Writes past the barrier: from admission until they are answered. */
  private readonly active = new Set<VolumeOperation>();
  /** Written since the flush that is known to have covered everything. */
  readonly written = new WrittenRanges();
  /** The flush that covers the previous generation of `written`. */
  private coveringFlush: VolumeOperation | null = null;
  /** Written while an absent replica has no fork yet. */
  private missed: WrittenRanges | null = null;
  /** Writes that a checkpoint waits for. */
  private marked: Set<VolumeOperation> | null = null;
  private whenMarkedDone: (() => void) | null = null;
  private barriers = 0;
  private gated: VolumeOperation[] = [];
  private whenDrained: (() => void)[] = [];
  private nextReader = 0;

  constructor(options: VolumeOptions) {
    this.membership = options.membership;
    this.clock = options.clock;
    this.gate = options.gate;
    this.failMember = options.failMember;
  }

  get sizeBytes(): number {
    return this.size;
  }

  get isBusy(): boolean {
    return this.ranges.heldCount + this.ranges.waitingCount > 0;
  }

  resize(sizeBytes: number): void {
    this.size = sizeBytes;
  }

  submit(request: BlockRequest): void {
    const refusal = this.refusal ?? checkBounds(request, this.size);
    if (refusal !== null) {
      request.done(refusal);
      return;
    }
    this.start(this.take(request), request);
  }

  /** Takes a range as a write does: nothing that overlaps runs, and barriers wait for release(). */
  holdRange(beginOffset: number, endOffset: number): Promise<HeldRange> {
    return new Promise((resolve) => {
      const request = new BlockRequest();
      request.op = BLOCK_OP.writeZeroes;
      request.offsetBytes = beginOffset;
      request.lengthBytes = endOffset - beginOffset;
      request.owner = { blockRequestDone: () => undefined };
      const operation = this.take(request);
      operation.whenHeld = () => resolve({ release: () => this.finish(operation, null) });
      this.start(operation, request);
    });
  }

  private start(operation: VolumeOperation, request: BlockRequest): void {
    const changesData = request.op !== BLOCK_OP.read && request.op !== BLOCK_OP.extents;
    if (changesData) {
      if (this.barriers > 0) {
        this.gated.push(operation);
        return;
      }
      const { converging } = this;
      if (request.op === BLOCK_OP.flush && converging?.holdsFlushes === true) {
        // Not active meanwhile: barriers do not wait for it, and convergence does for barriers.
        void converging.whenDone().then(() => this.start(operation, request));
        return;
      }
      this.enter(operation, request);
    }
    this.admit(operation, request);
  }

  /** From now on nobody is served: a newer engine has the volume. */
  refuse(error: StorageError): void {
    this.refusal ??= error;
  }

  /** What a replica that leaves now may lack. */
  missing(): Missing {
    const inFlight: ByteRange[] = [...(this.converging?.remaining ?? [])];
    for (const operation of this.active) {
      const { op, offsetBytes, lengthBytes } = operation.request as BlockRequest;
      if (op === BLOCK_OP.flush) continue;
      inFlight.push({
        beginOffset: alignDown(offsetBytes, SECTOR_BYTES),
        endOffset: alignUp(offsetBytes + lengthBytes, SECTOR_BYTES),
      });
    }
    return { inFlight: mergeRanges(inFlight), unflushed: this.written.ranges() };
  }

  /** Notes every write from now on, for a replica that is absent, until takeMissed(). */
  noteMissed(): void {
    this.missed ??= new WrittenRanges();
  }

  takeMissed(): ByteRange[] {
    const ranges = this.missed?.ranges() ?? [];
    this.missed = null;
    return ranges;
  }

  /** Resolves when the writes that are in flight now are answered. One at a time. */
  writesInFlightDone(): Promise<void> {
    if (this.active.size === 0) return Promise.resolve();
    this.marked = new Set(this.active);
    return new Promise((resolve) => {
      this.whenMarkedDone = resolve;
    });
  }

  /** Runs a request whose range the caller holds already (a part of an unaligned write). */
  submitPart(request: BlockRequest): void {
    const operation = this.take(request);
    operation.isPart = true;
    this.run(operation);
  }

  /**
   * Holds back new writes, waits for those in flight, runs `action`, lets writes go on. Reads are
   * not held: every readable replica has every acknowledged write.
   */
  async withBarrier<T>(action: () => Promise<T>): Promise<T> {
    this.barriers++;
    try {
      if (this.active.size > 0) {
        await new Promise<void>((resolve) => this.whenDrained.push(resolve));
      }
      return await action();
    } finally {
      this.barriers--;
      if (this.barriers === 0) this.openGate();
    }
  }

  operationGranted(operation: VolumeOperation): void {
    this.run(operation);
  }

  operationSettled(operation: VolumeOperation, error: StorageError | null): void {
    this.finish(operation, error);
  }

  copyDone(operation: VolumeOperation, copy: BlockRequest, error: StorageError | null): void {
    const request = operation.request as BlockRequest;
    const member = operation.targets[copy.tag] as Member;
    const { resultBytes } = copy;
    this.copies.give(copy);
    if (request.op === BLOCK_OP.read || request.op === BLOCK_OP.extents) {
      this.readDone(operation, request, member, resultBytes, error);
      return;
    }
    if (error !== null) operation.failures.push({ member, error });
    request.resultBytes = Math.max(request.resultBytes, resultBytes);
    operation.pendingCopies--;
    if (operation.pendingCopies === 0) this.writeDone(operation);
  }

  private enter(operation: VolumeOperation, request: BlockRequest): void {
    this.active.add(operation);
    if (request.op === BLOCK_OP.flush) return;
    this.writesEntered++;
    this.written.note(request.offsetBytes, request.lengthBytes);
    if (this.missed !== null) this.missed.note(request.offsetBytes, request.lengthBytes);
  }

  private admit(operation: VolumeOperation, request: BlockRequest): void {
    operation.startedMs = this.clock.nowMs();
    if (request.op === BLOCK_OP.flush) {
      this.run(operation);
      return;
    }
    const begin = alignDown(request.offsetBytes, SECTOR_BYTES);
    const end = alignUp(request.offsetBytes + request.lengthBytes, SECTOR_BYTES);
    const exclusive = request.op !== BLOCK_OP.read && request.op !== BLOCK_OP.extents;
    if (this.ranges.acquire(operation, begin, end, exclusive)) this.run(operation);
  }

  private run(operation: VolumeOperation): void {
    const request = operation.request as BlockRequest;
    if (operation.whenHeld !== null) {
      operation.whenHeld();
      return;
    }
    switch (request.op) {
      case BLOCK_OP.read:
      case BLOCK_OP.extents:
        this.tryRead(operation, request);
        return;
      case BLOCK_OP.write:
      case BLOCK_OP.writeZeroes:
        if (this.needsAlignment(operation, request)) {
          (this.unalignedWriter as UnalignedWriter).write(request, (error) =>
            this.finish(operation, error),
          );
        } else this.fanOut(operation, request);
        return;
      case BLOCK_OP.unmap:
        this.runUnmap(operation, request);
        return;
      case BLOCK_OP.flush:
        if (this.coveringFlush === null) this.coverWritten(operation);
        this.fanOut(operation, request);
        return;
    }
  }

  /** This flush covers what was answered before it; what is in flight now it may not. */
  private coverWritten(flush: VolumeOperation): void {
    this.coveringFlush = flush;
    this.written.rotate();
    for (const operation of this.active) {
      const { op, offsetBytes, lengthBytes } = operation.request as BlockRequest;
      if (op !== BLOCK_OP.flush) this.written.note(offsetBytes, lengthBytes);
    }
  }

  private needsAlignment(operation: VolumeOperation, request: BlockRequest): boolean {
    if (operation.isPart || !this.membership.hasWriteOnly) return false;
    return !(isSectorAligned(request.offsetBytes) && isSectorAligned(request.lengthBytes));
  }

  private runUnmap(operation: VolumeOperation, request: BlockRequest): void {
    if (this.isExpanding) {
      const text = 'cannot unmap while expansion is in progress';
      this.finish(operation, new StorageError('BUSY', text));
    } else if (this.membership.hasWriteOnly) {
      // A WO replica does not have its older layers yet, so it cannot tell what a hole uncovers.
      // Trimming is a hint: nobody trims, and all replicas stay alike.
      this.finish(operation, null);
    } else this.fanOut(operation, request);
  }

  private fanOut(operation: VolumeOperation, request: BlockRequest): void {
    const targets = this.membership.live;
    if (this.membership.readable.length === 0) {
      this.finish(operation, new StorageError('NO_BACKEND', 'no backend available'));
      return;
    }
    operation.targets = targets;
    operation.pendingCopies = targets.length;
    for (let index = 0; index < targets.length; index++) {
      this.copyTo(operation, request, targets[index] as Member, index);
    }
  }

  private copyTo(
    operation: VolumeOperation,
    request: BlockRequest,
    member: Member,
    tag: number,
  ): void {
    const copy = this.copies.take(operation);
    copy.op = request.op;
    copy.offsetBytes = request.offsetBytes;
    copy.lengthBytes = request.lengthBytes;
    copy.bufferOffset = request.bufferOffset;
    copy.fua = request.fua;
    copy.tag = tag;
    const { port } = member;
    if (port === null || member.mode === 'ERR') {
      copy.done(member.failure ?? new StorageError('CONNECTION_LOST', `${member.address}: EOF`));
    } else port.submit(copy);
  }

  private tryRead(operation: VolumeOperation, request: BlockRequest): void {
    const member = this.pickReader(operation);
    if (member === null) {
      const last = operation.failures.at(-1);
      this.failReaders(operation, false);
      this.finish(operation, last?.error ?? new StorageError('NO_BACKEND', 'no backend available'));
      return;
    }
    operation.targets = [member];
    this.copyTo(operation, request, member, 0);
  }

  /** The least loaded readable replica that this operation has not tried; ties take turns. */
  private pickReader(operation: VolumeOperation): Member | null {
    const { readable } = this.membership;
    if (this.converging !== null) return this.pinnedReader(operation, this.converging);
    let best: Member | null = null;
    let bestLoad = Number.POSITIVE_INFINITY;
    this.nextReader = (this.nextReader + 1) % Math.max(1, readable.length);
    for (let i = 0; i < readable.length; i++) {
      const member = readable[(this.nextReader + i) % readable.length] as Member;
      const load = member.port?.inFlightCount ?? Number.POSITIVE_INFINITY;
      if (load >= bestLoad || operation.failures.some((f) => f.member === member)) continue;
      best = member;
      bestLoad = load;
    }
    return best;
  }

  /** The next one after a reference that fails is the one that takes its place. */
  private pinnedReader({ failures }: VolumeOperation, converging: Converging): Member | null {
    const hasFailed = (member: Member): boolean => failures.some((f) => f.member === member);
    const reference = converging.reference();
    if (reference !== null && !hasFailed(reference)) return reference;
    return this.membership.readable.find((member) => !hasFailed(member)) ?? null;
  }

  private readDone(
    operation: VolumeOperation,
    request: BlockRequest,
    member: Member,
    resultBytes: number,
    error: StorageError | null,
  ): void {
    if (error === null) {
      request.resultBytes = resultBytes;
      this.failReaders(operation, true);
      this.finish(operation, null);
    } else if (error.code === 'UNSUPPORTED') {
      this.finish(operation, error);
    } else {
      operation.failures.push({ member, error });
      this.tryRead(operation, request);
    }
  }

  /**
   * Replicas that failed a read leave the volume, except the last readable one that did answer:
   * a sector that cannot be read is no reason to lose the rest of the volume.
   */
  private failReaders(operation: VolumeOperation, readSucceeded: boolean): void {
    for (const { member, error } of operation.failures) {
      const isLast = !readSucceeded && this.membership.readable.length === 1;
      if (!(isLast && error.code === 'PEER_ERROR')) this.failMember(member, error);
    }
  }

  private writeDone(operation: VolumeOperation): void {
    if (operation.failures.length === 0) {
      this.acknowledge(operation);
      return;
    }
    const { failures } = operation;
    // Who left while the write ran does not count, whatever it answered: a restarted engine could
    // trust another one, which does not have the write.
    const targets = operation.targets.filter((member) => member.mode !== 'ERR');
    const results = targets.map(
      (member): WriteResult => ({
        mode: member.mode === 'WO' ? 'WO' : 'RW',
        error: failures.find((failure) => failure.member === member)?.error ?? null,
        writtenBytes: 0,
      }),
    );
    const outcome = decideWriteOutcome(results);
    const firstError = failures[0]?.error ?? null;
    for (const index of outcome.failed) {
      const member = targets[index] as Member;
      const error = results[index]?.error ?? firstError;
      if (error !== null) this.failMember(member, error);
    }
    if (outcome.answer === 'success') {
      this.acknowledge(operation);
      return;
    }
    this.noteDivergence(operation.request as BlockRequest);
    this.finish(operation, answerOf(outcome.answer, firstError));
  }

  /** Members that all refused a write may each have a part of it; its range is still held. */
  private noteDivergence({ op, offsetBytes, lengthBytes }: BlockRequest): void {
    if (op === BLOCK_OP.flush || this.membership.readable.length < 2) return;
    this.diverged?.({ beginOffset: offsetBytes, endOffset: offsetBytes + lengthBytes });
  }

  /** P3: not before all who remain know durably who has not got this write. */
  private acknowledge(operation: VolumeOperation): void {
    if (this.gate.isSettled) this.finish(operation, null);
    else this.gate.wait(operation);
  }

  private finish(operation: VolumeOperation, error: StorageError | null): void {
    const request = operation.request as BlockRequest;
    const { op } = request;
    const { isPart, startedMs } = operation;
    if (operation === this.coveringFlush) {
      this.coveringFlush = null;
      if (error === null) this.written.forgetPrevious();
    }
    if (this.active.delete(operation)) this.unmark(operation);
    if (!isPart && op !== BLOCK_OP.flush) this.ranges.release(operation);
    operation.reset();
    this.idle.push(operation);
    if (!isPart && error === null) this.count(request, startedMs);
    request.done(error);
    if (!isPart && op !== BLOCK_OP.read && op !== BLOCK_OP.extents) this.writeLeft();
  }

  private count(request: BlockRequest, startedMs: number): void {
    if (request.op === BLOCK_OP.read) {
      this.metrics.countRead(request.lengthBytes, startedMs, this.clock.nowMs());
    } else if (request.op === BLOCK_OP.write) {
      this.metrics.countWrite(request.lengthBytes, startedMs, this.clock.nowMs());
    }
  }

  private unmark(operation: VolumeOperation): void {
    if (this.marked === null || !this.marked.delete(operation) || this.marked.size > 0) return;
    this.marked = null;
    this.whenMarkedDone?.();
  }

  private writeLeft(): void {
    if (this.active.size > 0 || this.whenDrained.length === 0) return;
    const waiting = this.whenDrained;
    this.whenDrained = [];
    for (const resolve of waiting) resolve();
  }

  private openGate(): void {
    const waiting = this.gated;
    this.gated = [];
    for (const operation of waiting) {
      const request = operation.request as BlockRequest;
      this.enter(operation, request);
      this.admit(operation, request);
    }
  }

  private take(request: BlockRequest): VolumeOperation {
    const operation = this.idle.pop() ?? new VolumeOperation(this);
    operation.request = request;
    return operation;
  }
}

// One engine owns one volume. This class holds the parts together and runs control operations one
// at a time; the data path is volume.ts, the rules are in the modules named after each operation.

import { type Clock, sleepMs } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import { Mutex } from '../core/mutex.js';
import type { Slab } from '../core/slab.js';
import { Checkpoints } from './checkpoints.js';
import { Convergence } from './convergence.js';
import { Expansion } from './expansion.js';
import { cutFork } from './fork.js';
import { nextGeneration } from './generation.js';
import { type FrontendPort, noFrontend } from './frontend-port.js';
import type { Member } from './membership.js';
import type { ReplicaConnector, ReplicaPort } from './ports.js';
import { addReplica, prepareRebuild, promote, type RebuildPlan, verifyRebuild } from './rebuild.js';
import { ReplicaGroup } from './replica-group.js';
import type { ReplicaMode } from './replica-mode.js';
import { RosterKeeper } from './roster-keeper.js';
import type { EngineSettings } from './settings.js';
import { revertToSnapshot, takeSnapshot } from './snapshot.js';
import { probeReplicas, type Probed, type StartRequest, startReplicas } from './start.js';
import { UnalignedWriter } from './unaligned-writer.js';
import { Volume } from './volume.js';

/** Converging what was in flight takes seconds; a whole volume takes too long to wait for. */
const ALIKE_WAIT_MS = 30_000;

export interface EngineOptions {
  readonly settings: EngineSettings;
  readonly connector: ReplicaConnector;
  readonly slab: Slab;
  readonly clock: Clock;
  readonly log: Logger;
  /** A name that nobody else makes: a UUID. */
  readonly newId: () => string;
  /** In [0, 1). */
  readonly random: () => number;
}

export class Engine {
  readonly settings: EngineSettings;
  readonly volume: Volume;
  readonly expansion: Expansion;
  readonly convergence: Convergence;
  frontend: FrontendPort = noFrontend;
  private readonly options: EngineOptions;
  private readonly group: ReplicaGroup;
  private readonly keeper: RosterKeeper;
  private readonly checkpoints: Checkpoints;
  private readonly clock: Clock;
  private readonly log: Logger;
  private readonly mutex = new Mutex();

  constructor(options: EngineOptions) {
    const { settings, connector, slab, clock, log } = options;
    this.options = options;
    this.settings = settings;
    this.clock = clock;
    this.log = log;
    this.group = new ReplicaGroup({
      connector,
      clock,
      log,
      replicaTimeoutMs: settings.replicaTimeoutMs,
      memberFailed: (member, port, error) => this.memberFailed(member, port, error),
      memberRemoved: (member, port) =>
        this.keeper.memberLeft(member, port.replicaId, port.hostBootId, null),
      joinerLeft: (member) => this.keeper.joinerLeft(member),
    });
    const { group } = this;
    const { membership } = group;
    this.keeper = new RosterKeeper({
      membership,
      clock,
      log,
      silenceMaxMs: () => group.silenceMaxMs(),
      failMember: (member, error) => group.fail(member, error),
    });
    this.volume = new Volume({
      membership,
      clock,
      gate: this.keeper,
      failMember: (member, error) => group.fail(member, error),
    });
    this.volume.unalignedWriter = new UnalignedWriter(this.volume, slab);
    this.convergence = new Convergence({
      membership,
      volume: this.volume,
      slab,
      clock,
      log,
      failMember: (member, error) => group.fail(member, error),
      done: () => this.forkSoon(),
    });
    this.volume.diverged = (range) => this.convergence.add([range]);
    this.checkpoints = new Checkpoints({
      membership,
      volume: this.volume,
      clock,
      log,
      mayForget: () =>
        this.keeper.isStored && !this.keeper.needsFork && !this.convergence.isRunning,
    });
    this.expansion = new Expansion({
      group,
      volume: this.volume,
      settings,
      frontend: () => this.frontend,
      clock,
      log,
    });
  }

  /** Set when a newer engine has taken the volume: this one serves nothing any more. */
  private fencedBy: StorageError | null = null;

  get isFenced(): boolean {
    return this.fencedBy !== null;
  }

  get replicas(): readonly Member[] {
    return this.group.membership.all;
  }

  /** Without addresses, or when it has replicas already, nothing happens. @throws NO_BACKEND. */
  start(request: StartRequest): Promise<void> {
    return this.mutex.run(async () => {
      if (request.addresses.length === 0 || this.replicas.length > 0) return;
      if (this.fencedBy !== null) throw this.fencedBy;
      const sizeBytes = await this.startVolume(request);
      this.log.info('volume.started', { sizeBytes, replicas: request.addresses });
      const { frontendName } = this.settings;
      if (frontendName !== '') await this.frontend.start(frontendName);
    });
  }

  private async startVolume(request: StartRequest): Promise<number> {
    const { group, settings, log, keeper, volume } = this;
    const probed = await probeReplicas(group, request.addresses);
    this.takeGeneration(probed);
    const parts = { group, settings, log };
    const started = await startReplicas(parts, request, keeper.engineGeneration, probed);
    volume.resize(started.sizeBytes);
    try {
      // Before the first request: a member that cannot store it is none.
      await keeper.start(started.absent);
    } catch (error) {
      for (const port of started.unused) group.closePort(port);
      await group.closeAll();
      throw error;
    }
    for (const port of started.unused) this.dismiss(port);
    // The engine before this one has left it unflushed.
    const whole = [{ beginOffset: 0, endOffset: started.sizeBytes }];
    volume.written.noteAll(started.mayDiffer ?? whole);
    const { reference } = started;
    const preferred = reference === null ? null : (group.membership.find(reference) ?? null);
    this.convergence.add(started.mayDiffer, preferred, started.lacksUnflushed);
    if (keeper.needsFork) volume.noteMissed();
    this.checkpoints.start();
    this.forkSoon();
    return started.sizeBytes;
  }

  /** A replica that is not used learns why, so that a later start with it alone is refused. */
  private dismiss(port: ReplicaPort): void {
    const { group, keeper, log } = this;
    void keeper
      .tellOutsider(port)
      .catch((error: unknown) => log.warn('roster.not.told', { replica: port.address, error }))
      .finally(() => group.closePort(port));
  }

  private takeGeneration(probed: readonly Probed[]): void {
    const seen = probed.map(({ info }) => info.engineGeneration);
    const wallMs = this.clock.wallTime().getTime();
    this.keeper.begin(nextGeneration(seen, wallMs, this.options.random()));
  }

  /** Frontend first, then all replicas. The engine can be started again. */
  shutdown(): Promise<void> {
    return this.mutex.run(async () => {
      await this.frontend.shutdown();
      await this.checkpoints.stop();
      const isAlike = await this.convergence.stop();
      await this.volume.withBarrier(async () => {
        if (isAlike) await this.settleCleanly();
        await this.group.closeAll();
      });
      this.log.info('volume.stopped');
    });
  }

  /** All members durable and alike, and all of them say so; else the next start looks closer. */
  private async settleCleanly(): Promise<void> {
    const { group, keeper } = this;
    const { readable } = group.membership;
    if (readable.length === 0) return;
    try {
      await Promise.all(readable.map((member) => member.port !== null && group.flush(member.port)));
      if (group.membership.readable === readable) await keeper.storeClean();
    } catch (error) {
      this.log.warn('volume.stopped.unclean', { error });
    }
  }

  private memberFailed(member: Member, port: ReplicaPort, error: StorageError): void {
    const { volume, keeper } = this;
    if (error.code === 'FENCED') this.fenced(error);
    // A copy that lies is compared as a whole when it comes back.
    // So is one that somebody set to ERR, for who knows why.
    const isSuspect = error.kind === 'corruption' || error.code === 'CANCELLED';
    const missing = isSuspect ? null : volume.missing();
    // Where the disk itself failed, nothing that was not flushed can be counted on.
    const isOnlyLost = error.code === 'CONNECTION_LOST' || error.code === 'TIMEOUT';
    keeper.memberLeft(member, port.replicaId, isOnlyLost ? port.hostBootId : '', missing);
    if (missing === null || this.isFenced) return;
    volume.noteMissed();
    this.forkSoon();
  }

  /** Not while members differ: a snapshot would keep the difference. It is called again then. */
  private forkSoon(): void {
    if (this.convergence.isRunning) return;
    void this.mutex.run(async () => {
      if (!this.convergence.isRunning) await this.cutForkNow();
    });
  }

  /** For operations that cut a snapshot or change the head. @throws BUSY. */
  private async whenAlike(): Promise<void> {
    const { convergence, clock } = this;
    if (!convergence.isRunning) return;
    const waited = new AbortController();
    await Promise.race([convergence.whenDone(), sleepMs(clock, ALIKE_WAIT_MS, waited.signal)]);
    waited.abort();
    if (!convergence.isRunning) return;
    const { doneBytes, totalBytes } = convergence.progress;
    const text = `the replicas are being made alike after an unclean stop (${doneBytes} of ${totalBytes} bytes); try again later`;
    throw new StorageError('BUSY', text, { doneBytes, totalBytes });
  }

  /** As mutex.run, on members that are alike. */
  private async runAlike<T>(operation: () => Promise<T>): Promise<T> {
    if (this.convergence.isRunning) await this.whenAlike();
    return this.mutex.run(async () => {
      // A write that failed on all may have left them different meanwhile.
      await this.whenAlike();
      return operation();
    });
  }

  private cutForkNow(): Promise<void> {
    const { group, keeper, volume, settings, clock, log } = this;
    const { newId } = this.options;
    return cutFork({ group, keeper, volume, settings, clock, log, newId });
  }

  /** A newer engine has taken a replica: this one must not go on with the others. */
  private fenced(error: StorageError): void {
    if (this.isFenced) return;
    this.fencedBy = error;
    this.log.error('engine.fenced', { error });
    this.volume.refuse(error);
    this.keeper.fence(error);
    void this.checkpoints.stop();
    for (const member of this.group.membership.live) this.group.fail(member, error);
  }

  snapshot(name: string, labels: Readonly<Record<string, string>>): Promise<string> {
    return this.runAlike(async () => {
      const taken = await takeSnapshot(
        this.group,
        this.volume,
        this.settings,
        this.clock,
        name,
        labels,
      );
      this.log.info('snapshot.taken', { snapshot: taken });
      return taken;
    });
  }

  revert(name: string): Promise<void> {
    return this.runAlike(async () => {
      const { group, keeper } = this;
      // What left before stands on the head that is about to go, so its fork is cut first; of who
      // leaves meanwhile nobody can tell on which head.
      await this.cutForkNow();
      await keeper.withoutEntries(() =>
        revertToSnapshot(group, this.volume, this.frontend, this.clock, name),
      );
      this.log.info('volume.reverted', { snapshot: name });
    });
  }

  /** Starts an expansion and returns; see `expansion` for its end. @throws INVALID_ARGUMENT, BUSY. */
  expand(sizeBytes: number): void {
    if (!this.expansion.begin(sizeBytes)) return;
    // In turn with all control operations; its own failures are kept in `expansion`.
    void this.runAlike(() => this.expansion.run(sizeBytes)).catch((error: unknown) =>
      this.expansion.refused(error),
    );
  }

  addReplica(address: string, needsSnapshot: boolean, mode: 'WO' | 'RW'): Promise<void> {
    return this.runAlike(async () => {
      // Nobody started the volume: its replicas come one by one.
      const isFirst = this.replicas.length === 0;
      if (isFirst) this.takeGeneration(await probeReplicas(this.group, [address]));
      await addReplica(this.rebuildParts, address, needsSnapshot, mode);
      if (isFirst) this.checkpoints.start();
    });
  }

  /** An absent address succeeds. @throws INVALID_STATE for the last one while the frontend is up. */
  removeReplica(address: string): Promise<void> {
    return this.mutex.run(async () => {
      const member = this.group.membership.find(address);
      if (member === undefined) return;
      const { readable } = this.group.membership;
      const isLast = readable.length === 1 && readable[0] === member;
      if (this.frontend.state === 'up' && (this.replicas.length === 1 || isLast)) {
        throw new StorageError('INVALID_STATE', 'cannot remove last replica if volume is up');
      }
      await this.volume.withBarrier(async () => this.group.remove(member));
      await this.keeper.whenStored();
    });
  }

  /** A replica that is ERR stays so. @throws NOT_FOUND, INVALID_ARGUMENT for WO. */
  setReplicaMode(address: string, mode: ReplicaMode): Promise<void> {
    return this.mutex.run(async () => {
      const member = this.findReplica(address);
      if (mode === 'WO') throw new StorageError('INVALID_ARGUMENT', `cannot set to mode ${mode}`);
      await this.volume.withBarrier(async () => {
        if (mode === 'ERR') {
          this.group.fail(member, new StorageError('CANCELLED', 'set to ERR by request'));
        } else if (member.mode === 'WO') await promote(this.rebuildParts, member);
      });
    });
  }

  prepareRebuild(address: string): Promise<RebuildPlan> {
    return this.mutex.run(() => prepareRebuild(this.rebuildParts, address));
  }

  verifyRebuild(address: string): Promise<void> {
    return this.mutex.run(() => verifyRebuild(this.rebuildParts, address));
  }

  /** @throws NOT_FOUND. */
  findReplica(address: string): Member {
    const member = this.group.membership.find(address);
    if (member !== undefined) return member;
    const { volumeName } = this.settings;
    const text = `cannot find the replica with address ${address} in the controller server of volume ${volumeName}`;
    throw new StorageError('NOT_FOUND', text);
  }

  /** @throws INVALID_ARGUMENT, INVALID_STATE. */
  startFrontend(name: string): Promise<void> {
    return this.mutex.run(async () => {
      if (name === '') throw new StorageError('INVALID_ARGUMENT', 'cannot start empty frontend');
      if (this.expansion.isRunning) {
        const text = 'cannot start frontend during the engine expansion';
        throw new StorageError('INVALID_STATE', text);
      }
      const current = this.frontend;
      if (current.state === 'up' && current.name !== name) {
        const text = `frontend ${current.name} is already started, cannot be set as ${name}`;
        throw new StorageError('INVALID_STATE', text);
      }
      await current.start(name);
    });
  }

  shutdownFrontend(): Promise<void> {
    return this.mutex.run(() => this.frontend.shutdown());
  }

  /** @throws PEER_ERROR when no replica could be told. */
  setUnmapMarkSnapChainRemoved(enabled: boolean): Promise<void> {
    return this.mutex.run(async () => {
      this.settings.unmapMarkSnapChainRemoved = enabled;
      const results = await this.group.onLive((p) =>
        p.control.setUnmapMarkDiskChainRemoved(enabled),
      );
      const failures = results.filter((result) => result.error !== null);
      if (failures.length === results.length) {
        const text = `failed to correct Unmatched flag UnmapMarkSnapChainRemoved for all replicas, expect ${enabled}`;
        throw new StorageError('PEER_ERROR', text);
      }
      for (const { member, error } of failures) this.group.fail(member, error as StorageError);
    });
  }

  /** @throws INVALID_ARGUMENT below what is used. */
  setSnapshotMaxCount(count: number): Promise<void> {
    return this.mutex.run(async () => {
      const usage = await this.most((info) => info.snapshotCountUsage);
      if (count < usage) {
        const text = `cannot set snapshotMaxCount=${count} smaller than current snapshot count usage=${usage}, please purge snapshots first`;
        throw new StorageError('INVALID_ARGUMENT', text);
      }
      this.settings.snapshotMaxCount = count;
      await this.group.onLiveOrFail((port) => port.control.setSnapshotMaxCount(count));
    });
  }

  /** 0 is unlimited, also when there are snapshots. @throws INVALID_ARGUMENT below what is used. */
  setSnapshotMaxBytes(bytes: number): Promise<void> {
    return this.mutex.run(async () => {
      const usage = await this.most((info) => info.snapshotSizeUsage);
      if (bytes !== 0 && bytes < usage) {
        const text = `cannot set snapshotMaxSize=${bytes} smaller than current snapshot size usage=${usage}, please purge snapshots first`;
        throw new StorageError('INVALID_ARGUMENT', text);
      }
      this.settings.snapshotMaxBytes = bytes;
      await this.group.onLiveOrFail((port) => port.control.setSnapshotMaxBytes(bytes));
    });
  }

  private async most(
    pick: (info: Awaited<ReturnType<ReplicaGroup['infos']>>[number]['info']) => number,
  ): Promise<number> {
    return Math.max(0, ...(await this.group.infos()).map(({ info }) => pick(info)));
  }

  private get rebuildParts(): Parameters<typeof addReplica>[0] {
    const { group, keeper, volume, settings, clock } = this;
    const { newId } = this.options;
    return { group, keeper, volume, settings, clock, newId };
  }
}

// One engine owns one volume. This class holds the parts together and runs control operations one
// at a time; the data path is volume.ts, the rules are in the modules named after each operation.

import type { SyncFileInfo } from '../api/generated/common.js';
import type { Clock } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import { Mutex } from '../core/mutex.js';
import type { Slab } from '../core/slab.js';
import { Expansion } from './expansion.js';
import { type FrontendPort, noFrontend } from './frontend-port.js';
import type { Member } from './membership.js';
import type { ReplicaConnector } from './ports.js';
import { addReplica, prepareRebuild, verifyRebuild } from './rebuild.js';
import { ReplicaGroup } from './replica-group.js';
import type { ReplicaMode } from './replica-mode.js';
import type { EngineSettings } from './settings.js';
import { revertToSnapshot, takeSnapshot } from './snapshot.js';
import { type StartRequest, startReplicas } from './start.js';
import { UnalignedWriter } from './unaligned-writer.js';
import { Volume } from './volume.js';

export interface EngineOptions {
  readonly settings: EngineSettings;
  readonly connector: ReplicaConnector;
  readonly slab: Slab;
  readonly clock: Clock;
  readonly log: Logger;
}

export class Engine {
  readonly settings: EngineSettings;
  readonly volume: Volume;
  readonly expansion: Expansion;
  frontend: FrontendPort = noFrontend;
  private readonly group: ReplicaGroup;
  private readonly clock: Clock;
  private readonly log: Logger;
  private readonly mutex = new Mutex();

  constructor(options: EngineOptions) {
    const { settings, connector, slab, clock, log } = options;
    this.settings = settings;
    this.clock = clock;
    this.log = log;
    this.group = new ReplicaGroup({
      connector,
      clock,
      log,
      replicaTimeoutMs: settings.replicaTimeoutMs,
    });
    const { group } = this;
    this.volume = new Volume({
      membership: group.membership,
      clock,
      failMember: (member, error) => group.fail(member, error),
    });
    this.volume.unalignedWriter = new UnalignedWriter(this.volume, slab);
    this.expansion = new Expansion({
      group,
      volume: this.volume,
      settings,
      frontend: () => this.frontend,
      clock,
      log,
    });
  }

  get replicas(): readonly Member[] {
    return this.group.membership.all;
  }

  /** Without addresses, or when it has replicas already, nothing happens. @throws NO_BACKEND. */
  start(request: StartRequest): Promise<void> {
    return this.mutex.run(async () => {
      if (request.addresses.length === 0 || this.replicas.length > 0) return;
      const sizeBytes = await startReplicas(this.group, this.settings, request, this.log);
      this.volume.resize(sizeBytes);
      this.log.info('volume.started', { sizeBytes, replicas: request.addresses });
      const { frontendName } = this.settings;
      if (frontendName !== '') await this.frontend.start(frontendName);
    });
  }

  /** Frontend first, then all replicas. The engine can be started again. */
  shutdown(): Promise<void> {
    return this.mutex.run(async () => {
      await this.frontend.shutdown();
      await this.volume.withBarrier(() => this.group.closeAll());
      this.log.info('volume.stopped');
    });
  }

  snapshot(name: string, labels: Readonly<Record<string, string>>): Promise<string> {
    return this.mutex.run(async () => {
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
    return this.mutex.run(async () => {
      await revertToSnapshot(this.group, this.volume, this.frontend, this.clock, name);
      this.log.info('volume.reverted', { snapshot: name });
    });
  }

  /** Starts an expansion and returns; see `expansion` for its end. @throws INVALID_ARGUMENT, BUSY. */
  expand(sizeBytes: number): void {
    if (!this.expansion.begin(sizeBytes)) return;
    // In turn with all control operations; its own failures are kept in `expansion`.
    void this.mutex.run(() => this.expansion.run(sizeBytes));
  }

  addReplica(address: string, needsSnapshot: boolean, mode: 'WO' | 'RW'): Promise<void> {
    return this.mutex.run(() => addReplica(this.rebuildParts, address, needsSnapshot, mode));
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
        } else if (member.mode === 'WO') this.group.promote(member);
      });
    });
  }

  prepareRebuild(address: string): Promise<SyncFileInfo[]> {
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
    const { group, volume, settings, clock } = this;
    return { group, volume, settings, clock };
  }
}

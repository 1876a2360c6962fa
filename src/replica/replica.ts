// One copy of a volume: the directory of an image chain and whether the chain is open. Data requests
// and control operations go through here; what is in flight when the chain closes is finished
// first, what comes later is refused. It writes nothing to a directory that was never created.
// States and error texts are Longhorn's (facts: on-disk §3 "Server-level", §7).

import type { BlockDevice, BlockRequest } from '../core/block-device.js';
import type { ByteRange } from '../core/byte-ranges.js';
import { StorageError, toStorageError } from '../core/errors.js';
import { Mutex } from '../core/mutex.js';
import type { Roster } from '../core/roster.js';
import { isSectorAligned, SECTOR_BYTES } from '../core/units.js';
import {
  type ChainInfo,
  ImageChain,
  type RemoveAction,
  type SnapshotOptions,
  type WorkOptions,
} from '../image/chain.js';
import { META_SECTOR_BYTES, type VolumeMeta } from '../image/metadata.js';
import {
  checkExpansion,
  markRemoved,
  prepareRemove,
  removeDisk,
  replaceDisk,
  revertTo,
} from './disk-operations.js';
import { type ChainSettings, openForEngine } from './opening.js';
import type {
  OpenRequest,
  OpenStatus,
  ReplicaOptions,
  ReplicaState,
  ReplicaStatus,
} from './replica-shapes.js';
import { checkGeneration, type KnownAbsence, Standing } from './standing.js';
import { WriteIntents } from './write-intents.js';

type LeaveEvent = 'closed' | 'abandoned' | 'deleted' | 'taken.over';

const NO_INFO: ReplicaStatus['info'] = {
  sizeBytes: 0,
  head: '',
  parent: '',
  dirty: false,
  rebuilding: false,
  sectorBytes: 0,
  backingFilePath: '',
};

export class Replica implements BlockDevice {
  readonly directory: string;
  readonly hasRevisionCounter: boolean;
  private readonly options: ReplicaOptions;
  /** Control operations run one at a time, in the order of the calls. */
  private readonly operations = new Mutex();
  private chain: ImageChain | null = null;
  /** Null while closed, and while an engine has it open that makes no checkpoints. */
  private intents: WriteIntents | null = null;
  /** Ends long work on the open chain when it closes. */
  private workEnd = new AbortController();
  private readonly works = new Set<Promise<void>>();
  /** State while no chain is open, as last seen; pings must be answered without reading the disk. */
  private closedState: ReplicaState = 'initial';
  /** Why the open chain cannot be trusted any more: one of its files could not be looked at. */
  private fault: StorageError | null = null;
  private readonly standing: Standing;
  /** Generation of the engine that has the chain open; 0 for one of Longhorn's. */
  private generation = 0;
  /** Grows with each open: what was sent to an earlier one must not reach a later one. */
  private serial = 0;
  /** Newest generation that asked to open: operations of older engines that come later are refused. */
  private askedGeneration = 0;
  private settings: ChainSettings;

  private constructor(options: ReplicaOptions) {
    this.options = options;
    this.directory = options.directory;
    this.hasRevisionCounter = options.revisionCounter;
    this.standing = new Standing(options);
    const { unmapMarkDiskChainRemoved, snapshotMaxCount, snapshotMaxBytes } = options;
    this.settings = { unmapMarkDiskChainRemoved, snapshotMaxCount, snapshotMaxBytes };
  }

  /** Looks at the directory and leaves it closed. */
  static async at(options: ReplicaOptions): Promise<Replica> {
    const replica = new Replica(options);
    await replica.lookAtDirectory();
    return replica;
  }

  /** 0 while closed. */
  get sizeBytes(): number {
    return this.chain?.sizeBytes ?? 0;
  }

  /** Which open this is, counted; 0 while closed. */
  get openSerial(): number {
    return this.chain === null ? 0 : this.serial;
  }

  get nextSerial(): number {
    return this.serial + 1;
  }

  /** Of the engine that has it open; 0 for one of Longhorn's, and while closed. */
  get openGeneration(): number {
    return this.chain === null ? 0 : this.generation;
  }

  /** Newest generation that has it open or has asked to. */
  get newestGeneration(): number {
    return Math.max(this.askedGeneration, this.openGeneration);
  }

  get snapshotMaxCount(): number {
    return this.settings.snapshotMaxCount;
  }

  get unmapMarkDiskChainRemoved(): boolean {
    return this.settings.unmapMarkDiskChainRemoved;
  }

  /**
   * Ask before an operation on behalf of an engine; 0: of nobody that says who it is. What came
   * before a newer engine asked to open is done before it, because operations run in turn.
   * @throws FENCED; NOT_OPEN when the engine has lost it; INVALID_STATE when another one has it open.
   */
  checkCaller(generation: number): void {
    checkGeneration(generation, this.newestGeneration);
    if (generation === 0) return;
    if (this.chain === null) throw notOpen();
    if (generation === this.generation) return;
    throw new StorageError('INVALID_STATE', 'another engine has the replica open');
  }

  submit(request: BlockRequest): void {
    if (this.chain === null) request.done(notOpen());
    else if (this.intents !== null) this.intents.admit(request);
    else this.chain.submit(request);
  }

  /** Null when open and healthy, else why data must not be trusted to this replica. */
  ping(): StorageError | null {
    if (this.chain === null) {
      return new StorageError('NOT_OPEN', `ping failure: replica state ${this.closedState}`);
    }
    if (this.fault === null) return null;
    return new StorageError(this.fault.code, `ping failure due to ${this.fault.message}`);
  }

  status(): Promise<ReplicaStatus> {
    return this.operations.run(async () => {
      const { chain } = this;
      if (chain === null) {
        const info = await this.lookAtDirectory();
        await this.standing.look();
        const standing = this.standing.record;
        return { state: this.closedState, info: info ?? NO_INFO, open: null, standing };
      }
      const open = await this.openStatus(chain);
      const info = chain.info();
      return { state: this.openState(info), info, open, standing: this.standing.record };
    });
  }

  /** Makes an empty volume in a directory that has none; otherwise does nothing. */
  create(sizeBytes: number): Promise<void> {
    return this.operations.run(async () => {
      if (this.chain !== null) return;
      await this.lookAtDirectory();
      if (this.closedState !== 'initial') return;
      checkCreateSize(sizeBytes);
      const { disk, directory, clock, log, encrypted, backingFilePath } = this.options;
      await ImageChain.create(disk, directory, {
        sizeBytes,
        clock,
        log,
        encrypted,
        ...(backingFilePath === undefined ? {} : { backingFilePath }),
      });
      await this.lookAtDirectory();
      log.info('replica.created', { sizeBytes });
    });
  }

  /**
   * A newer engine takes the replica from an older one that has it open.
   * @throws INVALID_STATE already open; FENCED for an engine older than one seen; NOT_FOUND not created.
   */
  open(request: OpenRequest): Promise<void> {
    const { engineGeneration } = request;
    this.askedGeneration = Math.max(this.askedGeneration, engineGeneration);
    return this.operations.run(async () => {
      const wasOpen = this.chain !== null;
      if (wasOpen) await this.takeOver(engineGeneration);
      await this.standing.look();
      checkGeneration(engineGeneration, this.standing.record.engineGeneration);
      const info = await this.lookAtDirectory();
      // Opening what was never created must leave the directory as it is.
      if (this.closedState === 'initial')
        throw new StorageError('NOT_FOUND', 'file does not exist');
      await this.standing.admit(engineGeneration);
      const { options, settings, standing } = this;
      const wasDirty = info?.dirty ?? false;
      const parts = { options, settings, standing: standing.record, wasDirty };
      const { chain, intents } = await openForEngine(parts, standing.pinnedDisks, request).catch(
        async (error: unknown) => {
          await standing.leave(false);
          throw error;
        },
      );
      this.fault = null;
      this.workEnd = new AbortController();
      this.chain = chain;
      this.intents = intents;
      this.generation = engineGeneration;
      this.serial++;
      this.options.log.info('replica.opened', {
        sizeBytes: chain.sizeBytes,
        wasDirty,
        engineGeneration,
      });
      if (wasOpen) this.options.takenOver?.();
    });
  }

  /** Finishes what is in flight and makes it durable. A closed replica stays closed. */
  close(): Promise<void> {
    return this.operations.run(() => this.leave((chain) => chain.close(), 'closed'));
  }

  /**
   * Closes after its engine vanished: the directory stays dirty. A closed replica stays closed.
   * @param serial the open that is meant; a later one stays.
   */
  abandon(serial = this.serial): Promise<void> {
    return this.operations.run(async () => {
      if (serial === this.serial) await this.leave((chain) => chain.abandon(), 'abandoned');
    });
  }

  /** Removes the data of an open replica; the directory stays. */
  delete(): Promise<void> {
    return this.operations.run(() => this.leave((chain) => chain.delete(), 'deleted'));
  }

  /** Stores who is in step; durable when resolved. @throws FENCED, NOT_OPEN. */
  setRoster(roster: Roster): Promise<void> {
    return this.operations.run(async () => {
      const { chain } = this;
      if (chain === null) throw notOpen();
      checkGeneration(roster.generation, this.generation);
      await this.standing.setRoster(roster, () => chain.disks(), chain.info().head);
      chain.setPinned(this.standing.pinnedDisks);
    });
  }

  /** What this replica knows of an absent one; null when only comparing can tell. */
  absence(replicaId: string): Promise<KnownAbsence | null> {
    return this.operations.run(async () => {
      if (this.chain === null) return null;
      return this.standing.absence(replicaId, await this.chain.disks());
    });
  }

  /** From when this resolves, writes enter a new set of intents. @throws NOT_OPEN, NO_SPACE, IO_ERROR. */
  beginCheckpoint(): Promise<void> {
    return this.operations.run(async () => {
      if (this.chain === null) throw notOpen();
      await this.intents?.begin();
    });
  }

  /** Forgets the intents from before beginCheckpoint(): every replica has them durably. @throws NOT_OPEN. */
  endCheckpoint(): Promise<void> {
    return this.operations.run(async () => {
      if (this.chain === null) throw notOpen();
      await this.intents?.end();
      await this.standing.checkpointed();
    });
  }

  /** Where writes may have landed since the last checkpoint; null when it may be anywhere. */
  writeIntents(): Promise<readonly ByteRange[] | null> {
    return this.operations.run(async () => this.intents?.ranges() ?? null);
  }

  /** Reads the directory again after a rebuild or restore changed its files. */
  reload(): Promise<void> {
    return this.whenOpen((chain) => chain.reload());
  }

  snapshot(options: SnapshotOptions): Promise<void> {
    return this.whenOpen((chain) => chain.snapshot(options));
  }

  /** snapshot() with the same options is quick after this. */
  prepareSnapshot(options: SnapshotOptions): Promise<void> {
    return this.whenOpen((chain) => chain.prepareSnapshot(options));
  }

  /** @param diskName of the snapshot, not its own name. @throws NOT_FOUND, INVALID_STATE. */
  revert(diskName: string, created: string): Promise<void> {
    return this.whenOpen((chain) => revertTo(chain, this.directory, diskName, created));
  }

  /** The same size is a no-op. @throws NOT_ALIGNED, INVALID_ARGUMENT. */
  expand(sizeBytes: number): Promise<void> {
    return this.whenOpen(async (chain) => {
      checkExpansion(chain, sizeBytes);
      await this.intents?.grow(sizeBytes);
      await chain.expand(sizeBytes);
    });
  }

  /** Unknown names succeed. @throws INVALID_STATE for the head. */
  markRemoved(name: string): Promise<void> {
    return this.whenOpen((chain) => markRemoved(chain, name));
  }

  /** Unknown names give no actions. @throws INVALID_STATE for the head and unmarked disks. */
  async prepareRemove(name: string): Promise<RemoveAction[]> {
    let actions: RemoveAction[] = [];
    await this.whenOpen(async (chain) => {
      actions = prepareRemove(chain, name);
    });
    return actions;
  }

  /** @param diskName of a snapshot, not its own name. @throws NOT_FOUND, INVALID_STATE. */
  removeDisk(diskName: string, force: boolean): Promise<void> {
    return this.whenOpen((chain) => removeDisk(chain, diskName, force));
  }

  /** @throws NOT_FOUND for an unknown source or target. */
  replaceDisk(target: string, source: string): Promise<void> {
    return this.whenOpen((chain) => replaceDisk(chain, target, source));
  }

  /** Long work next to I/O and other operations; ends with CANCELLED when the replica closes. */
  coalesce(source: string, target: string, options: WorkOptions = {}): Promise<void> {
    return this.longWork(options, (chain, work) => chain.coalesce(source, target, work));
  }

  /** Like coalesce(). */
  prune(source: string, options: WorkOptions = {}): Promise<void> {
    return this.longWork(options, (chain, work) => chain.prune(source, work));
  }

  /** @throws INVALID_STATE: true only from open and dirty, false only from rebuilding. */
  setRebuilding(rebuilding: boolean): Promise<void> {
    return this.operations.run(async () => {
      const { chain } = this;
      if (chain === null) await this.lookAtDirectory();
      const state = chain === null ? this.closedState : this.openState(chain.info());
      const isAllowed = rebuilding ? state === 'open' || state === 'dirty' : state === 'rebuilding';
      if (chain === null || !isAllowed) {
        const text = `cannot set rebuilding=${rebuilding} from state ${state}`;
        throw new StorageError('INVALID_STATE', text);
      }
      await chain.setRebuilding(rebuilding);
      this.options.log.info('replica.rebuilding.set', { rebuilding, from: state });
    });
  }

  /** @throws INVALID_STATE when this replica keeps no counter. */
  setRevisionCounter(counter: number): Promise<void> {
    return this.whenOpen(async (chain) => {
      if (!this.hasRevisionCounter) {
        throw new StorageError('INVALID_STATE', "BUG: revision file wasn't initialized");
      }
      await chain.setRevisionCounter(counter);
    });
  }

  setUnmapMarkDiskChainRemoved(enabled: boolean): Promise<void> {
    this.settings.unmapMarkDiskChainRemoved = enabled;
    return this.whenOpen(async (chain) => chain.setUnmapMarkDiskChainRemoved(enabled));
  }

  setSnapshotMaxCount(count: number): Promise<void> {
    this.settings.snapshotMaxCount = count;
    return this.whenOpen(async (chain) => chain.setSnapshotMaxCount(count));
  }

  setSnapshotMaxBytes(bytes: number): Promise<void> {
    this.settings.snapshotMaxBytes = bytes;
    return this.whenOpen(async (chain) => chain.setSnapshotMaxBytes(bytes));
  }

  /** Runs an operation on the open chain. Longhorn's replica ignores operations while closed. */
  private whenOpen(operation: (chain: ImageChain) => Promise<void>): Promise<void> {
    return this.operations.run(async () => {
      if (this.chain !== null) await operation(this.chain);
    });
  }

  private async longWork(
    options: WorkOptions,
    operation: (chain: ImageChain, work: WorkOptions) => Promise<void>,
  ): Promise<void> {
    if (this.chain === null) throw notOpen();
    const closing = this.workEnd.signal;
    const signal =
      options.signal === undefined ? closing : AbortSignal.any([closing, options.signal]);
    const work = operation(this.chain, { ...options, signal });
    this.works.add(work);
    try {
      await work;
    } finally {
      this.works.delete(work);
    }
  }

  /** New requests are refused from here on; the chain itself waits for those in flight. */
  private async leave(end: (chain: ImageChain) => Promise<void>, event: LeaveEvent): Promise<void> {
    const { chain } = this;
    if (chain === null) return;
    this.chain = null;
    this.closedState = 'closed';
    this.workEnd.abort();
    // Nothing may change the directory any more once the replica says that it is closed.
    await Promise.allSettled(this.works);
    const { intents } = this;
    this.intents = null;
    // What the intents say is on disk already; the chain must be closed in any case.
    await intents?.close().catch((error: unknown) => {
      this.options.log.warn('replica.intents.close.failed', { error });
    });
    await end(chain);
    if (event === 'deleted') await WriteIntents.remove(this.options.disk, this.directory);
    await this.lookAtDirectory();
    await this.standing.leave(event === 'closed');
    if (event === 'deleted') await this.standing.remove();
    this.options.log.info(`replica.${event}`);
  }

  /** What the older engine has in flight is finished; what it sends from now on is refused. */
  private async takeOver(engineGeneration: number): Promise<void> {
    checkGeneration(engineGeneration, this.generation);
    const isNewer = engineGeneration > this.generation && this.generation > 0;
    if (!isNewer) throw new StorageError('INVALID_STATE', 'replica is already open');
    await this.leave((chain) => chain.abandon(), 'taken.over');
  }

  private openState({ rebuilding, dirty }: ChainInfo): ReplicaState {
    if (this.fault !== null) return 'error';
    if (rebuilding) return 'rebuilding';
    return dirty ? 'dirty' : 'open';
  }

  /** A chain whose files cannot be looked at is faulty: the next ping tells the engine. */
  private async openStatus(chain: ImageChain): Promise<OpenStatus> {
    try {
      const [disks, usage, head] = await Promise.all([
        chain.disks(),
        chain.usage(),
        chain.headUsage(),
      ]);
      const { revisionCounter } = chain;
      return { disks, liveChain: chain.liveChain(), usage, head, revisionCounter };
    } catch (error) {
      this.fault ??= toStorageError(error);
      this.options.log.error('replica.faulty', { error: this.fault });
      throw error;
    }
  }

  /** Sets closedState; returns volume.meta when it is there and readable. */
  private async lookAtDirectory(): Promise<VolumeMeta | null> {
    try {
      const meta = await ImageChain.probe(this.options.disk, this.directory);
      this.closedState = meta === null ? 'initial' : 'closed';
      return meta;
    } catch (error) {
      const isMissing = error instanceof StorageError && error.code === 'NOT_FOUND';
      this.closedState = isMissing ? 'initial' : 'error';
      if (isMissing) return null;
      this.options.log.warn('replica.metadata.unreadable', { error });
      return null;
    }
  }
}

function checkCreateSize(sizeBytes: number): void {
  if (sizeBytes % META_SECTOR_BYTES !== 0) {
    const text = `size ${sizeBytes} not a multiple of sector size ${META_SECTOR_BYTES}`;
    throw new StorageError('NOT_ALIGNED', text);
  }
  if (sizeBytes <= 0 || !isSectorAligned(sizeBytes)) {
    const text = `size ${sizeBytes} is not a positive multiple of ${SECTOR_BYTES}`;
    throw new StorageError('INVALID_ARGUMENT', text);
  }
}

function notOpen(): StorageError {
  return new StorageError('NOT_OPEN', 'replica no longer exist');
}

// The image chain of one replica directory: the layers from the backing image to the head, seen as
// one block device, plus every operation that changes the chain. Directories are Longhorn's own,
// byte for byte. It must never acknowledge a write that a reopened chain could lose after a flush,
// nor leave the directory in a state that it (or Longhorn) cannot open.

import type { BlockDevice, BlockRequest } from '../core/block-device.js';
import type { Clock } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import { SNAPSHOT_COUNT_MAX } from '../core/limits.js';
import type { Logger } from '../core/log.js';
import { Mutex } from '../core/mutex.js';
import { alignDown, alignUp, SECTOR_BYTES } from '../core/units.js';
import type { Disk } from '../disk/disk.js';
import {
  expandChain,
  reloadChain,
  removeFromChain,
  replaceInChain,
  revertChain,
} from './chain-changes.js';
import type {
  ChainInfo,
  ChainUsage,
  DiskInfo,
  HeadUsage,
  RemoveAction,
  WorkOptions,
} from './chain-info.js';
import { ChainIo } from './chain-io.js';
import { checkWritable, snapshotCountOf, type ChainState } from './chain-state.js';
import { createDirectory } from './creation.js';
import { finishRemoval } from './disk-files.js';
import { visitExtents } from './layer-stack.js';
import { writeOpenMeta } from './head-change.js';
import { MetadataStore } from './metadata-store.js';
import type { VolumeMeta } from './metadata.js';
import { CHECKSUM_SUFFIX, META_SUFFIX, REVISION_COUNTER, VOLUME_META } from './names.js';
import { checkDirectory, openLayers, readDirectory, readVolumeMeta, topDisk } from './opening.js';
import { PurgeWork } from './purge-work.js';
import { mergeRanges, type ByteRange } from '../core/byte-ranges.js';
import { clearLeftovers } from './recovery.js';
import { planRemoval, RemovalMarks } from './removal.js';
import { RequestRouter } from './request-router.js';
import { RevisionCounter } from './revision-counter.js';
import { dropPrepared, prepareSnapshot, takeSnapshot } from './snapshot-change.js';
import { clearUnfinishedWrites } from './unfinished-writes.js';

export type {
  ChainInfo,
  ChainUsage,
  DiskInfo,
  HeadUsage,
  RemoveAction,
  WorkOptions,
} from './chain-info.js';

export interface CreateOptions {
  /** A positive multiple of 4096. */
  readonly sizeBytes: number;
  readonly clock: Clock;
  readonly log: Logger;
  /** The volume's data is encrypted by its user (LUKS); only recorded. */
  readonly encrypted?: boolean;
  readonly backingFilePath?: string;
}

export interface OpenChainOptions {
  readonly clock: Clock;
  readonly log: Logger;
  /** Writes nothing at all, not even metadata. */
  readonly readOnly?: boolean;
  /** With readOnly: look at this snapshot (disk or snapshot name) instead of the head. */
  readonly headDiskName?: string;
  /** Raw file, or a directory with exactly one file. Default: what volume.meta records. */
  readonly backingFilePath?: string;
  /** Keep revision.counter. Default false. */
  readonly revisionCounter?: boolean;
  /** Unmap marks the snapshots under the head as removed and reclaims their space too. */
  readonly unmapMarkDiskChainRemoved?: boolean;
  /** Default SNAPSHOT_COUNT_MAX. */
  readonly snapshotMaxCount?: number;
  /** Where writes may have been cut short by a power failure; see unfinished-writes.ts. Default none. */
  readonly unfinishedRanges?: readonly ByteRange[];
  /** Disks that a purge leaves alone; see setPinned. */
  readonly pinnedDisks?: ReadonlySet<string>;
  /** Bytes of all live snapshots together; 0 (default) is no limit. Reported, enforced by the engine. */
  readonly snapshotMaxBytes?: number;
}

export interface SnapshotOptions {
  /** Snapshot name, without volume-snap- and .img. */
  readonly name: string;
  readonly userCreated: boolean;
  /** RFC 3339 text, the same on every replica. */
  readonly created: string;
  readonly labels?: Readonly<Record<string, string>> | null;
}

function wholeSectors(beginOffset: number, endOffset: number): ByteRange {
  return {
    beginOffset: alignDown(beginOffset, SECTOR_BYTES),
    endOffset: alignUp(endOffset, SECTOR_BYTES),
  };
}

/**
 * An open chain. Every promise rejects with a StorageError. Names are accepted as disk names
 * (`volume-snap-x.img`) and as snapshot names (`x`). Changes of the chain wait for requests in
 * flight and hold later ones back; they run one at a time, in call order.
 */
export class ImageChain implements BlockDevice {
  private readonly state: ChainState;
  private readonly io: ChainIo;
  private readonly router: RequestRouter;
  private readonly marks: RemovalMarks;
  private readonly purge: PurgeWork;
  private readonly turns = new Mutex();
  private readonly usesRevisionCounter: boolean;
  private snapshotMaxBytes: number;
  private closing: Promise<void> | null = null;
  /** Ends when the last snapshot has removed the names of its old head. */
  private tidied: Promise<void> = Promise.resolve();

  /**
   * Makes the directory (one level) and an empty volume in it, closed. A directory that lost its
   * volume.meta but still has a head gets a new volume.meta; an initialised one is left alone.
   */
  static create(disk: Disk, directory: string, options: CreateOptions): Promise<void> {
    return createDirectory(new MetadataStore(disk, directory), options);
  }

  /**
   * volume.meta of a directory that need not be open; null when it is not initialised. Writes
   * nothing. @throws BAD_METADATA; NOT_FOUND without a directory; INVALID_ARGUMENT no directory.
   */
  static async probe(disk: Disk, directory: string): Promise<VolumeMeta | null> {
    await checkDirectory(disk, directory);
    return readVolumeMeta(new MetadataStore(disk, directory));
  }

  /**
   * @throws NOT_FOUND uninitialised directory (nothing is written); BAD_METADATA; CHAIN_BROKEN;
   * IMAGE_TRUNCATED; CHAIN_TOO_LONG; EXTENTS_UNSUPPORTED; INVALID_ARGUMENT no directory.
   */
  static async open(disk: Disk, directory: string, options: OpenChainOptions): Promise<ImageChain> {
    const store = new MetadataStore(disk, directory);
    const isReadOnly = options.readOnly ?? false;
    const { meta: stored, table } = await readDirectory(store);
    const top = topDisk(stored, table.find(options.headDiskName ?? stored.head), options);
    const backingFilePath = options.backingFilePath ?? stored.backingFilePath;
    const chain = table.chainFrom(top);
    const stack = await openLayers(store, chain, stored.sizeBytes, backingFilePath, isReadOnly);
    const io = new ChainIo(directory, stack, stored.sizeBytes, isReadOnly, stored.dirty);
    const parent = table.get(stored.head)?.parent ?? '';
    const meta = { ...stored, parent, backingFilePath };
    const { clock, log } = options;
    const snapshotMaxCount = options.snapshotMaxCount ?? SNAPSHOT_COUNT_MAX;
    const state = {
      store,
      io,
      clock,
      log,
      table,
      meta,
      top,
      busyDisks: new Set<string>(),
      pinnedDisks: options.pinnedDisks ?? new Set<string>(),
      prepared: null,
      snapshotMaxCount,
    };
    const image = new ImageChain(state, options);
    if (isReadOnly) return image;
    try {
      await image.becomeWritable(stored, options.unfinishedRanges ?? []);
    } catch (error) {
      await io.counter?.close();
      await io.stack.closeFiles();
      throw error;
    }
    return image;
  }

  private constructor(state: ChainState, options: OpenChainOptions) {
    this.state = state;
    this.io = state.io;
    this.marks = new RemovalMarks(state);
    this.purge = new PurgeWork(state);
    this.router = new RequestRouter(state.io, this.marks);
    this.router.marksAncestors = options.unmapMarkDiskChainRemoved ?? false;
    this.usesRevisionCounter = options.revisionCounter ?? false;
    this.snapshotMaxBytes = options.snapshotMaxBytes ?? 0;
  }

  private async becomeWritable(
    stored: VolumeMeta,
    unfinished: readonly ByteRange[],
  ): Promise<void> {
    const { store, table, meta, log } = this.state;
    await clearLeftovers(store, table, meta.head, log);
    // An interrupted replacement may have given the head's ancestors other names.
    if (this.io.stack.count !== this.layerCount()) await this.reopenLayers();
    const clearedBytes = await clearUnfinishedWrites(this.io, unfinished);
    if (clearedBytes > 0) log.info('image.unfinished.cleared', { clearedBytes });
    if (this.usesRevisionCounter) {
      this.io.counter = await RevisionCounter.open(store.disk, store.directory);
    }
    // After a crash volume.meta is right already, and on a full disk it could not be written.
    const isRight =
      stored.dirty &&
      stored.parent === meta.parent &&
      stored.backingFilePath === meta.backingFilePath;
    if (!isRight) await writeOpenMeta(this.state, meta);
  }

  private layerCount(): number {
    const { table, meta } = this.state;
    return table.chainFrom(meta.head).length + (meta.backingFilePath === '' ? 0 : 1);
  }

  private async reopenLayers(): Promise<void> {
    const { store, table, meta } = this.state;
    const chain = table.chainFrom(meta.head);
    const stack = await openLayers(store, chain, meta.sizeBytes, meta.backingFilePath, false);
    await this.io.stack.closeFiles();
    this.io.stack = stack;
  }

  // --- block device ---------------------------------------------------------------------------

  get sizeBytes(): number {
    return this.io.sizeBytes;
  }

  /** read, write, flush, unmap, writeZeroes, extents. */
  submit(request: BlockRequest): void {
    this.router.submit(request);
  }

  // --- changes --------------------------------------------------------------------------------

  /**
   * @throws ALREADY_EXISTS, TOO_MANY_SNAPSHOTS, INVALID_NAME, NO_SPACE. details.rollback
   * ('succeeded' or 'failed') tells whether a half-done one was undone.
   */
  snapshot(options: SnapshotOptions): Promise<void> {
    return new Promise((resolve, reject) => {
      const { sizeBytes } = this;
      const taken = this.inTurn(() =>
        takeSnapshot(this.state, { labels: null, ...options, sizeBytes }, resolve),
      );
      this.tidied = taken.catch(reject);
    });
  }

  /** Makes the snapshot's files ahead; snapshot() with the same options uses them. @throws as it. */
  prepareSnapshot(options: SnapshotOptions): Promise<void> {
    const { sizeBytes } = this;
    return this.inTurn(() => prepareSnapshot(this.state, { labels: null, ...options, sizeBytes }));
  }

  /** Puts a new empty head above the snapshot and reopens in place; the old head's data is gone. */
  revert(name: string, created: string): Promise<void> {
    return this.change(() => revertChain(this.state, name, created));
  }

  /** Unknown names succeed. @throws INVALID_STATE for the head. */
  markRemoved(name: string): Promise<void> {
    return this.change(() => this.marks.markRemoved(name));
  }

  /** Unknown names give no actions. @throws INVALID_STATE for the head and unmarked disks. */
  prepareRemove(name: string): RemoveAction[] {
    return planRemoval(this.state, name);
  }

  /**
   * Drops a disk and its data; its children continue on its parent. Several children need force.
   * @throws NOT_FOUND, INVALID_STATE, BUSY.
   */
  removeDisk(name: string, force: boolean): Promise<void> {
    return this.change(() => removeFromChain(this.state, name, force));
  }

  /** After coalesce: the child (target) takes over the merged file of its parent (source). */
  replaceDisk(target: string, source: string): Promise<void> {
    return this.change(() => replaceInChain(this.state, target, source));
  }

  /** Makes snapshot `expand-<size>` and a larger head. The same size is a no-op. */
  expand(sizeBytes: number): Promise<void> {
    return this.change(() => expandChain(this.state, sizeBytes));
  }

  /** Reads the directory again after files were changed by a rebuild or restore. */
  reload(): Promise<void> {
    return this.change(() => reloadChain(this.state));
  }

  setRebuilding(rebuilding: boolean): Promise<void> {
    return this.change(async () => {
      checkWritable(this.state);
      const meta = { ...this.state.meta, rebuilding };
      await writeOpenMeta(this.state, meta);
      this.state.meta = meta;
    });
  }

  private change<T>(change: () => Promise<T>): Promise<T> {
    return this.inTurn(async () => {
      await dropPrepared(this.state);
      return change();
    });
  }

  private inTurn<T>(action: () => Promise<T>): Promise<T> {
    return this.turns.run(() => {
      if (this.closing !== null) throw new StorageError('CLOSED', 'the image chain is closed');
      return action();
    });
  }

  // --- long work, next to I/O and changes -----------------------------------------------------

  /** Copies the child's data (target) down into its removed parent's file (source). */
  coalesce(source: string, target: string, options: WorkOptions = {}): Promise<void> {
    return this.purge.coalesce(source, target, options);
  }

  /** Punches out of the removed snapshot behind the head what the head hides. */
  prune(source: string, options: WorkOptions = {}): Promise<void> {
    return this.purge.prune(source, options);
  }

  // --- questions ------------------------------------------------------------------------------

  /** 0 when the counter is off. */
  get revisionCounter(): number {
    return this.io.counter?.value ?? 0;
  }

  /** @throws INVALID_STATE when the counter is off. */
  async setRevisionCounter(value: number): Promise<void> {
    if (this.io.counter === null) {
      throw new StorageError('INVALID_STATE', 'the revision counter is disabled');
    }
    await this.io.counter.set(value);
  }

  setUnmapMarkDiskChainRemoved(enabled: boolean): void {
    this.router.marksAncestors = enabled;
  }

  /** Disks whose data an absent replica is compared with: no purge changes or removes them. */
  setPinned(diskNames: ReadonlySet<string>): void {
    this.state.pinnedDisks = diskNames;
  }

  setSnapshotMaxCount(count: number): void {
    this.state.snapshotMaxCount = count;
  }

  setSnapshotMaxBytes(bytes: number): void {
    this.snapshotMaxBytes = bytes;
  }

  info(): ChainInfo {
    const { meta } = this.state;
    return {
      sizeBytes: this.io.sizeBytes,
      head: meta.head,
      parent: meta.parent,
      dirty: this.io.isDirty,
      rebuilding: meta.rebuilding,
      sectorBytes: meta.sectorBytes,
      backingFilePath: meta.backingFilePath,
      encrypted: meta.encrypted,
      readOnly: this.io.isReadOnly,
    };
  }

  /** Every disk record, live chain and side branches, sorted by name. */
  async disks(): Promise<DiskInfo[]> {
    // Removing a name of a file changes the file's change time.
    await this.tidied;
    const { store, table } = this.state;
    return Promise.all(
      table.all().map(async (record) => {
        const stat = await store.disk.stat(store.path(record.name));
        const { allocatedBytes, sizeBytes: imageBytes, changedNs } = stat;
        const children = table.children(record.name);
        return { ...record, children, allocatedBytes, imageBytes, changedNs };
      }),
    );
  }

  /** Disk names from the head to the root, removed ones left out. */
  liveChain(): string[] {
    const { table, top } = this.state;
    return table.chainFrom(top).filter((name) => table.get(name)?.removed !== true);
  }

  async usage(): Promise<ChainUsage> {
    const { state } = this;
    const snapshotCount = snapshotCountOf(state);
    let snapshotBytes = 0;
    for (const name of this.liveChain()) {
      if (name === state.meta.head) continue;
      snapshotBytes += (await state.store.disk.stat(state.store.path(name))).allocatedBytes;
    }
    return {
      snapshotCount,
      diskCount: state.table.size + (state.meta.backingFilePath === '' ? 0 : 1),
      snapshotBytes,
      remainingSnapshots: Math.max(0, state.snapshotMaxCount - snapshotCount),
      snapshotMaxCount: state.snapshotMaxCount,
      snapshotMaxBytes: this.snapshotMaxBytes,
    };
  }

  async headUsage(): Promise<HeadUsage> {
    const stat = await this.state.store.disk.stat(this.state.store.path(this.state.meta.head));
    const { allocatedBytes, modifiedMs, modifiedNs } = stat;
    return { allocatedBytes, modifiedMs, modifiedNs };
  }

  /** Ranges (whole sectors, ascending, merged) in which some layer has data, for export and backup. */
  exportExtents(options: { includeBackingFile?: boolean } = {}): Promise<ByteRange[]> {
    return this.change(async () => {
      const ranges: ByteRange[] = [];
      for (const layer of this.io.stack.all()) {
        if (layer.isBackingFile && options.includeBackingFile !== true) continue;
        await visitExtents(layer, 0, this.io.sizeBytes, (beginOffset, endOffset) => {
          ranges.push(wholeSectors(beginOffset, endOffset));
        });
      }
      return mergeRanges(ranges);
    });
  }

  // --- the end --------------------------------------------------------------------------------

  /** Finishes what is in flight, makes it durable and writes Dirty=false. Idempotent. */
  close(): Promise<void> {
    this.closing ??= this.turns.run(() => this.shutDown(true));
    return this.closing;
  }

  /**
   * Closes, but leaves the directory marked dirty: whoever wrote to it vanished, so that other
   * copies may have more or less of its last writes.
   */
  abandon(): Promise<void> {
    this.closing ??= this.turns.run(() => this.shutDown(false));
    return this.closing;
  }

  /** Closes and removes every disk, volume.meta and revision.counter; the directory stays. */
  async delete(): Promise<void> {
    checkWritable(this.state);
    this.closing ??= this.turns.run(() => this.shutDown(false));
    await this.closing;
    const { store, table } = this.state;
    // Without volume.meta the directory is not initialised, whatever else is still there.
    await store.removeIfPresent(VOLUME_META);
    await store.syncDirectory();
    for (const { name } of table.all()) {
      await store.removeIfPresent(name + META_SUFFIX);
      await store.removeIfPresent(name + CHECKSUM_SUFFIX);
      await finishRemoval(store, name);
    }
    await store.removeIfPresent(REVISION_COUNTER);
    await store.syncDirectory();
  }

  private async shutDown(isClean: boolean): Promise<void> {
    const { io, state } = this;
    const mayBeTrusted = io.refusal === null;
    // First, so that nothing comes to wait behind the last sync.
    io.refusal ??= new StorageError('CLOSED', 'the image chain is closed');
    await this.purge.whenIdle();
    // The next open would drop it as well.
    await dropPrepared(state).catch((error: unknown) => {
      state.log.warn('image.prepared.leftover', { error });
    });
    const held = await io.quiesce();
    try {
      if (io.isReadOnly || !isClean || !mayBeTrusted || io.syncFailure !== null) return;
      await io.stack.head.file.sync();
      await io.counter?.sync();
      await state.store.writeVolume({ ...state.meta, dirty: false });
    } finally {
      held.release();
      await io.stack.closeFiles();
      await io.counter?.close();
    }
  }
}

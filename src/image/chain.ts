// The image chain of one replica directory: the layers from the backing image to the head, seen as
// one block device, plus every operation that changes the chain. Directories are Longhorn's own,
// byte for byte. It must never acknowledge a write that a reopened chain could lose after a flush,
// nor leave the directory in a state that it (or Longhorn) cannot open.

import type { BlockDevice, BlockRequest } from '../core/block-device.js';
import type { Clock } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import type { Disk } from '../disk/disk.js';

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

/** What must be done, in order, to get rid of a removed disk; peers know these three words. */
export interface RemoveAction {
  readonly action: 'coalesce' | 'replace' | 'prune' | 'remove';
  readonly source: string;
  readonly target: string;
}

/** volume.meta and the flags of the open chain. */
export interface ChainInfo {
  readonly sizeBytes: number;
  readonly head: string;
  readonly parent: string;
  /** Set when the last close was unclean, or by a change since. */
  readonly dirty: boolean;
  readonly rebuilding: boolean;
  readonly sectorBytes: number;
  readonly backingFilePath: string;
  readonly encrypted: boolean;
  readonly readOnly: boolean;
}

/** One disk record (snapshot or head) with what its file occupies. */
export interface DiskInfo {
  readonly name: string;
  /** '' when it has none. */
  readonly parent: string;
  readonly children: readonly string[];
  readonly removed: boolean;
  readonly userCreated: boolean;
  readonly created: string;
  readonly labels: Readonly<Record<string, string>> | null;
  /** st_blocks * 512: what Longhorn reports as a disk's size. */
  readonly allocatedBytes: number;
  /** Apparent size of the image file. */
  readonly imageBytes: number;
}

/** The numbers of snapshot limits (facts: on-disk §10). */
export interface ChainUsage {
  /** Disk records without the head and removed ones. */
  readonly snapshotCount: number;
  /** All disk records, the head and removed ones included. */
  readonly diskCount: number;
  /** Allocated bytes of live-chain snapshots that are not removed. */
  readonly snapshotBytes: number;
  readonly remainingSnapshots: number;
  readonly snapshotMaxCount: number;
  readonly snapshotMaxBytes: number;
}

export interface HeadUsage {
  readonly allocatedBytes: number;
  readonly modifiedMs: number;
  readonly modifiedNs: bigint;
}

/** Long work: called with bytes done and the total; stops with CANCELLED when the signal aborts. */
export interface WorkOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
}

export interface DataRange {
  readonly beginOffset: number;
  readonly endOffset: number;
}

/**
 * An open chain. Every promise rejects with a StorageError. Names are accepted as disk names
 * (`volume-snap-x.img`) and as snapshot names (`x`). Changes of the chain wait for requests in
 * flight and hold later ones back; they run one at a time, in call order.
 */
export class ImageChain implements BlockDevice {
  /**
   * Makes the directory (one level) and an empty volume in it, closed. A directory that lost its
   * volume.meta but still has a head gets a new volume.meta; an initialised one is left alone.
   */
  static async create(_disk: Disk, _directory: string, _options: CreateOptions): Promise<void> {
    throw notYet();
  }

  /**
   * @throws NOT_FOUND uninitialised directory (nothing is written); BAD_METADATA; CHAIN_BROKEN;
   * IMAGE_TRUNCATED; CHAIN_TOO_LONG; EXTENTS_UNSUPPORTED; INVALID_ARGUMENT no directory.
   */
  static async open(_disk: Disk, _directory: string, _options: OpenChainOptions): Promise<ImageChain> {
    throw notYet();
  }

  get sizeBytes(): number {
    throw notYet();
  }

  /** read, write, flush, unmap, writeZeroes, extents. */
  submit(request: BlockRequest): void {
    request.done(notYet());
  }

  /** @throws ALREADY_EXISTS, TOO_MANY_SNAPSHOTS, INVALID_NAME, NO_SPACE. details.rollback tells whether a failed one was undone. */
  async snapshot(_options: SnapshotOptions): Promise<void> {
    throw notYet();
  }

  /** Puts a new empty head above the snapshot and reopens in place; the old head's data is gone. */
  async revert(_name: string, _created: string): Promise<void> {
    throw notYet();
  }

  /** Unknown names succeed. @throws INVALID_STATE for the head. */
  async markRemoved(_name: string): Promise<void> {
    throw notYet();
  }

  /** Unknown names give no actions. @throws INVALID_STATE for the head and unmarked disks. */
  prepareRemove(_name: string): RemoveAction[] {
    throw notYet();
  }

  /** Drops a disk and its data; its children continue on its parent. @throws NOT_FOUND, INVALID_STATE, BUSY. */
  async removeDisk(_name: string, _force: boolean): Promise<void> {
    throw notYet();
  }

  /** After coalesce: the child (target) takes over the merged file of its parent (source). */
  async replaceDisk(_target: string, _source: string): Promise<void> {
    throw notYet();
  }

  /** Copies the child's data (target) down into its removed parent's file (source), next to I/O. */
  async coalesce(_source: string, _target: string, _options?: WorkOptions): Promise<void> {
    throw notYet();
  }

  /** Punches out of the removed snapshot behind the head what the head hides, next to I/O. */
  async prune(_source: string, _options?: WorkOptions): Promise<void> {
    throw notYet();
  }

  /** Makes snapshot `expand-<size>` and a larger head. The same size is a no-op. */
  async expand(_sizeBytes: number): Promise<void> {
    throw notYet();
  }

  /** Reads the directory again after files were changed by a rebuild or restore. */
  async reload(): Promise<void> {
    throw notYet();
  }

  async setRebuilding(_rebuilding: boolean): Promise<void> {
    throw notYet();
  }

  /** 0 when the counter is off. */
  get revisionCounter(): number {
    throw notYet();
  }

  async setRevisionCounter(_value: number): Promise<void> {
    throw notYet();
  }

  setUnmapMarkDiskChainRemoved(_enabled: boolean): void {
    throw notYet();
  }

  setSnapshotMaxCount(_count: number): void {
    throw notYet();
  }

  setSnapshotMaxBytes(_bytes: number): void {
    throw notYet();
  }

  info(): ChainInfo {
    throw notYet();
  }

  /** Every disk record, live chain and side branches, sorted by name. */
  async disks(): Promise<DiskInfo[]> {
    throw notYet();
  }

  /** Disk names from the head to the root, removed ones left out. */
  liveChain(): string[] {
    throw notYet();
  }

  async usage(): Promise<ChainUsage> {
    throw notYet();
  }

  async headUsage(): Promise<HeadUsage> {
    throw notYet();
  }

  /** Ranges (whole sectors, ascending, merged) in which some layer has data, for export and backup. */
  async exportExtents(_options?: { includeBackingFile?: boolean }): Promise<DataRange[]> {
    throw notYet();
  }

  /** Finishes what is in flight, makes it durable and writes Dirty=false. Idempotent. */
  async close(): Promise<void> {
    throw notYet();
  }

  /** Closes and removes every disk, volume.meta and revision.counter; the directory stays. */
  async delete(): Promise<void> {
    throw notYet();
  }
}

function notYet(): StorageError {
  return new StorageError('UNSUPPORTED', 'the image chain is being written');
}

// What the changes of one open chain work on. Only chain-changes.ts and chain.ts modify it, and only
// one change runs at a time.

import type { Clock } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import type { ChainIo } from './chain-io.js';
import type { DiskTable } from './disk-table.js';
import type { MetadataStore } from './metadata-store.js';
import type { DiskRecord, VolumeMeta } from './metadata.js';
import type { PreparedSnapshot } from './snapshot-change.js';

export interface ChainState {
  readonly store: MetadataStore;
  readonly io: ChainIo;
  readonly clock: Clock;
  readonly log: Logger;
  table: DiskTable;
  /** As last written, except Dirty, which is true on disk as long as the chain is open. */
  meta: VolumeMeta;
  /** Disk name at the top: the head, or the snapshot that a read-only chain looks at. */
  top: string;
  /** Disks that coalesce or prune works on; they may not be removed or replaced meanwhile. */
  readonly busyDisks: Set<string>;
  /** Disks that an absent replica's return needs as they are. */
  pinnedDisks: ReadonlySet<string>;
  /** Files of a snapshot that was not taken yet; any other change drops them. */
  prepared: PreparedSnapshot | null;
  snapshotMaxCount: number;
}

/** A writable chain's record by either form of its name. @throws NOT_FOUND. */
export function findDisk(state: ChainState, name: string): DiskRecord {
  const record = state.table.find(name);
  if (record !== undefined) return record;
  throw new StorageError('NOT_FOUND', `cannot find disk ${name}`, { name });
}

export function checkWritable(state: ChainState): void {
  if (state.io.refusal !== null) throw state.io.refusal;
  if (!state.io.isReadOnly) return;
  throw new StorageError('READ_ONLY', 'the image chain is open for reading only');
}

export function checkNotBusy(state: ChainState, ...names: string[]): void {
  for (const name of names) {
    if (state.busyDisks.has(name)) {
      throw new StorageError('BUSY', `disk ${name} is being purged`, { name });
    }
  }
}

/** Not forced on anybody: a rebuild removes what it must. @throws BUSY. */
export function checkNotPinned(state: ChainState, ...names: string[]): void {
  for (const name of names) {
    if (state.pinnedDisks.has(name)) {
      throw new StorageError('BUSY', `disk ${name} is kept for a replica that is absent`, { name });
    }
  }
}

/** Disk records without the head and removed ones (facts: on-disk §10 "usage"). */
export function snapshotCountOf(state: ChainState): number {
  return state.table.all().filter((r) => r.name !== state.meta.head && !r.removed).length;
}

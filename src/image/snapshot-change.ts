// A snapshot: the head is frozen under a second name, and a new head takes its place. Its files may be
// made ahead (prepareSnapshot), while nobody waits; what is left to do while requests stand still is
// one sync and one rename. A crash between any two calls leaves either the old or the new chain
// (promise P7); files that were made ahead and never used are cleared by the next change or open.

import { StorageError } from '../core/errors.js';
import { CHAIN_LAYERS_MAX } from '../core/limits.js';
import { checkSnapshotName } from '../core/snapshot-name.js';
import type { DiskFile } from '../disk/disk.js';
import { checkWritable, findDisk, snapshotCountOf, type ChainState } from './chain-state.js';
import { createHead, linkSnapshot, removeHeadFiles, unlinkSnapshot } from './disk-files.js';
import { headRecord, removeOldHead, takeBack, undo, writeOpenMeta } from './head-change.js';
import type { DiskRecord, VolumeMeta } from './metadata.js';
import { nextHeadName, snapshotDiskName } from './names.js';
import { layerOf } from './opening.js';

/** A snapshot to be made, and the size of the head above it. */
export interface NewSnapshot {
  readonly name: string;
  readonly userCreated: boolean;
  readonly created: string;
  readonly labels: Readonly<Record<string, string>> | null;
  readonly sizeBytes: number;
}

/** What a snapshot makes of the chain as it is. */
interface SnapshotChange {
  readonly frozen: DiskRecord;
  readonly newHead: DiskRecord;
  readonly meta: VolumeMeta;
}

/** A snapshot's files, durable, that volume.meta does not name yet. */
export interface PreparedSnapshot {
  readonly change: SnapshotChange;
  /** Of the new head. */
  readonly file: DiskFile;
}

/** @param committed called when it is durable; the old head's names are removed after that. */
export async function takeSnapshot(
  state: ChainState,
  snapshot: NewSnapshot,
  committed: () => void = () => undefined,
): Promise<void> {
  const change = planSnapshot(state, snapshot);
  const { frozen, newHead } = change;
  const oldHeadName = state.meta.head;
  const ahead = state.prepared;
  // The records tell all: a chain that has changed since would make other ones.
  const isPrepared = ahead !== null && JSON.stringify(ahead.change) === JSON.stringify(change);
  if (!isPrepared) await dropPrepared(state);
  const file = isPrepared ? ahead.file : await makeFiles(state, change);
  state.prepared = null;
  try {
    await commitSnapshot(state, change, file);
  } catch (error) {
    await file.close();
    throw await undo(state, error, () => removeNewFiles(state, change));
  }
  state.log.info('image.snapshot.created', { diskName: frozen.name, head: newHead.name });
  committed();
  await removeOldHead(state, oldHeadName);
}

/** Makes a snapshot's files, so that taking the same snapshot next has little left to do. */
export async function prepareSnapshot(state: ChainState, snapshot: NewSnapshot): Promise<void> {
  const change = planSnapshot(state, snapshot);
  await dropPrepared(state);
  state.prepared = { change, file: await makeFiles(state, change) };
  try {
    await state.store.stageVolume({ ...change.meta, dirty: true });
  } catch (error) {
    await dropPrepared(state);
    throw error;
  }
}

/** Before any other change: the prepared files are of no use then. */
export async function dropPrepared(state: ChainState): Promise<void> {
  const { prepared } = state;
  if (prepared === null) return;
  await prepared.file.close();
  await state.store.dropStaged();
  await removeNewFiles(state, prepared.change);
  state.prepared = null;
}

/** @throws ALREADY_EXISTS, INVALID_NAME, TOO_MANY_SNAPSHOTS. */
function planSnapshot(state: ChainState, snapshot: NewSnapshot): SnapshotChange {
  checkWritable(state);
  checkSnapshotName(snapshot.name);
  const { userCreated, created, labels, sizeBytes } = snapshot;
  const diskName = snapshotDiskName(snapshot.name);
  if (state.table.get(diskName) !== undefined) {
    throw new StorageError('ALREADY_EXISTS', `snapshot ${diskName} is already existing`, {
      diskName,
    });
  }
  checkSnapshotCount(state);
  const oldHead = findDisk(state, state.meta.head);
  const frozen = { ...oldHead, userCreated, created, labels, name: diskName };
  const newHead = headRecord(nextHeadName(oldHead.name), diskName, created);
  const meta = { ...state.meta, head: newHead.name, parent: frozen.name, sizeBytes };
  return { frozen, newHead, meta };
}

function checkSnapshotCount(state: ChainState): void {
  const layers = state.table.chainFrom(state.meta.head).length;
  const isFull = state.snapshotMaxCount - snapshotCountOf(state) <= 0;
  if (!isFull && layers < CHAIN_LAYERS_MAX) return;
  throw new StorageError('TOO_MANY_SNAPSHOTS', `too many active disks: ${state.table.size}`, {
    disks: state.table.size,
    snapshotMaxCount: state.snapshotMaxCount,
  });
}

/**
 * Makes the new head, and the snapshot as a second name of the old one, while requests still run.
 * All of it side by side, because an engine that did not prepare holds its clients' writes back
 * meanwhile: the syncs share the file system's journal, and volume.meta names none of the files yet.
 */
async function makeFiles(state: ChainState, change: SnapshotChange): Promise<DiskFile> {
  const { frozen, newHead, meta } = change;
  const [head, linked, synced] = await Promise.allSettled([
    createHead(state.store, newHead, meta.sizeBytes),
    linkSnapshot(state.store, state.meta.head, frozen),
    // Most of what is not durable yet becomes so before requests stop.
    state.io.syncLayer(state.io.stack.head),
  ]);
  const failed = [head, linked, synced].find((step) => step.status === 'rejected');
  if (head.status === 'fulfilled' && failed === undefined) return head.value;
  if (head.status === 'fulfilled') await head.value.close();
  // A head that could not be made has cleared up after itself; one that was there is not ours.
  throw await takeBack(state, failed?.reason, async () => {
    if (head.status === 'fulfilled') await removeHeadFiles(state.store, newHead.name);
    await unlinkSnapshot(state.store, frozen.name);
  });
}

async function removeNewFiles(state: ChainState, change: SnapshotChange): Promise<void> {
  await removeHeadFiles(state.store, change.newHead.name);
  await unlinkSnapshot(state.store, change.frozen.name);
}

/** The short part during which no request runs. */
async function commitSnapshot(
  state: ChainState,
  { frozen, newHead, meta }: SnapshotChange,
  file: DiskFile,
): Promise<void> {
  const { io } = state;
  const { sizeBytes } = meta;
  const held = await io.quiesce();
  try {
    // Frozen layers are durable, so that flush has only the head to care for.
    await io.syncLayer(io.stack.head);
    await writeOpenMeta(state, meta);
    state.table.delete(state.meta.head);
    state.table.put(frozen);
    state.table.put(newHead);
    state.meta = meta;
    state.top = newHead.name;
    io.stack.head.diskName = frozen.name;
    if (sizeBytes !== io.sizeBytes) io.stack.index.resize(sizeBytes);
    io.sizeBytes = sizeBytes;
    io.stack.pushHead(layerOf(newHead.name, file, sizeBytes));
    io.isDirty = true;
  } finally {
    held.release();
  }
}

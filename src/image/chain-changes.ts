// The changes of a chain: snapshot, expand, revert, remove, replace. Each prepares its files, stops
// I/O for a moment, commits by replacing one metadata file, and clears up. A crash between any two
// calls leaves either the old or the new chain, complete (promise P7); recovery.ts clears the rest.

import { StorageError, toStorageError } from '../core/errors.js';
import { CHAIN_LAYERS_MAX } from '../core/limits.js';
import { checkSnapshotName } from '../core/snapshot-name.js';
import { isSectorAligned, SECTOR_BYTES } from '../core/units.js';
import type { DiskFile } from '../disk/disk.js';
import {
  checkNotBusy,
  checkNotPinned,
  checkWritable,
  findDisk,
  snapshotCountOf,
  type ChainState,
} from './chain-state.js';
import {
  createHead,
  linkSnapshot,
  removeHeadFiles,
  removeSnapshotFiles,
  replaceImage,
  unlinkSnapshot,
} from './disk-files.js';
import type { DiskRecord, VolumeMeta } from './metadata.js';
import { nextHeadName, snapshotDiskName } from './names.js';
import { layerOf, openLayers, readDirectory } from './opening.js';

/** A snapshot to be made, and the size of the head above it. */
interface NewSnapshot {
  readonly name: string;
  readonly userCreated: boolean;
  readonly created: string;
  readonly labels: Readonly<Record<string, string>> | null;
  readonly sizeBytes: number;
}

export async function takeSnapshot(state: ChainState, snapshot: NewSnapshot): Promise<void> {
  checkWritable(state);
  checkSnapshotName(snapshot.name);
  const diskName = snapshotDiskName(snapshot.name);
  if (state.table.get(diskName) !== undefined) {
    throw new StorageError('ALREADY_EXISTS', `snapshot ${diskName} is already existing`, {
      diskName,
    });
  }
  checkSnapshotCount(state);
  const oldHead = findDisk(state, state.meta.head);
  const frozen = { ...oldHead, ...snapshotFields(snapshot), name: diskName };
  const newHead = headRecord(nextHeadName(oldHead.name), diskName, snapshot.created);
  const file = await prepareSnapshot(state, oldHead.name, frozen, newHead, snapshot.sizeBytes);
  try {
    await commitSnapshot(state, frozen, newHead, file, snapshot.sizeBytes);
  } catch (error) {
    await file.close();
    throw await undo(state, error, () => removeNewFiles(state, newHead.name, diskName));
  }
  state.log.info('image.snapshot.created', { diskName, head: newHead.name });
  await removeOldHead(state, oldHead.name);
}

/**
 * Makes the new head, and the snapshot as a second name of the old one, while requests still run.
 * All of it side by side, because the engine may hold its clients' writes back meanwhile: the syncs
 * share the file system's journal, and volume.meta does not name any of the files yet.
 */
async function prepareSnapshot(
  state: ChainState,
  oldHeadName: string,
  frozen: DiskRecord,
  newHead: DiskRecord,
  sizeBytes: number,
): Promise<DiskFile> {
  const [head, linked, synced] = await Promise.allSettled([
    createHead(state.store, newHead, sizeBytes),
    linkSnapshot(state.store, oldHeadName, frozen),
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

async function removeNewFiles(
  state: ChainState,
  headName: string,
  diskName: string,
): Promise<void> {
  await removeHeadFiles(state.store, headName);
  await unlinkSnapshot(state.store, diskName);
}

function snapshotFields(
  snapshot: NewSnapshot,
): Pick<DiskRecord, 'userCreated' | 'created' | 'labels'> {
  const { userCreated, created, labels } = snapshot;
  return { userCreated, created, labels };
}

function headRecord(name: string, parent: string, created: string): DiskRecord {
  return { name, parent, removed: false, userCreated: false, created, labels: null };
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

/** The short part during which no request runs. */
async function commitSnapshot(
  state: ChainState,
  frozen: DiskRecord,
  newHead: DiskRecord,
  file: DiskFile,
  sizeBytes: number,
): Promise<void> {
  const { io } = state;
  const held = await io.quiesce();
  try {
    // Frozen layers are durable, so that flush has only the head to care for.
    await io.syncLayer(io.stack.head);
    const meta = { ...state.meta, head: newHead.name, parent: frozen.name, sizeBytes };
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

/** volume.meta of an open chain: Dirty is true until it is closed. */
export function writeOpenMeta(state: ChainState, meta: VolumeMeta): Promise<void> {
  return state.store.writeVolume({ ...meta, dirty: true });
}

/** Takes a failed commit back. The error tells whether that worked. */
function undo(
  state: ChainState,
  cause: unknown,
  removeFiles: () => Promise<void>,
): Promise<StorageError> {
  return takeBack(state, cause, async () => {
    // The commit may have reached the disk although it failed: volume.meta must name the old head
    // before the new one's files go.
    await writeOpenMeta(state, state.meta);
    await removeFiles();
  });
}

async function takeBack(
  state: ChainState,
  cause: unknown,
  steps: () => Promise<void>,
): Promise<StorageError> {
  const error = toStorageError(cause);
  try {
    await steps();
  } catch (undoError) {
    const rollbackMessage = toStorageError(undoError).message;
    // Memory and directory may differ now; only a fresh open can tell which chain is the one.
    state.io.refusal = new StorageError('INVALID_STATE', `${error.message}; ${rollbackMessage}`);
    return withRollback(error, { rollback: 'failed', rollbackMessage });
  }
  return withRollback(error, { rollback: 'succeeded' });
}

function withRollback(error: StorageError, rollback: Record<string, string>): StorageError {
  return new StorageError(error.code, error.message, { ...error.details, ...rollback }, error);
}

async function removeOldHead(state: ChainState, headName: string): Promise<void> {
  try {
    await removeHeadFiles(state.store, headName);
  } catch (error) {
    // The next open removes it.
    state.log.warn('image.head.leftover', { headName, error });
  }
}

/** RFC 3339 with whole seconds, as Longhorn writes it. */
export function rfc3339(time: Date): string {
  return time.toISOString().replace(/\.\d+Z$/, 'Z');
}

export async function expandChain(state: ChainState, sizeBytes: number): Promise<void> {
  checkWritable(state);
  if (!isSectorAligned(sizeBytes) || !Number.isSafeInteger(sizeBytes)) {
    const text = `failed to expend volume replica size ${sizeBytes}: not a multiple of ${SECTOR_BYTES}`;
    throw new StorageError('NOT_ALIGNED', text, { sizeBytes });
  }
  if (sizeBytes === state.meta.sizeBytes) return;
  if (sizeBytes < state.meta.sizeBytes) {
    throw new StorageError(
      'INVALID_ARGUMENT',
      `cannot expand replica to a smaller size ${sizeBytes}`,
      {
        sizeBytes,
        currentBytes: state.meta.sizeBytes,
      },
    );
  }
  await takeSnapshot(state, {
    name: `expand-${sizeBytes}`,
    userCreated: false,
    created: rfc3339(state.clock.wallTime()),
    labels: { 'replica-expansion': String(sizeBytes) },
    sizeBytes,
  });
}

export async function revertChain(state: ChainState, name: string, created: string): Promise<void> {
  checkWritable(state);
  const target = state.table.find(name);
  if (target === undefined) checkSnapshotName(name);
  await state.store.disk.stat(state.store.path(target?.name ?? name));
  if (target === undefined || target.name === state.meta.head) {
    const text = `cannot revert to disk file ${name} since it's not in the disk chain`;
    throw new StorageError('NOT_FOUND', text, { name });
  }
  if (target.removed) {
    const text = `cannot revert to disk file ${name} since it's already marked as removed`;
    throw new StorageError('INVALID_STATE', text, { name });
  }
  checkNotBusy(state, ...state.table.all().map((record) => record.name));
  const held = await state.io.quiesce();
  try {
    await commitRevert(state, target, created);
  } finally {
    held.release();
  }
}

async function commitRevert(state: ChainState, target: DiskRecord, created: string): Promise<void> {
  const { store, io, meta } = state;
  const oldHead = meta.head;
  const newHead = headRecord(nextHeadName(oldHead), target.name, created);
  const chain = [newHead.name, ...state.table.chainFrom(target.name)];
  const newMeta = { ...meta, head: newHead.name, parent: target.name };
  const file = await createHead(store, newHead, meta.sizeBytes);
  await file.close();
  const stack = await openLayers(store, chain, meta.sizeBytes, meta.backingFilePath, false).catch(
    async (error: unknown) => {
      await removeHeadFiles(store, newHead.name);
      throw error;
    },
  );
  try {
    await writeOpenMeta(state, newMeta);
  } catch (error) {
    await stack.closeFiles();
    throw await undo(state, error, () => removeHeadFiles(store, newHead.name));
  }
  state.meta = newMeta;
  state.top = newHead.name;
  state.table.delete(oldHead);
  state.table.put(newHead);
  await io.stack.closeFiles();
  io.stack = stack;
  io.isDirty = true;
  state.log.info('image.reverted', { to: target.name, head: newHead.name });
  await removeOldHead(state, oldHead);
}

/** Files were changed from outside; the open chain becomes what the directory says now. */
export async function reloadChain(state: ChainState): Promise<void> {
  checkWritable(state);
  checkNotBusy(state, ...state.table.all().map((record) => record.name));
  const { io, store } = state;
  const held = await io.quiesce();
  try {
    await io.syncLayer(io.stack.head);
    const { meta: stored, table } = await readDirectory(store);
    const { backingFilePath } = state.meta;
    const chain = table.chainFrom(stored.head);
    const stack = await openLayers(store, chain, stored.sizeBytes, backingFilePath, false);
    const old = io.stack;
    io.stack = stack;
    io.sizeBytes = stored.sizeBytes;
    state.table = table;
    state.top = stored.head;
    state.meta = { ...stored, parent: table.get(stored.head)?.parent ?? '', backingFilePath };
    await old.closeFiles();
    await writeOpenMeta(state, state.meta);
  } finally {
    held.release();
  }
}

export async function removeFromChain(
  state: ChainState,
  name: string,
  force: boolean,
): Promise<void> {
  checkWritable(state);
  const record = findDisk(state, name);
  if (record.name === state.meta.head) {
    throw new StorageError('INVALID_STATE', 'cannot delete the active differencing disk', { name });
  }
  checkNotBusy(state, record.name, record.parent);
  if (!force) checkNotPinned(state, record.name);
  const children = state.table.children(record.name);
  if (children.length > 1 && !force) {
    throw new StorageError(
      'INVALID_STATE',
      `cannot remove snapshot ${name} with ${children.length} children`,
      {
        name,
        children,
      },
    );
  }
  const held = await state.io.quiesce();
  try {
    for (const child of children) await adopt(state, child, record.parent);
    const layer = state.io.stack.find(record.name);
    if (layer !== undefined) state.io.stack.drop(layer);
    await layer?.file.close();
    state.table.delete(record.name);
    await removeSnapshotFiles(state.store, record.name);
  } finally {
    held.release();
  }
  state.log.info('image.disk.removed', { diskName: record.name });
}

/** The child continues on another parent. */
async function adopt(state: ChainState, childName: string, parent: string): Promise<void> {
  const child = { ...findDisk(state, childName), parent };
  await state.store.writeDisk(child);
  state.table.put(child);
  if (childName !== state.meta.head) return;
  const meta = { ...state.meta, parent };
  await writeOpenMeta(state, meta);
  state.meta = meta;
}

export async function replaceInChain(
  state: ChainState,
  targetName: string,
  sourceName: string,
): Promise<void> {
  checkWritable(state);
  const source = state.table.find(sourceName);
  if (source === undefined) {
    throw new StorageError('NOT_FOUND', `cannot find source of replacing: ${sourceName}`, {
      sourceName,
    });
  }
  const target = state.table.find(targetName);
  if (target === undefined) {
    throw new StorageError('NOT_FOUND', `cannot find target of replacing: ${targetName}`, {
      targetName,
    });
  }
  if (target.name === state.meta.head) {
    throw new StorageError('INVALID_STATE', 'cannot replace the active differencing disk', {
      targetName,
    });
  }
  const isOnlyChild =
    target.parent === source.name && state.table.children(source.name).length === 1;
  if (!isOnlyChild) {
    const text = `cannot replace ${target.name} by ${source.name}, which is not its parent alone`;
    throw new StorageError('INVALID_STATE', text, { targetName, sourceName });
  }
  checkNotBusy(state, target.name, source.name);
  checkNotPinned(state, target.name, source.name);
  const held = await state.io.quiesce();
  try {
    await commitReplace(state, target, source);
  } finally {
    held.release();
  }
  state.log.info('image.disk.replaced', { target: target.name, source: source.name });
}

async function commitReplace(
  state: ChainState,
  target: DiskRecord,
  source: DiskRecord,
): Promise<void> {
  const { store, io } = state;
  await replaceImage(store, target.name, source.name);
  const parentLayer = io.stack.find(source.name);
  const childLayer = io.stack.find(target.name);
  if (parentLayer !== undefined && childLayer !== undefined) {
    const oldFile = childLayer.file;
    childLayer.file = parentLayer.file;
    childLayer.imageBytes = await parentLayer.file.sizeBytes();
    io.stack.mergeInto(parentLayer, childLayer);
    await oldFile.close();
  }
  await adopt(state, target.name, source.parent);
  state.table.delete(source.name);
  await removeSnapshotFiles(store, source.name);
}

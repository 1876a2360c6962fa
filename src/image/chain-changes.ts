// The changes of a chain: expand, revert, remove, replace. Each prepares its files, stops
// I/O for a moment, commits by replacing one metadata file, and clears up. A crash between any two
// calls leaves either the old or the new chain, complete (promise P7); recovery.ts clears the rest.

import { StorageError } from '../core/errors.js';
import { checkSnapshotName } from '../core/snapshot-name.js';
import { isSectorAligned, SECTOR_BYTES } from '../core/units.js';
import {
  checkNotBusy,
  checkNotPinned,
  checkWritable,
  findDisk,
  type ChainState,
} from './chain-state.js';
import { createHead, removeHeadFiles, removeSnapshotFiles, replaceImage } from './disk-files.js';
import { headRecord, removeOldHead, undo, writeOpenMeta } from './head-change.js';
import type { DiskRecord } from './metadata.js';
import { nextHeadName } from './names.js';
import { openLayers, readDirectory } from './opening.js';
import { takeSnapshot } from './snapshot-change.js';

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
  await keepingBlocks(state, record.name, async () => {
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
  });
  state.log.info('image.disk.removed', { diskName: record.name });
}

/**
 * Whoever closes a file without a name last waits until its blocks are free: seconds for one of many
 * small extents. That must not happen while requests are held back, nor hold up the next change.
 */
async function keepingBlocks(
  state: ChainState,
  diskName: string,
  change: () => Promise<void>,
): Promise<void> {
  const { store, log } = state;
  const file = await store.disk.open(store.path(diskName), { writable: false }).catch(() => null);
  try {
    await change();
  } finally {
    file?.close().catch((error) => log.warn('image.close.failed', { diskName, error }));
  }
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
  await keepingBlocks(state, target.name, async () => {
    const held = await state.io.quiesce();
    try {
      await commitReplace(state, target, source);
    } finally {
      held.release();
    }
  });
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

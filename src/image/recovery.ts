// Clears up what a crash in the middle of a change left in a directory, before a chain is opened
// for writing. Only what provably belongs to an interrupted change is touched; the chain that
// volume.meta names has been validated before, and its data is never among it.

import type { Logger } from '../core/log.js';
import { StorageError } from '../core/errors.js';
import type { DiskTable } from './disk-table.js';
import { finishRemoval, removeHeadFiles, removeSnapshotFiles } from './disk-files.js';
import type { MetadataStore } from './metadata-store.js';
import {
  isHeadName,
  isSnapshotDiskName,
  META_SUFFIX,
  REMOVING_SUFFIX,
  REPLACING_SUFFIX,
  TEMPORARY_SUFFIX,
  VOLUME_META,
} from './names.js';

/** Removes leftovers and updates the table. The chain of headName is complete. */
export async function clearLeftovers(
  store: MetadataStore,
  table: DiskTable,
  headName: string,
  log: Logger,
): Promise<void> {
  const fileNames = await store.list();
  await clearTemporaries(store, fileNames);
  await clearStrayHeads(store, table, fileNames, headName, log);
  await clearInterruptedRemovals(store, table, fileNames, log);
  const inodes = await imageInodes(store, table);
  const live = new Set(table.chainFrom(headName));
  await clearLinksWithoutRecord(store, table, inodes, fileNames, log);
  await clearInterruptedSnapshot(store, table, inodes, headName, live, log);
  await finishInterruptedReplace(store, table, inodes, live, log);
  await clearRecordsWithoutImage(store, table, inodes, live, log);
}

async function clearTemporaries(store: MetadataStore, fileNames: readonly string[]): Promise<void> {
  for (const fileName of fileNames) {
    const isReplacement =
      fileName.endsWith(REPLACING_SUFFIX) &&
      isSnapshotDiskName(fileName.slice(0, -REPLACING_SUFFIX.length));
    if (isReplacement || isMetadataTemporary(fileName)) {
      // A directory in its place is not ours; the next metadata write says so.
      await store.removeIfPresent(fileName).catch(() => undefined);
    }
  }
}

function isMetadataTemporary(fileName: string): boolean {
  if (!fileName.endsWith(META_SUFFIX + TEMPORARY_SUFFIX)) return false;
  const target = fileName.slice(0, -TEMPORARY_SUFFIX.length);
  const diskName = target.slice(0, -META_SUFFIX.length);
  return target === VOLUME_META || isHeadName(diskName) || isSnapshotDiskName(diskName);
}

/** A new head whose snapshot or revert was not committed, or an old one after the commit. */
async function clearStrayHeads(
  store: MetadataStore,
  table: DiskTable,
  fileNames: readonly string[],
  headName: string,
  log: Logger,
): Promise<void> {
  const strays = new Set<string>();
  for (const fileName of fileNames) {
    const diskName = fileName.endsWith(META_SUFFIX)
      ? fileName.slice(0, -META_SUFFIX.length)
      : fileName;
    if (isHeadName(diskName) && diskName !== headName) strays.add(diskName);
  }
  for (const diskName of strays) {
    if (table.children(diskName).length > 0) continue;
    log.info('image.leftover.head.removed', { diskName });
    await removeHeadFiles(store, diskName);
    table.delete(diskName);
  }
}

async function clearInterruptedRemovals(
  store: MetadataStore,
  table: DiskTable,
  fileNames: readonly string[],
  log: Logger,
): Promise<void> {
  for (const fileName of fileNames) {
    if (!fileName.endsWith(REMOVING_SUFFIX)) continue;
    const diskName = fileName.slice(0, -REMOVING_SUFFIX.length);
    if (!isSnapshotDiskName(diskName)) continue;
    if (table.get(diskName) === undefined) {
      log.info('image.leftover.removal.finished', { diskName });
      await finishRemoval(store, diskName);
    } else await store.removeIfPresent(fileName);
  }
}

async function imageInodes(store: MetadataStore, table: DiskTable): Promise<Map<string, bigint>> {
  const inodes = new Map<string, bigint>();
  for (const { name } of table.all()) {
    try {
      inodes.set(name, (await store.disk.stat(store.path(name))).inode);
    } catch (error) {
      if (!(error instanceof StorageError) || error.code !== 'NOT_FOUND') throw error;
    }
  }
  return inodes;
}

/**
 * A second name of an image that a disk has anyway. An image of its own without a record stays: a
 * restore or rebuild may have just put it there.
 */
async function clearLinksWithoutRecord(
  store: MetadataStore,
  table: DiskTable,
  inodes: ReadonlyMap<string, bigint>,
  fileNames: readonly string[],
  log: Logger,
): Promise<void> {
  const known = new Set(inodes.values());
  for (const fileName of fileNames) {
    if (!isSnapshotDiskName(fileName) || table.get(fileName) !== undefined) continue;
    // It may be gone: an interrupted removal has been finished before.
    if (!(await store.exists(fileName))) continue;
    if (!known.has((await store.disk.stat(store.path(fileName))).inode)) continue;
    log.info('image.leftover.link.removed', { fileName });
    await store.removeIfPresent(fileName);
  }
}

/** A snapshot that shares the head's image was never committed: the head is still written. */
async function clearInterruptedSnapshot(
  store: MetadataStore,
  table: DiskTable,
  inodes: Map<string, bigint>,
  headName: string,
  live: ReadonlySet<string>,
  log: Logger,
): Promise<void> {
  const headInode = inodes.get(headName);
  for (const { name } of table.all()) {
    if (name === headName || inodes.get(name) !== headInode) continue;
    if (live.has(name) || table.children(name).length > 0) {
      throw new StorageError('CHAIN_BROKEN', `${name} is the same file as ${headName}`, { name });
    }
    log.info('image.leftover.snapshot.removed', { diskName: name });
    await removeSnapshotFiles(store, name);
    table.delete(name);
    inodes.delete(name);
  }
}

/** A child that shares its parent's image took it over, but the parent is still recorded. */
async function finishInterruptedReplace(
  store: MetadataStore,
  table: DiskTable,
  inodes: Map<string, bigint>,
  live: ReadonlySet<string>,
  log: Logger,
): Promise<void> {
  for (const child of table.all()) {
    const twin = table
      .all()
      .find((r) => r.name !== child.name && sameImage(inodes, r.name, child.name));
    if (twin === undefined || table.get(child.name) === undefined) continue;
    if (child.parent === twin.name && table.children(twin.name).length === 1) {
      const adopted = { ...child, parent: twin.parent };
      await store.writeDisk(adopted);
      table.put(adopted);
    } else if (table.children(twin.name).length > 0 || live.has(twin.name)) continue;
    log.info('image.leftover.replace.finished', { target: child.name, source: twin.name });
    await removeSnapshotFiles(store, twin.name);
    table.delete(twin.name);
    inodes.delete(twin.name);
  }
}

function sameImage(inodes: ReadonlyMap<string, bigint>, a: string, b: string): boolean {
  const inode = inodes.get(a);
  return inode !== undefined && inode === inodes.get(b);
}

/** A childless record whose image is gone describes nothing; with it Longhorn reports an error. */
async function clearRecordsWithoutImage(
  store: MetadataStore,
  table: DiskTable,
  inodes: ReadonlyMap<string, bigint>,
  live: ReadonlySet<string>,
  log: Logger,
): Promise<void> {
  for (const { name } of table.all()) {
    if (inodes.has(name) || live.has(name) || table.children(name).length > 0) continue;
    log.warn('image.leftover.record.removed', { diskName: name });
    await removeSnapshotFiles(store, name);
    table.delete(name);
  }
}

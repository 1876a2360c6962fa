// The files of single disks: making a head, freezing it under a snapshot's name, replacing and
// removing images. Each step leaves the directory so that recovery.ts (and Longhorn) can go on from
// it after a crash; the order of the calls is the point here.

import { StorageError } from '../core/errors.js';
import type { DiskFile } from '../disk/disk.js';
import type { MetadataStore } from './metadata-store.js';
import { FILE_MODE } from './metadata-store.js';
import type { DiskRecord } from './metadata.js';
import { CHECKSUM_SUFFIX, META_SUFFIX, REMOVING_SUFFIX, REPLACING_SUFFIX } from './names.js';

/** Makes a head's image (sparse, durable) and its record. @throws ALREADY_EXISTS. */
export async function createHead(
  store: MetadataStore,
  record: DiskRecord,
  sizeBytes: number,
): Promise<DiskFile> {
  const file = await openNewHead(store, record.name);
  try {
    await file.truncate(sizeBytes);
    await file.sync();
    await store.writeDisk(record);
  } catch (error) {
    await file.close();
    await removeHeadFiles(store, record.name).catch(() => undefined);
    throw error;
  }
  return file;
}

async function openNewHead(store: MetadataStore, diskName: string): Promise<DiskFile> {
  const options = { writable: true, create: true, exclusive: true, mode: FILE_MODE };
  try {
    return await store.disk.open(store.path(diskName), options);
  } catch (error) {
    if (!(error instanceof StorageError) || error.code !== 'ALREADY_EXISTS') throw error;
    throw new StorageError('ALREADY_EXISTS', `${diskName} already exists`, { diskName }, error);
  }
}

/** Gives the head's image a second name, the snapshot's, and writes the snapshot's record. */
export async function linkSnapshot(
  store: MetadataStore,
  headName: string,
  record: DiskRecord,
): Promise<void> {
  await store.removeIfPresent(record.name + META_SUFFIX);
  await store.removeIfPresent(record.name + CHECKSUM_SUFFIX);
  await store.removeIfPresent(record.name);
  await store.disk.link(store.path(headName), store.path(record.name));
  // The image must be there before its record is.
  await store.syncDirectory();
  await store.writeDisk(record);
}

/** Removes a head that is not (or no longer) named by volume.meta. */
export async function removeHeadFiles(store: MetadataStore, headName: string): Promise<void> {
  await store.removeIfPresent(headName + META_SUFFIX);
  await store.removeIfPresent(headName + CHECKSUM_SUFFIX);
  await store.removeIfPresent(headName);
  await store.syncDirectory();
}

/** Undoes linkSnapshot: the image lives on under the head's name. */
export async function unlinkSnapshot(store: MetadataStore, diskName: string): Promise<void> {
  await store.removeIfPresent(diskName + META_SUFFIX);
  await store.removeIfPresent(diskName);
  await store.syncDirectory();
}

/**
 * Removes a snapshot that nothing depends on. The record goes first (a record without its image
 * makes Longhorn fail); the marker tells recovery that the image left behind is rubbish.
 */
export async function removeSnapshotFiles(store: MetadataStore, diskName: string): Promise<void> {
  const marker = diskName + REMOVING_SUFFIX;
  await store.removeIfPresent(marker);
  try {
    await store.disk.link(store.path(diskName), store.path(marker));
    await store.syncDirectory();
  } catch (error) {
    if (!(error instanceof StorageError) || error.code !== 'NOT_FOUND') throw error;
  }
  await store.removeIfPresent(diskName + META_SUFFIX);
  await store.syncDirectory();
  await finishRemoval(store, diskName);
}

/** The rest of removeSnapshotFiles once the record is gone. */
export async function finishRemoval(store: MetadataStore, diskName: string): Promise<void> {
  await store.removeIfPresent(diskName + CHECKSUM_SUFFIX);
  await store.removeIfPresent(diskName);
  await store.syncDirectory();
  await store.removeIfPresent(diskName + REMOVING_SUFFIX);
}

/** The target's name gets the source's image, in one step; the old image of the target is gone. */
export async function replaceImage(
  store: MetadataStore,
  target: string,
  source: string,
): Promise<void> {
  const { disk } = store;
  const temporary = target + REPLACING_SUFFIX;
  await store.removeIfPresent(temporary);
  await disk.link(store.path(source), store.path(temporary));
  await store.removeIfPresent(target + CHECKSUM_SUFFIX);
  await disk.rename(store.path(temporary), store.path(target));
  // rename() leaves two names of one file alone: a repeated replacement.
  await store.removeIfPresent(temporary);
  await store.syncDirectory();
}

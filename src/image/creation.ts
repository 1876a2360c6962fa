// Makes a replica directory: an empty head and volume.meta, or a new volume.meta for a directory
// that lost it. volume.meta comes last, so a crash before it leaves a directory that counts as not
// initialised and is finished by the next create.

import { StorageError } from '../core/errors.js';
import { isSectorAligned, SECTOR_BYTES } from '../core/units.js';
import type { CreateOptions } from './chain.js';
import { rfc3339 } from './chain-changes.js';
import { createHead, removeHeadFiles } from './disk-files.js';
import { DiskTable } from './disk-table.js';
import type { MetadataStore } from './metadata-store.js';
import { META_SECTOR_BYTES, type DiskRecord, type VolumeMeta } from './metadata.js';
import { FIRST_HEAD, IMAGE_SUFFIX, isHeadName } from './names.js';
import { checkDirectory, readVolumeMeta } from './opening.js';

export async function createDirectory(store: MetadataStore, options: CreateOptions): Promise<void> {
  const { sizeBytes } = options;
  if (sizeBytes <= 0 || !isSectorAligned(sizeBytes) || !Number.isSafeInteger(sizeBytes)) {
    const text = `size ${sizeBytes} is not a positive multiple of ${SECTOR_BYTES}`;
    throw new StorageError('NOT_ALIGNED', text, { sizeBytes });
  }
  await makeDirectory(store);
  if ((await readVolumeMeta(store)) !== null) return;
  const fileNames = await store.list();
  const table = new DiskTable(await store.readDisks(fileNames));
  if (table.size === 0) await createVolume(store, options, fileNames);
  else await recoverVolume(store, options, table);
}

async function makeDirectory(store: MetadataStore): Promise<void> {
  const { disk, directory } = store;
  try {
    await disk.makeDirectory(directory);
    await disk.syncDirectory(directory.slice(0, directory.lastIndexOf('/')) || '/');
  } catch (error) {
    if (!(error instanceof StorageError) || error.code !== 'ALREADY_EXISTS') throw error;
    await checkDirectory(disk, directory);
  }
}

async function createVolume(
  store: MetadataStore,
  options: CreateOptions,
  fileNames: readonly string[],
): Promise<void> {
  await refuseForeignImages(store, fileNames);
  await removeHeadFiles(store, FIRST_HEAD);
  const created = rfc3339(options.clock.wallTime());
  const record: DiskRecord = {
    name: FIRST_HEAD,
    parent: '',
    removed: false,
    userCreated: false,
    created,
    labels: null,
  };
  const file = await createHead(store, record, options.sizeBytes);
  await file.close();
  await store.writeVolume(volumeMeta(options, record, options.sizeBytes, false));
}

/** Images without any record are someone's data, unless nothing was ever written to them. */
async function refuseForeignImages(
  store: MetadataStore,
  fileNames: readonly string[],
): Promise<void> {
  for (const fileName of fileNames) {
    if (!fileName.endsWith(IMAGE_SUFFIX)) continue;
    const { allocatedBytes } = await store.disk.stat(store.path(fileName));
    if (allocatedBytes === 0) continue;
    throw new StorageError('BAD_METADATA', `${fileName} has data but no .meta file`, { fileName });
  }
}

/** volume.meta was lost or emptied: the head's record and image still tell all it said. */
async function recoverVolume(
  store: MetadataStore,
  options: CreateOptions,
  table: DiskTable,
): Promise<void> {
  const head = await findHead(store, table);
  table.chainFrom(head.name);
  const { sizeBytes } = await store.disk.stat(store.path(head.name));
  options.log.warn('image.volume_meta.recovered', { head: head.name, sizeBytes });
  await store.writeVolume(volumeMeta(options, head, sizeBytes, true));
}

async function findHead(store: MetadataStore, table: DiskTable): Promise<DiskRecord> {
  const heads = table.all().filter((record) => isHeadName(record.name));
  const only = heads[0];
  if (only !== undefined && heads.length === 1) return only;
  // After an interrupted snapshot the old head shares its image with the new snapshot.
  const frozen = new Set<bigint>();
  for (const record of table.all()) {
    if (isHeadName(record.name)) continue;
    frozen.add((await store.disk.stat(store.path(record.name))).inode);
  }
  const candidates: DiskRecord[] = [];
  for (const record of heads) {
    const { inode } = await store.disk.stat(store.path(record.name));
    if (!frozen.has(inode)) candidates.push(record);
  }
  const candidate = candidates[0];
  if (candidate !== undefined && candidates.length === 1) return candidate;
  throw new StorageError(
    'BAD_METADATA',
    `volume.meta is missing and there are ${heads.length} heads`,
    {
      heads: heads.map((record) => record.name),
    },
  );
}

function volumeMeta(
  options: CreateOptions,
  head: DiskRecord,
  sizeBytes: number,
  dirty: boolean,
): VolumeMeta {
  return {
    sizeBytes,
    head: head.name,
    dirty,
    rebuilding: false,
    parent: head.parent,
    sectorBytes: META_SECTOR_BYTES,
    backingFilePath: options.backingFilePath ?? '',
    encrypted: options.encrypted ?? false,
  };
}

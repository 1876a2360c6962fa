// Opens a replica directory: reads its metadata, checks that the chain is complete and sane, opens
// the layers. Nothing is written here, so a directory that is refused stays as it was.

import { StorageError } from '../core/errors.js';
import { isSectorAligned, SECTOR_BYTES } from '../core/units.js';
import type { Disk, DiskFile } from '../disk/disk.js';
import { openBackingFile, resolveBackingPath } from './backing-file.js';
import { DiskTable } from './disk-table.js';
import { LayerStack, type Layer } from './layer-stack.js';
import type { MetadataStore } from './metadata-store.js';
import type { DiskRecord, VolumeMeta } from './metadata.js';
import { isHeadName, VOLUME_META } from './names.js';

/** What a directory holds, before its files are opened. */
export interface ReadDirectory {
  readonly meta: VolumeMeta;
  readonly table: DiskTable;
}

/** @throws NOT_FOUND; INVALID_ARGUMENT when it is no directory. */
export async function checkDirectory(disk: Disk, directory: string): Promise<void> {
  if ((await disk.stat(directory)).isDirectory) return;
  throw new StorageError('INVALID_ARGUMENT', `${directory} is not a directory`, { directory });
}

/**
 * null when the directory is not initialised. That includes the volume.meta with no size and no
 * head that a Longhorn replica leaves when it is opened before it is created (facts: on-disk §3).
 */
export async function readVolumeMeta(store: MetadataStore): Promise<VolumeMeta | null> {
  const meta = await store.readVolume();
  return meta === null || (meta.sizeBytes === 0 && meta.head === '') ? null : meta;
}

/** @throws NOT_FOUND uninitialised; BAD_METADATA. */
export async function readDirectory(store: MetadataStore): Promise<ReadDirectory> {
  await checkDirectory(store.disk, store.directory);
  const meta = await readVolumeMeta(store);
  if (meta === null) {
    const path = store.path(VOLUME_META);
    throw new StorageError(
      'NOT_FOUND',
      `the replica is not initialised: ${path}: file does not exist`,
      { path },
    );
  }
  checkVolumeMeta(meta);
  return { meta, table: new DiskTable(await store.readDisks(await store.list())) };
}

/** The disk at the top: the head, or the snapshot that a read-only chain looks at. */
export function topDisk(
  meta: VolumeMeta,
  found: DiskRecord | undefined,
  options: { readonly headDiskName?: string; readonly readOnly?: boolean },
): string {
  const name = options.headDiskName ?? meta.head;
  if (options.headDiskName !== undefined && options.readOnly !== true) {
    throw new StorageError('INVALID_ARGUMENT', 'only a read-only chain may start at a snapshot', {
      name,
    });
  }
  if (found !== undefined) return found.name;
  const isHead = options.headDiskName === undefined;
  if (!isHead) throw new StorageError('NOT_FOUND', `cannot find disk ${name}`, { name });
  throw new StorageError('CHAIN_BROKEN', `failed to find metadata for ${name}`, { name });
}

function checkVolumeMeta(meta: VolumeMeta): void {
  if (meta.sizeBytes <= 0 || !isSectorAligned(meta.sizeBytes)) {
    throw new StorageError(
      'BAD_METADATA',
      `${VOLUME_META}: size ${meta.sizeBytes} is not a positive multiple of ${SECTOR_BYTES}`,
      { sizeBytes: meta.sizeBytes },
    );
  }
  if (!isHeadName(meta.head)) {
    throw new StorageError(
      'BAD_METADATA',
      `${VOLUME_META}: '${meta.head}' is not the name of a head`,
      {
        head: meta.head,
      },
    );
  }
}

/** Opens the chain from topName down to the root, with the backing file (path, or '') below. */
export async function openLayers(
  store: MetadataStore,
  chain: readonly string[],
  sizeBytes: number,
  backingFilePath: string,
  isReadOnly: boolean,
): Promise<LayerStack> {
  const layers: Layer[] = [];
  try {
    if (backingFilePath !== '') {
      const path = await resolveBackingPath(store.disk, backingFilePath);
      layers.push(await openBackingFile(store.disk, path, sizeBytes));
    }
    const rootFirst = [...chain].reverse();
    for (const diskName of rootFirst) {
      const isHead = diskName === chain[0];
      layers.push(await openLayer(store, diskName, isHead && !isReadOnly));
    }
    checkSizes(layers, isReadOnly ? 0 : sizeBytes);
    await checkExtents(layers.at(-1) as Layer);
  } catch (error) {
    await Promise.all(layers.map((layer) => layer.file.close()));
    throw error;
  }
  return new LayerStack(store.disk, layers, sizeBytes);
}

export async function openLayer(
  store: MetadataStore,
  diskName: string,
  writable: boolean,
): Promise<Layer> {
  let file: DiskFile;
  try {
    file = await store.disk.open(store.path(diskName), { writable });
  } catch (error) {
    if (!(error instanceof StorageError) || error.code !== 'NOT_FOUND') throw error;
    // Longhorn would make an empty file here, and with it the volume's data would be gone for good.
    throw new StorageError('CHAIN_BROKEN', `image ${diskName} is missing`, { diskName }, error);
  }
  try {
    return layerOf(diskName, file, await file.sizeBytes());
  } catch (error) {
    await file.close();
    throw error;
  }
}

export function layerOf(diskName: string, file: DiskFile, imageBytes: number): Layer {
  return { diskName, file, imageBytes, isBackingFile: false, listsExtents: true };
}

/**
 * An image is as large as the volume was when it was the head, and volumes only grow. So a layer
 * that is smaller than one below it, or a head that is smaller than the volume, has been cut.
 */
function checkSizes(layers: readonly Layer[], headBytesMin: number): void {
  let previousBytes = SECTOR_BYTES;
  for (const layer of layers) {
    const isHead = layer === layers.at(-1);
    const expectedBytes = isHead ? Math.max(previousBytes, headBytesMin) : previousBytes;
    if (layer.isBackingFile) continue;
    if (layer.imageBytes < expectedBytes || !isSectorAligned(layer.imageBytes)) {
      throw new StorageError(
        'IMAGE_TRUNCATED',
        `image ${layer.diskName} has ${layer.imageBytes} bytes, expected at least ${expectedBytes}`,
        { diskName: layer.diskName, imageBytes: layer.imageBytes, expectedBytes },
      );
    }
    previousBytes = layer.imageBytes;
  }
}

async function checkExtents(head: Layer): Promise<void> {
  await head.file.extents(0, head.imageBytes, 1);
}

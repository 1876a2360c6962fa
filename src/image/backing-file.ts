// The backing file under a chain's root: a raw file, or a directory with exactly one file. It is
// only read, zero-extended when it is smaller than the volume (facts: on-disk §9).

import { StorageError } from '../core/errors.js';
import { NO_BUFFER } from '../core/slab.js';
import { SECTOR_BYTES } from '../core/units.js';
import { DISK_OP, type Disk, type DiskFile } from '../disk/disk.js';
import { diskError } from './disk-errors.js';
import { runDisk } from './disk-work.js';
import type { Layer } from './layer-stack.js';
import { META_SECTOR_BYTES } from './metadata.js';

/** First bytes of a qcow2 image: 'QFI' and 0xfb. QEMU docs/interop/qcow2.txt, "Header". */
const QCOW2_MAGIC = 0x514649fb;

/** The file itself, or the only file of a directory. @throws NOT_FOUND, INVALID_ARGUMENT. */
export async function resolveBackingPath(disk: Disk, path: string): Promise<string> {
  if (!(await disk.stat(path)).isDirectory) return path;
  const names = await disk.list(path);
  const only = names[0];
  if (names.length !== 1 || only === undefined) {
    throw new StorageError(
      'INVALID_ARGUMENT',
      `backing directory ${path} must hold exactly one file`,
      {
        path,
        files: names.length,
      },
    );
  }
  const filePath = `${path}/${only}`;
  if ((await disk.stat(filePath)).isDirectory) {
    throw new StorageError('INVALID_ARGUMENT', `backing path ${filePath} is a directory`, { path });
  }
  return filePath;
}

/** @throws UNSUPPORTED for qcow2; NOT_ALIGNED; INVALID_ARGUMENT when larger than the volume. */
export async function openBackingFile(disk: Disk, path: string, sizeBytes: number): Promise<Layer> {
  const file = await disk.open(path, { writable: false });
  try {
    const imageBytes = await file.sizeBytes();
    if (imageBytes % META_SECTOR_BYTES !== 0) {
      throw new StorageError('NOT_ALIGNED', `backing file ${path} is no multiple of 512 bytes`, {
        path,
      });
    }
    if (imageBytes > sizeBytes) {
      throw new StorageError(
        'INVALID_ARGUMENT',
        `replica size ${sizeBytes} is smaller than backing file size ${imageBytes}`,
        { path, imageBytes, sizeBytes },
      );
    }
    if (await isQcow2(disk, file)) {
      throw new StorageError('UNSUPPORTED', `backing file ${path} is qcow2; convert it to raw`, {
        path,
      });
    }
    const listsExtents = await hasExtents(file, imageBytes);
    return { diskName: path, file, imageBytes, isBackingFile: true, listsExtents };
  } catch (error) {
    await file.close();
    throw error;
  }
}

async function isQcow2(disk: Disk, file: DiskFile): Promise<boolean> {
  const bufferOffset = disk.slab.allocate(SECTOR_BYTES);
  if (bufferOffset === NO_BUFFER) {
    throw new StorageError('LIMIT_EXCEEDED', 'no buffer is free to look at the backing file');
  }
  try {
    const result = await runDisk(disk.queue, DISK_OP.read, file, 0, SECTOR_BYTES, bufferOffset);
    if (result < 0) throw diskError(result, 'read', file.path);
    return result >= 4 && disk.slab.view.getUint32(bufferOffset, false) === QCOW2_MAGIC;
  } finally {
    disk.slab.release(bufferOffset);
  }
}

async function hasExtents(file: DiskFile, imageBytes: number): Promise<boolean> {
  try {
    await file.extents(0, imageBytes, 1);
    return true;
  } catch (error) {
    if (error instanceof StorageError && error.code === 'EXTENTS_UNSUPPORTED') return false;
    throw error;
  }
}

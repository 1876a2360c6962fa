// Reads and writes the metadata files of one replica directory. A write is atomic and durable
// (promise P7): temporary file, fsync, rename, fsync of the directory. Writes run one at a time,
// so two changes of one record cannot share a temporary file.

import { StorageError } from '../core/errors.js';
import { METADATA_BYTES_MAX } from '../core/limits.js';
import type { Disk } from '../disk/disk.js';
import {
  decodeDiskRecord,
  decodeVolumeMeta,
  encodeDiskRecord,
  encodeVolumeMeta,
  type DiskRecord,
  type VolumeMeta,
} from './metadata.js';
import {
  isHeadName,
  isSnapshotDiskName,
  META_SUFFIX,
  TEMPORARY_SUFFIX,
  VOLUME_META,
} from './names.js';

/** Mode of metadata and image files under Longhorn with the usual umask. */
export const FILE_MODE = 0o644;

export class MetadataStore {
  readonly disk: Disk;
  readonly directory: string;
  private lastWrite: Promise<void> = Promise.resolve();
  /** What lies durable under volume.meta's temporary name; null: nothing. */
  private staged: string | null = null;

  constructor(disk: Disk, directory: string) {
    this.disk = disk;
    this.directory = directory;
  }

  path(fileName: string): string {
    return `${this.directory}/${fileName}`;
  }

  /** null when volume.meta is missing or empty: the directory is not initialised. @throws BAD_METADATA. */
  async readVolume(): Promise<VolumeMeta | null> {
    let content: Buffer;
    try {
      content = await this.disk.readFile(this.path(VOLUME_META), METADATA_BYTES_MAX);
    } catch (error) {
      if (error instanceof StorageError && error.code === 'NOT_FOUND') return null;
      throw asBadMetadata(error, VOLUME_META);
    }
    const text = content.toString('utf8');
    return text.trim() === '' ? null : decodeVolumeMeta(text, VOLUME_META);
  }

  writeVolume(meta: VolumeMeta): Promise<void> {
    return this.write(VOLUME_META, () => encodeVolumeMeta(meta));
  }

  /** Makes the content durable, so that writing the same next is a matter of its name alone. */
  stageVolume(meta: VolumeMeta): Promise<void> {
    return this.inTurn(async () => {
      const text = encodeVolumeMeta(meta);
      await this.writeTemporary(VOLUME_META, text);
      this.staged = text;
    });
  }

  dropStaged(): Promise<void> {
    return this.inTurn(async () => {
      this.staged = null;
      await this.removeIfPresent(VOLUME_META + TEMPORARY_SUFFIX);
    });
  }

  /** The records of all heads and snapshots; other files are none of ours. @throws BAD_METADATA. */
  async readDisks(fileNames: readonly string[]): Promise<DiskRecord[]> {
    const diskNames = fileNames
      .filter((name) => name.endsWith(META_SUFFIX))
      .map((name) => name.slice(0, -META_SUFFIX.length))
      .filter((name) => isHeadName(name) || isSnapshotDiskName(name));
    return Promise.all(diskNames.map((name) => this.readDisk(name)));
  }

  async readDisk(diskName: string): Promise<DiskRecord> {
    const fileName = diskName + META_SUFFIX;
    try {
      const content = await this.disk.readFile(this.path(fileName), METADATA_BYTES_MAX);
      return decodeDiskRecord(content.toString('utf8'), fileName, diskName);
    } catch (error) {
      throw asBadMetadata(error, fileName);
    }
  }

  writeDisk(record: DiskRecord): Promise<void> {
    return this.write(record.name + META_SUFFIX, () => encodeDiskRecord(record));
  }

  list(): Promise<string[]> {
    return this.disk.list(this.directory);
  }

  syncDirectory(): Promise<void> {
    return this.disk.syncDirectory(this.directory);
  }

  async exists(fileName: string): Promise<boolean> {
    try {
      await this.disk.stat(this.path(fileName));
      return true;
    } catch (error) {
      if (error instanceof StorageError && error.code === 'NOT_FOUND') return false;
      throw error;
    }
  }

  /** Unlinks a file that may be missing. */
  async removeIfPresent(fileName: string): Promise<void> {
    try {
      await this.disk.unlink(this.path(fileName));
    } catch (error) {
      if (!(error instanceof StorageError) || error.code !== 'NOT_FOUND') throw error;
    }
  }

  private write(fileName: string, encode: () => string): Promise<void> {
    return this.inTurn(() => this.replaceFile(fileName, encode()));
  }

  private inTurn(action: () => Promise<void>): Promise<void> {
    const result = this.lastWrite.then(action);
    this.lastWrite = result.catch(() => undefined);
    return result;
  }

  private async replaceFile(fileName: string, text: string): Promise<void> {
    const temporary = fileName + TEMPORARY_SUFFIX;
    const isStaged = fileName === VOLUME_META && this.staged === text;
    if (fileName === VOLUME_META) this.staged = null;
    if (!isStaged) await this.writeTemporary(fileName, text);
    try {
      await this.disk.rename(this.path(temporary), this.path(fileName));
    } catch (error) {
      await this.clearTemporary(temporary);
      throw error;
    }
    await this.syncDirectory();
  }

  private async writeTemporary(fileName: string, text: string): Promise<void> {
    const temporary = fileName + TEMPORARY_SUFFIX;
    try {
      await this.disk.writeFile(this.path(temporary), Buffer.from(text), FILE_MODE);
    } catch (error) {
      await this.clearTemporary(temporary);
      throw error;
    }
  }

  /** Whatever stands in the way of the next attempt, a directory too (upstream scenario 93). */
  private async clearTemporary(temporary: string): Promise<void> {
    try {
      await this.disk.unlink(this.path(temporary));
    } catch {
      await this.disk.removeDirectory(this.path(temporary)).catch(() => undefined);
    }
  }
}

function asBadMetadata(error: unknown, fileName: string): unknown {
  if (!(error instanceof StorageError) || error.code !== 'LIMIT_EXCEEDED') return error;
  return new StorageError('BAD_METADATA', `${fileName} is too large`, { fileName }, error);
}

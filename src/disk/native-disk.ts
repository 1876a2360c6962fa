// The Disk of production: the addon's queue and file table, and node:fs for what happens rarely.
// Results of system calls become StorageErrors here; nothing above this file sees an errno except
// as the result of a queued request.

import { constants as fsConstants } from 'node:fs';
import * as fs from 'node:fs/promises';
import { constants as osConstants } from 'node:os';

import { addon, type DiskBackend, type NativeFileTable } from '../addon/addon.js';
import { StorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import { Slab, SLAB_BYTES } from '../core/slab.js';
import type { Disk, FileStat, OpenOptions } from './disk.js';
import { diskErrorOfResult, diskErrorOfThrown } from './disk-error.js';
import { NativeDiskFile } from './native-disk-file.js';
import { NativeDiskQueue } from './native-disk-queue.js';

const { EINVAL, ENOSYS, EOPNOTSUPP } = osConstants.errno;

/** Slab memory for one process; reservedBytes is for Slab.reserve(). */
export function createSlab(reservedBytes: number): Slab {
  return new Slab(addon.allocateSlab(SLAB_BYTES + reservedBytes));
}

export interface NativeDiskOptions {
  /** Default: a slab without reserved regions. */
  readonly slab?: Slab;
  /** Default 'auto': io_uring where the kernel allows it, else threads. */
  readonly backend?: DiskBackend | 'auto';
  readonly log: Logger;
}

/** @throws Error when the backend asked for cannot be used here. */
export function createNativeDisk(options: NativeDiskOptions): NativeDisk {
  return new NativeDisk(options);
}

export class NativeDisk implements Disk {
  readonly slab: Slab;
  readonly queue: NativeDiskQueue;
  private readonly files: NativeFileTable = new addon.FileTable();
  private readonly openFiles = new Set<NativeDiskFile>();
  private readonly log: Logger;
  private buffered = false;
  private shutDown = false;

  constructor(options: NativeDiskOptions) {
    this.slab = options.slab ?? createSlab(0);
    this.log = options.log;
    this.queue = new NativeDiskQueue(this.slab.memory, this.files, options.backend ?? 'auto');
  }

  get backend(): DiskBackend {
    return this.queue.backend;
  }

  /** False once a file system has refused O_DIRECT. */
  get directIo(): boolean {
    return !this.buffered;
  }

  async open(path: string, options: OpenOptions): Promise<NativeDiskFile> {
    if (this.shutDown)
      throw new StorageError('CLOSED', `cannot open ${path}: the disk is shut down`);
    const direct = options.direct ?? true;
    const slot = await this.files.open(path, openFlags(options), options.mode ?? 0o600, direct);
    if (slot < 0) throw diskErrorOfResult(slot, 'open', path);
    if (direct && !this.files.isDirect(slot)) this.noteBuffered(path);
    const file = new NativeDiskFile(path, slot, this.files, this.queue, () => {
      this.openFiles.delete(file);
    });
    this.openFiles.add(file);
    // The disk may have been shut down while the file was being opened.
    if (this.shutDown) await file.close();
    return file;
  }

  async readFile(path: string, maxBytes: number): Promise<Buffer> {
    return await withHandle('read', path, 'r', 0, async (handle) => {
      const tooLarge = (await handle.stat()).size > maxBytes;
      const content = tooLarge ? Buffer.alloc(0) : await handle.readFile();
      if (tooLarge || content.length > maxBytes) {
        const message = `${path} is larger than ${maxBytes} bytes`;
        throw new StorageError('LIMIT_EXCEEDED', message, { path, maxBytes });
      }
      return content;
    });
  }

  async writeFile(path: string, content: Uint8Array, mode = 0o600): Promise<void> {
    await withHandle('write', path, 'w', mode, async (handle) => {
      await handle.writeFile(content);
      await handle.sync();
    });
  }

  async rename(from: string, to: string): Promise<void> {
    await control('rename', `${from} to ${to}`, () => fs.rename(from, to));
  }

  async exchange(path: string, otherPath: string): Promise<void> {
    const result = await this.files.exchange(path, otherPath);
    if (result >= 0) return;
    const error = diskErrorOfResult(result, 'exchange', path);
    if (result !== -EINVAL && result !== -ENOSYS && result !== -EOPNOTSUPP) throw error;
    const message = `the file system of ${path} cannot exchange two files`;
    throw new StorageError('UNSUPPORTED', message, error.details);
  }

  async link(existing: string, created: string): Promise<void> {
    await control('link', `${existing} to ${created}`, () => fs.link(existing, created));
  }

  async unlink(path: string): Promise<void> {
    await control('unlink', path, () => fs.unlink(path));
  }

  async makeDirectory(path: string): Promise<void> {
    await control('make directory', path, () => fs.mkdir(path, { mode: 0o700 }));
  }

  async removeDirectory(path: string): Promise<void> {
    await control('remove directory', path, () => fs.rmdir(path));
  }

  async list(directory: string): Promise<string[]> {
    const names = await control('list', directory, () => fs.readdir(directory));
    return names.sort();
  }

  async stat(path: string): Promise<FileStat> {
    const stat = await control('stat', path, () => fs.stat(path, { bigint: true }));
    return {
      sizeBytes: Number(stat.size),
      allocatedBytes: Number(stat.blocks) * 512,
      modifiedMs: Number(stat.mtimeMs),
      modifiedNs: stat.mtimeNs,
      changedNs: stat.ctimeNs,
      isDirectory: stat.isDirectory(),
      inode: stat.ino,
    };
  }

  async syncDirectory(directory: string): Promise<void> {
    const flags = fsConstants.O_RDONLY | fsConstants.O_DIRECTORY;
    await withHandle('sync', directory, flags, 0, (handle) => handle.sync());
  }

  /** Waits for what is in flight, closes every file and frees the queue. Idempotent. */
  async shutdown(): Promise<void> {
    this.shutDown = true;
    await Promise.all([...this.openFiles].map((file) => file.close()));
    await this.queue.shutdown();
  }

  private noteBuffered(path: string): void {
    if (this.buffered) return;
    this.buffered = true;
    this.log.warn('disk.direct.refused', { path, consequence: 'buffered I/O' });
  }
}

function openFlags(options: OpenOptions): number {
  let flags = options.writable ? fsConstants.O_RDWR : fsConstants.O_RDONLY;
  if (options.create === true) flags |= fsConstants.O_CREAT;
  if (options.exclusive === true) flags |= fsConstants.O_EXCL;
  if (options.truncate === true) flags |= fsConstants.O_TRUNC;
  return flags;
}

async function control<T>(action: string, path: string, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw diskErrorOfThrown(error, action, path);
  }
}

async function withHandle<T>(
  action: string,
  path: string,
  flags: string | number,
  mode: number,
  use: (handle: fs.FileHandle) => Promise<T>,
): Promise<T> {
  return await control(action, path, async () => {
    const handle = await fs.open(path, flags, mode);
    try {
      return await use(handle);
    } finally {
      await handle.close();
    }
  });
}

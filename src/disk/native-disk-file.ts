// An open file of the native disk. After close() begins no request reaches it, and the descriptor
// is closed only when all earlier ones have finished.

import { constants } from 'node:os';

import type { NativeFileTable } from '../addon/addon.js';
import { StorageError } from '../core/errors.js';
import type { DiskFile, FileExtent } from './disk.js';
import { diskErrorOfResult } from './disk-error.js';
import { NO_FILE, type NativeDiskQueue } from './native-disk-queue.js';

const { EAGAIN, ENOTTY, EOPNOTSUPP } = constants.errno;

export class NativeDiskFile implements DiskFile {
  readonly path: string;
  private readonly files: NativeFileTable;
  private readonly queue: NativeDiskQueue;
  private readonly closed: () => void;
  private file: number;
  private closing: Promise<void> | null = null;

  /** @param closed told once, when the file is closed. */
  constructor(
    path: string,
    file: number,
    files: NativeFileTable,
    queue: NativeDiskQueue,
    closed: () => void,
  ) {
    this.path = path;
    this.file = file;
    this.files = files;
    this.queue = queue;
    this.closed = closed;
  }

  get slot(): number {
    return this.file;
  }

  /** False where the file system refuses O_DIRECT. */
  get isDirect(): boolean {
    return this.files.isDirect(this.openNumber());
  }

  async sizeBytes(): Promise<number> {
    return (await this.stat()).sizeBytes;
  }

  async allocatedBytes(): Promise<number> {
    return (await this.stat()).allocatedBytes;
  }

  async extents(beginOffset: number, endOffset: number, maxExtents: number): Promise<FileExtent[]> {
    const file = this.openNumber();
    return this.extentsOf(await this.files.extents(file, beginOffset, endOffset, maxExtents));
  }

  async unwrittenExtents(
    beginOffset: number,
    endOffset: number,
    maxExtents: number,
  ): Promise<FileExtent[]> {
    const file = this.openNumber();
    return this.extentsOf(
      await this.files.unwrittenExtents(file, beginOffset, endOffset, maxExtents),
    );
  }

  private extentsOf(edges: Float64Array | number): FileExtent[] {
    if (typeof edges === 'number') throw this.extentsError(edges);
    const extents: FileExtent[] = [];
    for (let i = 0; i < edges.length; i += 2) {
      extents.push({ beginOffset: edges[i] as number, endOffset: edges[i + 1] as number });
    }
    return extents;
  }

  async truncate(sizeBytes: number): Promise<void> {
    this.check(await this.files.truncate(this.openNumber(), sizeBytes), 'truncate');
  }

  async sync(): Promise<void> {
    this.check(await this.files.sync(this.openNumber(), false), 'sync');
  }

  /** Reserves space (unwritten extents). @throws NO_SPACE. */
  async allocate(offsetBytes: number, lengthBytes: number): Promise<void> {
    const result = await this.files.allocate(this.openNumber(), offsetBytes, lengthBytes);
    this.check(result, 'allocate');
  }

  /** Takes the file's exclusive lock until close(); false when another open file has it. */
  async tryLock(): Promise<boolean> {
    const result = await this.files.tryLock(this.openNumber());
    if (result === -EAGAIN) return false;
    this.check(result, 'lock');
    return true;
  }

  close(): Promise<void> {
    this.closing ??= this.closeOnce();
    return this.closing;
  }

  private async closeOnce(): Promise<void> {
    const file = this.file;
    this.file = NO_FILE;
    await this.queue.handedOver();
    const result = await this.files.close(file);
    this.closed();
    this.check(result, 'close');
  }

  private async stat(): Promise<{ sizeBytes: number; allocatedBytes: number }> {
    const facts = await this.files.stat(this.openNumber());
    if (typeof facts === 'number') throw diskErrorOfResult(facts, 'stat', this.path);
    const [size, allocated] = facts as unknown as [bigint, bigint];
    return { sizeBytes: Number(size), allocatedBytes: Number(allocated) };
  }

  private openNumber(): number {
    if (this.file !== NO_FILE) return this.file;
    throw new StorageError('CLOSED', `${this.path} is closed`, { path: this.path });
  }

  private check(result: number, action: string): void {
    if (result < 0) throw diskErrorOfResult(result, action, this.path);
  }

  private extentsError(result: number): StorageError {
    const error = diskErrorOfResult(result, 'list extents of', this.path);
    if (result !== -EOPNOTSUPP && result !== -ENOTTY) return error;
    const message = `the file system of ${this.path} does not list extents`;
    return new StorageError('EXTENTS_UNSUPPORTED', message, error.details);
  }
}

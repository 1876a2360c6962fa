// An open file of the memory disk.

import { StorageError } from '../../src/core/errors.js';
import { SECTOR_BYTES } from '../../src/core/units.js';
import type { DiskFile, FileExtent } from '../../src/disk/disk.js';
import type { MemoryDisk } from './memory-disk.js';
import { type FileNode, listExtents } from './memory-disk-nodes.js';

export class MemoryFile implements DiskFile {
  readonly path: string;
  readonly slot = 0;
  readonly node: FileNode;
  readonly writable: boolean;
  private readonly disk: MemoryDisk;
  private readonly generation: number;
  private closed = false;
  private inFlightCount = 0;
  private closeWaiters: (() => void)[] = [];

  constructor(disk: MemoryDisk, path: string, node: FileNode, writable: boolean) {
    this.disk = disk;
    this.path = path;
    this.node = node;
    this.writable = writable;
    this.generation = disk.generation;
  }

  get isUsable(): boolean {
    return !this.closed && this.generation === this.disk.generation;
  }

  begin(): void {
    this.inFlightCount++;
  }

  end(): void {
    this.inFlightCount--;
    if (this.inFlightCount > 0) return;
    for (const wake of this.closeWaiters.splice(0)) wake();
  }

  async sizeBytes(): Promise<number> {
    await this.disk.pause();
    this.check();
    return this.node.sizeBytes;
  }

  async allocatedBytes(): Promise<number> {
    await this.disk.pause();
    this.check();
    return this.node.pages.size * SECTOR_BYTES;
  }

  async extents(beginOffset: number, endOffset: number, maxExtents: number): Promise<FileExtent[]> {
    await this.disk.call('extents', this.path, beginOffset, endOffset - beginOffset);
    this.check();
    return listExtents(this.node, beginOffset, endOffset, maxExtents);
  }

  async unwrittenExtents(
    beginOffset: number,
    endOffset: number,
    maxExtents: number,
  ): Promise<FileExtent[]> {
    await this.disk.call('extents', this.path, beginOffset, endOffset - beginOffset);
    return listExtents(this.node, beginOffset, endOffset, maxExtents, true);
  }

  async truncate(sizeBytes: number): Promise<void> {
    await this.disk.call('truncate', this.path, 0, sizeBytes);
    this.check();
    this.node.setSize(sizeBytes);
    this.disk.touch(this.node);
    this.disk.called('truncate');
  }

  async sync(): Promise<void> {
    await this.disk.call('sync', this.path);
    this.check();
    this.node.sync();
    this.disk.called('sync');
  }

  async close(): Promise<void> {
    this.closed = true;
    if (this.inFlightCount > 0) {
      await new Promise<void>((resolve) => this.closeWaiters.push(resolve));
    }
  }

  private check(): void {
    if (!this.isUsable) throw new StorageError('CLOSED', `${this.path} is closed`);
  }
}

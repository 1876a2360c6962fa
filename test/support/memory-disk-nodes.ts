// Files and directories of the memory disk, each with what is durable of it and what a crash
// may take back.

import { SECTOR_BYTES } from '../../src/core/units.js';
import type { FileExtent } from '../../src/disk/disk.js';

/** A page of a file: bytes, or UNWRITTEN for an allocated extent that reads zero. No entry: a hole. */
export const UNWRITTEN = null;
export type Page = Uint8Array | typeof UNWRITTEN;
/** Decides what un-synced work outlives a crash. */
export interface Survivors {
  /** True when this un-synced page of a file reached the disk. */
  page(path: string, pageIndex: number): boolean;
  /** How many of a directory's un-synced changes, in order, reached the disk. */
  directoryChanges(path: string, count: number): number;
  /** Which eighths of a page that did not survive as a whole did, as bits; none by default. */
  eighths?(path: string, pageIndex: number): number;
}

export const NOTHING_SURVIVES: Survivors = { page: () => false, directoryChanges: () => 0 };
export const EVERYTHING_SURVIVES: Survivors = { page: () => true, directoryChanges: (_p, n) => n };
export class FileNode {
  readonly isDirectory = false;
  readonly inode: bigint;
  readonly pages = new Map<number, Page>();
  sizeBytes = 0;
  modifiedMs: number;
  changedMs: number;
  /** What changed pages held when they were last durable; undefined: a hole. */
  readonly undo = new Map<number, Page | undefined>();
  durableSizeBytes = 0;

  constructor(inode: bigint, nowMs: number) {
    this.inode = inode;
    this.modifiedMs = nowMs;
    this.changedMs = nowMs;
  }

  setPage(index: number, page: Page | undefined): void {
    const old = this.pages.get(index);
    if (!this.undo.has(index)) {
      this.undo.set(index, old instanceof Uint8Array && old === page ? old.slice() : old);
    }
    if (page === undefined) this.pages.delete(index);
    else this.pages.set(index, page);
  }

  setSize(sizeBytes: number): void {
    if (sizeBytes < this.sizeBytes) {
      for (const index of [...this.pages.keys()]) {
        if (index * SECTOR_BYTES >= sizeBytes) this.setPage(index, undefined);
      }
      const tail = sizeBytes % SECTOR_BYTES;
      const last = this.pages.get(Math.floor(sizeBytes / SECTOR_BYTES));
      if (tail !== 0 && last instanceof Uint8Array) {
        const cut = last.slice();
        cut.fill(0, tail);
        this.setPage(Math.floor(sizeBytes / SECTOR_BYTES), cut);
      }
    }
    this.sizeBytes = sizeBytes;
  }

  sync(): void {
    this.undo.clear();
    this.durableSizeBytes = this.sizeBytes;
  }

  crash(path: string, survivors: Survivors): void {
    for (const [index, page] of this.undo) {
      if (survivors.page(path, index)) continue;
      const left = torn(page, this.pages.get(index), survivors.eighths?.(path, index) ?? 0);
      if (left === undefined) this.pages.delete(index);
      else this.pages.set(index, left);
    }
    const keepsSize = survivors.page(path, -1);
    if (!keepsSize) this.sizeBytes = this.durableSizeBytes;
    this.sync();
  }
}

/**
 * A page of which only some eighths of the new content reached the disk. Where there was none, the
 * file system has allocated it but not yet noted that it was written: it reads zero.
 */
function torn(old: Page | undefined, next: Page | undefined, eighths: number): Page | undefined {
  if (eighths === 0 || !(next instanceof Uint8Array)) return old;
  if (!(old instanceof Uint8Array)) return UNWRITTEN;
  const page = old.slice();
  const step = SECTOR_BYTES / 8;
  for (let i = 0; i < 8; i++) {
    if ((eighths & (1 << i)) !== 0) page.set(next.subarray(i * step, (i + 1) * step), i * step);
  }
  return page;
}

export type EntryChange = (entries: Map<string, Node>) => void;

export class DirectoryNode {
  readonly isDirectory = true;
  readonly inode: bigint;
  entries = new Map<string, Node>();
  durable = new Map<string, Node>();
  changes: EntryChange[] = [];
  changedMs: number;

  constructor(inode: bigint, nowMs: number) {
    this.inode = inode;
    this.changedMs = nowMs;
  }

  change(change: EntryChange): void {
    change(this.entries);
    this.changes.push(change);
  }

  sync(): void {
    this.durable = new Map(this.entries);
    this.changes = [];
  }

  crash(path: string, survivors: Survivors): void {
    const kept = survivors.directoryChanges(path, this.changes.length);
    for (const change of this.changes.slice(0, kept)) change(this.durable);
    this.entries = new Map(this.durable);
    this.changes = [];
  }
}

export type Node = FileNode | DirectoryNode;

export function listExtents(
  node: FileNode,
  beginOffset: number,
  endOffset: number,
  maxExtents: number,
  onlyUnwritten = false,
): FileExtent[] {
  const first = Math.floor(beginOffset / SECTOR_BYTES);
  const last = Math.ceil(endOffset / SECTOR_BYTES);
  const indexes = [...node.pages.keys()].filter(
    (i) => i >= first && i < last && (!onlyUnwritten || node.pages.get(i) === UNWRITTEN),
  );
  indexes.sort((a, b) => a - b);
  const extents: { beginOffset: number; endOffset: number }[] = [];
  for (const index of indexes) {
    const begin = Math.max(beginOffset, index * SECTOR_BYTES);
    const end = Math.min(endOffset, (index + 1) * SECTOR_BYTES);
    const previous = extents.at(-1);
    if (previous !== undefined && previous.endOffset === begin) previous.endOffset = end;
    else if (extents.length === maxExtents) break;
    else extents.push({ beginOffset: begin, endOffset: end });
  }
  return extents;
}

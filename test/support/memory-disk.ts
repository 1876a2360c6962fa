// A file system in memory behind the Disk interface: sparse files with 4 KiB extents (unwritten
// ones too), hard links, directories, a volatile cache and crashes. What was not synced may be
// lost when it crashes, exactly as far as the caller of restart() decides. It never sleeps and
// uses no randomness of its own, so that a run can be repeated.

import { StorageError, type ErrorCode } from '../../src/core/errors.js';
import { Slab, SLAB_BYTES } from '../../src/core/slab.js';
import { MIB, SECTOR_BYTES } from '../../src/core/units.js';
import {
  DISK_OP,
  type Disk,
  type DiskFile,
  type DiskQueue,
  type DiskRequest,
  type FileStat,
  type OpenOptions,
} from '../../src/disk/disk.js';
import { type DiskCall, KIND_OF_OP, QUESTIONS } from './memory-disk-calls.js';
import { MemoryFile } from './memory-disk-file.js';
import {
  DirectoryNode,
  FileNode,
  type Node,
  NOTHING_SURVIVES,
  type Survivors,
  UNWRITTEN,
} from './memory-disk-nodes.js';

export type { DiskCall } from './memory-disk-calls.js';
export { EVERYTHING_SURVIVES, NOTHING_SURVIVES, type Survivors } from './memory-disk-nodes.js';

const ERRNO = { EIO: 5, EBADF: 9, EINVAL: 22, ENOSPC: 28, EOPNOTSUPP: 95 } as const;
export interface MemoryDiskOptions {
  readonly slab?: Slab;
  /** Bytes of file content that fit; more fails with ENOSPC. */
  readonly capacityBytes?: number;
  /** Runs completions later; default queueMicrotask. The simulator puts its scheduler here. */
  readonly defer?: (run: () => void) => void;
  /** Wall clock of file times, milliseconds. */
  readonly nowMs?: () => number;
}

/** The disk. Paths are absolute; the root directory exists. */
export class MemoryDisk implements Disk {
  /** Of the process that uses the disk now. */
  slab: Slab;
  readonly queue: DiskQueue = { submit: (request) => this.enqueue(request) };
  /** Grows with each crash: files opened before it are dead. */
  generation = 1;
  /** Called before each call; an error code or a negative errno makes it fail. */
  fault: ((call: DiskCall) => ErrorCode | null) | null = null;
  /** False makes zeroRange and punchHole fail with EOPNOTSUPP. */
  supportsHoles = true;
  /** False makes extents fail, as on a file system without FIEMAP. */
  supportsExtents = true;
  /** Changing calls so far, for crash tests that cut after each of them. */
  changeCount = 0;
  readonly log: DiskCall[] = [];
  protected capacityBytes: number;
  private readonly defer: (run: () => void) => void;
  private readonly nowMs: () => number;
  private root: DirectoryNode;
  private nextInode = 2n;
  private crashAt = Number.POSITIVE_INFINITY;
  private crashed = false;

  constructor(options: MemoryDiskOptions = {}) {
    this.slab = options.slab ?? new Slab(new ArrayBuffer(SLAB_BYTES + 4 * MIB));
    this.capacityBytes = options.capacityBytes ?? Number.POSITIVE_INFINITY;
    this.defer = options.defer ?? queueMicrotask;
    this.nowMs = options.nowMs ?? ((): number => 1_700_000_000_000);
    this.root = new DirectoryNode(1n, this.nowMs());
  }

  // --- crashes -------------------------------------------------------------------------------

  get isCrashed(): boolean {
    return this.crashed;
  }

  /** The power fails right after this many more changing calls took effect. */
  crashAfter(changes: number): void {
    this.crashAt = this.changeCount + changes;
    this.crashed = changes === 0;
  }

  /** Back up after a crash (or a pulled plug now): only what is durable or survives is left. */
  restart(survivors: Survivors = NOTHING_SURVIVES): void {
    this.generation++;
    this.crashed = false;
    this.crashAt = Number.POSITIVE_INFINITY;
    const seen = new Set<Node>();
    const visit = (node: Node, path: string): void => {
      if (seen.has(node)) return;
      seen.add(node);
      node.crash(path, survivors);
      if (node instanceof FileNode) return;
      for (const [name, child] of node.entries) visit(child, `${path}/${name}`);
    };
    visit(this.root, '');
  }

  // --- test hooks ----------------------------------------------------------------------------

  /** Allocates extents that were never written, as fallocate does: they read zero and count as data. */
  allocateUnwritten(path: string, beginOffset: number, endOffset: number): void {
    const node = this.fileAt(path);
    for (let i = beginOffset / SECTOR_BYTES; i < endOffset / SECTOR_BYTES; i++) {
      if (!node.pages.has(i)) node.setPage(i, UNWRITTEN);
    }
    node.sync();
  }

  // --- Disk ----------------------------------------------------------------------------------

  async open(path: string, options: OpenOptions): Promise<DiskFile> {
    await this.call('open', path);
    let node = this.find(path);
    if (node instanceof DirectoryNode) {
      throw new StorageError('INVALID_ARGUMENT', `open ${path}: is a directory`, { path });
    }
    if (node !== undefined && options.create === true && options.exclusive === true) {
      throw new StorageError('ALREADY_EXISTS', `open ${path}: file exists`, { path });
    }
    if (node === undefined) {
      if (options.create !== true) throw notFound('open', path);
      node = this.createFile(path);
    }
    if (options.truncate === true) node.setSize(0);
    return new MemoryFile(this, path, node, options.writable);
  }

  async readFile(path: string, maxBytes: number): Promise<Buffer> {
    await this.call('readFile', path);
    const node = this.fileAt(path);
    if (node.sizeBytes > maxBytes) {
      throw new StorageError('LIMIT_EXCEEDED', `${path} is larger than ${maxBytes} bytes`, {
        path,
      });
    }
    const content = Buffer.alloc(node.sizeBytes);
    for (const [index, page] of node.pages) {
      if (page !== UNWRITTEN)
        content.set(page.subarray(0, node.sizeBytes - index * SECTOR_BYTES), index * SECTOR_BYTES);
    }
    return content;
  }

  async writeFile(path: string, content: Uint8Array): Promise<void> {
    await this.call('writeFile', path, 0, content.length);
    let node = this.find(path);
    if (node instanceof DirectoryNode) {
      throw new StorageError('IO_ERROR', `open ${path}: is a directory`, { path });
    }
    node ??= this.createFile(path);
    node.setSize(0);
    const result = this.store(node, 0, content);
    if (result < 0) throw noSpace(path);
    node.sizeBytes = content.length;
    node.sync();
    this.called('writeFile');
  }

  async rename(from: string, to: string): Promise<void> {
    await this.call('rename', from);
    const [directory, fromName] = this.parentOf(from);
    const [toDirectory, toName] = this.parentOf(to);
    if (directory !== toDirectory)
      throw new StorageError('UNSUPPORTED', 'rename across directories');
    const node = this.find(from);
    if (node === undefined) throw notFound('rename', from);
    const target = this.find(to);
    if (target instanceof DirectoryNode && !(node instanceof DirectoryNode)) {
      throw new StorageError('IO_ERROR', `rename ${from} ${to}: is a directory`, { path: to });
    }
    // POSIX: two hard links of one file are left alone.
    if (target !== node) {
      directory.change((entries) => {
        entries.delete(fromName);
        entries.set(toName, node);
      });
      node.changedMs = this.nowMs();
    }
    this.called('rename');
  }

  async exchange(path: string, otherPath: string): Promise<void> {
    await this.call('exchange', path);
    const [directory, name] = this.parentOf(path);
    const [, otherName] = this.parentOf(otherPath);
    const [node, other] = [this.fileAt(path), this.fileAt(otherPath)];
    directory.change((entries) => entries.set(name, other).set(otherName, node));
    node.changedMs = other.changedMs = this.nowMs();
    this.called('exchange');
  }

  async link(existing: string, created: string): Promise<void> {
    await this.call('link', created);
    const node = this.fileAt(existing);
    const [directory, name] = this.parentOf(created);
    if (directory.entries.has(name)) {
      throw new StorageError('ALREADY_EXISTS', `link ${created}: file exists`, { path: created });
    }
    directory.change((entries) => entries.set(name, node));
    node.changedMs = this.nowMs();
    this.called('link');
  }

  async unlink(path: string): Promise<void> {
    await this.call('unlink', path);
    if (this.find(path) instanceof DirectoryNode) {
      throw new StorageError('IO_ERROR', `unlink ${path}: is a directory`, { path });
    }
    this.fileAt(path);
    const [directory, name] = this.parentOf(path);
    directory.change((entries) => entries.delete(name));
    this.called('unlink');
  }

  async makeDirectory(path: string): Promise<void> {
    await this.call('makeDirectory', path);
    const [directory, name] = this.parentOf(path);
    if (directory.entries.has(name)) {
      throw new StorageError('ALREADY_EXISTS', `mkdir ${path}: file exists`, { path });
    }
    const node = new DirectoryNode(this.nextInode++, this.nowMs());
    directory.change((entries) => entries.set(name, node));
    this.called('makeDirectory');
  }

  async removeDirectory(path: string): Promise<void> {
    await this.call('removeDirectory', path);
    const node = this.directoryAt(path);
    if (node.entries.size > 0) {
      throw new StorageError('INVALID_STATE', `rmdir ${path}: directory not empty`, { path });
    }
    const [directory, name] = this.parentOf(path);
    directory.change((entries) => entries.delete(name));
    this.called('removeDirectory');
  }

  async list(directory: string): Promise<string[]> {
    await this.call('list', directory);
    return [...this.directoryAt(directory).entries.keys()].sort();
  }

  async stat(path: string): Promise<FileStat> {
    await this.call('stat', path);
    const node = this.find(path);
    if (node === undefined) throw notFound('stat', path);
    const modifiedMs = node instanceof FileNode ? node.modifiedMs : node.changedMs;
    return {
      sizeBytes: node instanceof FileNode ? node.sizeBytes : 0,
      allocatedBytes: node instanceof FileNode ? node.pages.size * SECTOR_BYTES : 0,
      modifiedMs,
      modifiedNs: BigInt(modifiedMs) * 1_000_000n,
      changedNs: BigInt(node.changedMs) * 1_000_000n,
      isDirectory: node.isDirectory,
      inode: node.inode,
    };
  }

  async syncDirectory(directory: string): Promise<void> {
    await this.call('syncDirectory', directory);
    this.directoryAt(directory).sync();
    this.called('syncDirectory');
  }

  // --- shared with MemoryFile -----------------------------------------------------------------

  pause(): Promise<void> {
    return new Promise((resolve) => this.defer(resolve));
  }

  touch(node: FileNode): void {
    node.modifiedMs = this.nowMs();
    node.changedMs = node.modifiedMs;
  }

  /** Start of every call: asynchronous, and refused when crashed or by the fault hook. */
  async call(
    kind: DiskCall['kind'],
    path: string,
    offsetBytes = 0,
    lengthBytes = 0,
  ): Promise<void> {
    await this.pause();
    const failure = this.admit(kind, path, offsetBytes, lengthBytes);
    if (failure === 'NO_SPACE') throw noSpace(path);
    if (failure !== null)
      throw new StorageError(failure, `${kind} ${path}: injected fault`, { path });
    if (kind === 'extents' && !this.supportsExtents) {
      throw new StorageError('EXTENTS_UNSUPPORTED', `${path}: file extent is unsupported`, {
        path,
      });
    }
  }

  /** End of every changing call: the power may fail here. */
  called(kind: DiskCall['kind']): void {
    if (QUESTIONS.has(kind)) return;
    this.changeCount++;
    if (this.changeCount >= this.crashAt) this.crashed = true;
  }

  private admit(
    kind: DiskCall['kind'],
    path: string,
    offsetBytes: number,
    lengthBytes: number,
  ): ErrorCode | null {
    if (this.crashed) return 'IO_ERROR';
    const call = { kind, path, offsetBytes, lengthBytes };
    this.log.push(call);
    if (this.log.length > 1000) this.log.splice(0, 500);
    return this.fault?.(call) ?? null;
  }

  // --- the queue ------------------------------------------------------------------------------

  protected enqueue(request: DiskRequest): void {
    const file = request.file as MemoryFile;
    file.begin();
    this.defer(() => {
      const result = this.perform(request, file);
      file.end();
      request.complete(result);
    });
  }

  protected perform(request: DiskRequest, file: MemoryFile): number {
    if (!file.isUsable) return -ERRNO.EBADF;
    const { bufferOffset, lengthBytes, fileOffsetBytes } = request;
    const kind = KIND_OF_OP[request.op];
    const failure = this.admit(kind, file.path, fileOffsetBytes, lengthBytes);
    if (failure !== null) return failure === 'NO_SPACE' ? -ERRNO.ENOSPC : -ERRNO.EIO;
    const isAligned = (fileOffsetBytes | 0) % 512 === 0 && lengthBytes % SECTOR_BYTES === 0;
    const usesBuffer = request.op === DISK_OP.read || request.op === DISK_OP.write;
    if (usesBuffer && (!isAligned || bufferOffset % SECTOR_BYTES !== 0)) return -ERRNO.EINVAL;
    if (request.op === DISK_OP.read) return this.load(file.node, request);
    if (request.op === DISK_OP.sync) {
      file.node.sync();
      this.called(kind);
      return 0;
    }
    if (!file.writable) return -ERRNO.EBADF;
    if (request.op === DISK_OP.write) {
      const content = this.slab.bytes.subarray(bufferOffset, bufferOffset + lengthBytes);
      const result = this.store(file.node, fileOffsetBytes, content);
      this.called(kind);
      return result;
    }
    return this.clear(file.node, request);
  }

  private load(node: FileNode, request: DiskRequest): number {
    const { bufferOffset, lengthBytes, fileOffsetBytes } = request;
    const count = Math.max(0, Math.min(lengthBytes, node.sizeBytes - fileOffsetBytes));
    for (let done = 0; done < count; done += SECTOR_BYTES) {
      const page = node.pages.get((fileOffsetBytes + done) / SECTOR_BYTES);
      const target = this.slab.bytes.subarray(
        bufferOffset + done,
        bufferOffset + Math.min(done + SECTOR_BYTES, count),
      );
      if (page instanceof Uint8Array) target.set(page.subarray(0, target.length));
      else target.fill(0);
    }
    return count;
  }

  /** Bytes stored, short or -ENOSPC when the disk is full. */
  private store(node: FileNode, offsetBytes: number, content: Uint8Array): number {
    let done = 0;
    while (done < content.length) {
      const index = (offsetBytes + done) / SECTOR_BYTES;
      if (!node.pages.has(index) && this.usedBytes() + SECTOR_BYTES > this.capacityBytes) break;
      const page = new Uint8Array(SECTOR_BYTES);
      page.set(content.subarray(done, done + SECTOR_BYTES));
      node.setPage(index, page);
      done = Math.min(done + SECTOR_BYTES, content.length);
    }
    if (done > 0) node.sizeBytes = Math.max(node.sizeBytes, offsetBytes + done);
    this.touch(node);
    return done === 0 && content.length > 0 ? -ERRNO.ENOSPC : done;
  }

  private clear(node: FileNode, request: DiskRequest): number {
    if (!this.supportsHoles) return -ERRNO.EOPNOTSUPP;
    const first = request.fileOffsetBytes / SECTOR_BYTES;
    const last = first + request.lengthBytes / SECTOR_BYTES;
    if (request.op === DISK_OP.punchHole) {
      for (const index of [...node.pages.keys()]) {
        if (index >= first && index < last) node.setPage(index, undefined);
      }
    } else {
      for (let index = first; index < last; index++) {
        const isNew = !node.pages.has(index);
        if (isNew && this.usedBytes() + SECTOR_BYTES > this.capacityBytes) return -ERRNO.ENOSPC;
        node.setPage(index, UNWRITTEN);
      }
    }
    this.touch(node);
    this.called(KIND_OF_OP[request.op]);
    return 0;
  }

  private usedBytes(): number {
    if (this.capacityBytes === Number.POSITIVE_INFINITY) return 0;
    const seen = new Set<FileNode>();
    const visit = (directory: DirectoryNode): void => {
      for (const node of directory.entries.values()) {
        if (node instanceof DirectoryNode) visit(node);
        else seen.add(node);
      }
    };
    visit(this.root);
    let pages = 0;
    for (const node of seen) pages += node.pages.size;
    return pages * SECTOR_BYTES;
  }

  // --- paths ----------------------------------------------------------------------------------

  protected find(path: string): Node | undefined {
    let node: Node | undefined = this.root;
    for (let at = 1; at < path.length; ) {
      if (!(node instanceof DirectoryNode)) return undefined;
      const slash = path.indexOf('/', at);
      const end = slash < 0 ? path.length : slash;
      if (end > at) node = node.entries.get(path.slice(at, end));
      at = end + 1;
    }
    return node;
  }

  private fileAt(path: string): FileNode {
    const node = this.find(path);
    if (node === undefined) throw notFound('open', path);
    if (node instanceof DirectoryNode) {
      throw new StorageError('IO_ERROR', `read ${path}: is a directory`, { path });
    }
    return node;
  }

  private directoryAt(path: string): DirectoryNode {
    const node = this.find(path);
    if (node === undefined) throw notFound('open', path);
    if (node instanceof FileNode) {
      throw new StorageError('INVALID_ARGUMENT', `${path} is not a directory`, { path });
    }
    return node;
  }

  private parentOf(path: string): [DirectoryNode, string] {
    const slash = path.lastIndexOf('/');
    return [this.directoryAt(path.slice(0, slash)), path.slice(slash + 1)];
  }

  private createFile(path: string): FileNode {
    const [directory, name] = this.parentOf(path);
    const node = new FileNode(this.nextInode++, this.nowMs());
    directory.change((entries) => entries.set(name, node));
    return node;
  }
}

function notFound(verb: string, path: string): StorageError {
  return new StorageError('NOT_FOUND', `${verb} ${path}: no such file or directory`, { path });
}

function noSpace(path: string): StorageError {
  return new StorageError('NO_SPACE', `write ${path}: no space left on device`, { path });
}

// The disk of one simulated machine: the memory disk with latency, faults and the two ways to die.
// When a process is killed the page cache stays; when the machine loses power, of what was not
// synced any part may be there, single pages torn.

import type { Slab } from '../../src/core/slab.js';
import { SECTOR_BYTES } from '../../src/core/units.js';
import type { DiskRequest } from '../../src/disk/disk.js';
import { type DiskCall, MemoryDisk } from '../support/memory-disk.js';
import type { MemoryFile } from '../support/memory-disk-file.js';
import { DirectoryNode, FileNode, type Page } from '../support/memory-disk-nodes.js';
import type { Rng } from './rng.js';
import type { Scheduler, SimProcess } from './scheduler.js';

export interface DiskFaults {
  /** Probability that a call fails, while faults last. */
  ioErrorRate: number;
  noSpaceRate: number;
}

const WRITES = new Set<DiskCall['kind']>(['write', 'zeroRange', 'writeFile']);
const DATA = new Set<DiskCall['kind']>(['read', 'write', 'sync', 'punchHole', 'zeroRange']);

export class SimDisk extends MemoryDisk {
  readonly faults: DiskFaults = { ioErrorRate: 0, noSpaceRate: 0 };
  latencyUs = 60;
  jitterUs = 200;
  private user: SimProcess | null = null;
  private readonly rng: Rng;
  private readonly pending = new Set<{ request: DiskRequest; file: MemoryFile }>();

  constructor(scheduler: Scheduler, rng: Rng, slab: Slab) {
    super({
      slab,
      defer: (run) => this.later(run),
      nowMs: () => scheduler.wallMs(),
    });
    this.rng = rng;
    this.fault = (call) => this.faultOf(call);
  }

  /** A new process uses the disk; the one before it is dead. */
  attach(user: SimProcess, slab: Slab): void {
    this.user = user;
    this.slab = slab;
  }

  /** The process was killed: what it had asked for is carried out, or not. */
  processKilled(): void {
    for (const { request, file } of this.pending) {
      if (this.rng.chance(0.5)) this.perform(request, file);
    }
    this.pending.clear();
    this.user = null;
  }

  powerLost(): void {
    this.processKilled();
    const kept = this.rng.pick([0, 0.2, 0.5, 0.9, 1]);
    const tornRate = this.rng.pick([0, 0.3]);
    const { rng } = this;
    this.restart({
      page: () => rng.chance(kept),
      eighths: () => (rng.chance(tornRate) ? rng.below(256) : 0),
      directoryChanges: (_path, count) => rng.between(0, count),
    });
  }

  /** Large files here are sparse and looked at briefly: one buffer serves them all. */
  override async readFile(path: string, maxBytes: number): Promise<Buffer> {
    const node = this.find(path);
    if (!(node instanceof FileNode) || node.sizeBytes < LARGE_FILE_BYTES) {
      return super.readFile(path, maxBytes);
    }
    await this.call('readFile', path);
    if (node.sizeBytes > maxBytes) throw new Error(`${path} is unexpectedly large`);
    return sparseContent(node);
  }

  /** Back to an empty file system. */
  wipe(): void {
    this.restart();
    const root = this.find('/') as DirectoryNode;
    root.change((entries) => entries.clear());
    root.sync();
  }

  protected override enqueue(request: DiskRequest): void {
    const file = request.file as MemoryFile;
    const entry = { request, file };
    this.pending.add(entry);
    file.begin();
    this.later(() => {
      this.pending.delete(entry);
      const result = this.perform(request, file);
      file.end();
      request.complete(result);
    });
  }

  private later(run: () => void): void {
    this.user?.after(this.latencyUs + this.rng.below(this.jitterUs + 1), run);
  }

  private faultOf({ kind }: DiskCall): 'IO_ERROR' | 'NO_SPACE' | null {
    const { ioErrorRate, noSpaceRate } = this.faults;
    if (ioErrorRate > 0 && DATA.has(kind) && this.rng.chance(ioErrorRate)) return 'IO_ERROR';
    if (noSpaceRate > 0 && WRITES.has(kind) && this.rng.chance(noSpaceRate)) return 'NO_SPACE';
    return null;
  }

  // ---- Looking without touching, for the checks ----

  /** Content of a file as a process sees it, or as it would be after losing power now. */
  peek(path: string, isDurable: boolean): PeekedFile | null {
    const node = isDurable ? this.findDurable(path) : this.find(path);
    return node instanceof FileNode ? new PeekedFile(node, isDurable) : null;
  }

  names(path: string): string[] {
    const node = this.find(path);
    return node instanceof DirectoryNode ? [...node.entries.keys()] : [];
  }

  private findDurable(path: string): FileNode | DirectoryNode | undefined {
    const slash = path.lastIndexOf('/');
    const directory = this.find(path.slice(0, slash));
    return directory instanceof DirectoryNode
      ? directory.durable.get(path.slice(slash + 1))
      : undefined;
  }
}

const LARGE_FILE_BYTES = 512 * 1024;
let sparseBuffer = Buffer.alloc(0);
const sparseUsed = new Set<number>();

/** Valid until the next call. */
function sparseContent(node: FileNode): Buffer {
  if (sparseBuffer.length < node.sizeBytes) {
    sparseBuffer = Buffer.alloc(node.sizeBytes);
    sparseUsed.clear();
  }
  for (const at of sparseUsed) sparseBuffer.fill(0, at, at + SECTOR_BYTES);
  sparseUsed.clear();
  for (const [index, page] of node.pages) {
    if (!(page instanceof Uint8Array)) continue;
    const at = index * SECTOR_BYTES;
    sparseBuffer.set(page.subarray(0, node.sizeBytes - at), at);
    sparseUsed.add(at);
  }
  return sparseBuffer.subarray(0, node.sizeBytes);
}

export class PeekedFile {
  readonly sizeBytes: number;
  private readonly node: FileNode;
  private readonly isDurable: boolean;

  constructor(node: FileNode, isDurable: boolean) {
    this.node = node;
    this.isDurable = isDurable;
    this.sizeBytes = isDurable ? node.durableSizeBytes : node.sizeBytes;
  }

  /** undefined: a hole; null: an extent that was never written. */
  page(index: number): Page | undefined {
    const { node } = this;
    if (this.isDurable && node.undo.has(index)) return node.undo.get(index);
    return node.pages.get(index);
  }

  text(): string {
    const bytes = Buffer.alloc(this.sizeBytes);
    for (let at = 0; at < this.sizeBytes; at += SECTOR_BYTES) {
      const page = this.page(at / SECTOR_BYTES);
      if (page instanceof Uint8Array) bytes.set(page.subarray(0, this.sizeBytes - at), at);
    }
    return bytes.toString('utf8');
  }
}

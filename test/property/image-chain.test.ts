// Random histories of a chain against a model that is only byte arrays: whatever was done, the head
// and every snapshot that was not removed read as the model says, live and after every reopen.

import fc from 'fast-check';
import t from 'tap';

import { BLOCK_OP } from '../../src/core/block-device.js';
import { SECTOR_BYTES } from '../../src/core/units.js';
import type { Disk } from '../../src/disk/disk.js';
import { ImageChain } from '../../src/image/chain.js';
import {
  chainDefaults,
  control,
  CREATED,
  memoryDisk,
  nativeFixture,
  openChain,
  purge,
  readAll,
  readBytes,
  writeBytes,
} from '../support/image-chains.js';
import { MemoryDisk, NOTHING_SURVIVES } from '../support/memory-disk.js';

const S = SECTOR_BYTES;
const SECTORS = 24;

interface Step {
  readonly kind: (typeof KINDS)[number];
  /** Where and how much, as fractions of the volume. */
  readonly at: number;
  readonly length: number;
  readonly byte: number;
}

const KINDS = [
  'writeSectors',
  'writeSectors',
  'write',
  'write',
  'unmap',
  'unmap',
  'writeZeroes',
  'snapshot',
  'snapshot',
  'revert',
  'purge',
  'busyPurge',
  'cutPurge',
  'removeLeaf',
  'expand',
  'reopen',
  'reload',
  'crash',
  'markingUnmap',
] as const;

const steps = fc.array(
  fc.record({
    kind: fc.constantFrom(...KINDS),
    at: fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
    length: fc.double({ min: 0, max: 0.4, noNaN: true }),
    byte: fc.integer({ min: 1, max: 255 }),
  }),
  { minLength: 5, maxLength: 40 },
);

class History {
  private readonly disk: Disk;
  private readonly directory: string;
  private chain: ImageChain;
  private head = Buffer.alloc(SECTORS * S);
  private readonly frozen = new Map<string, Buffer>();
  private count = 0;

  constructor(disk: Disk, directory: string, chain: ImageChain) {
    this.disk = disk;
    this.directory = directory;
    this.chain = chain;
  }

  async take(step: Step): Promise<void> {
    const size = this.head.length;
    const isWhole = step.kind === 'writeSectors';
    const unit = isWhole ? S : 1;
    const offset = Math.floor((step.at * size) / unit) * unit;
    const wanted = Math.max(unit, Math.floor((step.length * size) / unit) * unit);
    const length = Math.min(wanted, size - offset);
    switch (step.kind) {
      case 'writeSectors':
      case 'write':
        await writeBytes(this.disk, this.chain, offset, Buffer.alloc(length, step.byte));
        this.head.fill(step.byte, offset, offset + length);
        return;
      case 'writeZeroes':
        await control(this.chain, BLOCK_OP.writeZeroes, offset, length);
        this.head.fill(0, offset, offset + length);
        return;
      case 'unmap':
      case 'markingUnmap':
        await this.unmap(offset, length, step.kind === 'markingUnmap');
        return;
      default:
        await this.change(step);
    }
  }

  async check(): Promise<void> {
    this.compare('the head', await readAll(this.disk, this.chain), this.head);
    for (const [name, content] of this.frozen) {
      const chain = await this.open({ readOnly: true, headDiskName: name });
      this.compare(name, await readAll(this.disk, chain), content);
      await chain.close();
    }
    const middle = await readBytes(this.disk, this.chain, 3000, 5000);
    this.compare('a part of the head', middle, this.head.subarray(3000, 8000));
  }

  end(): Promise<void> {
    return this.chain.close();
  }

  private async unmap(offset: number, length: number, marks: boolean): Promise<void> {
    this.chain.setUnmapMarkDiskChainRemoved(marks);
    await control(this.chain, BLOCK_OP.unmap, offset, length);
    const begin = Math.ceil(offset / S) * S;
    const end = Math.floor((offset + length) / S) * S;
    if (begin < end) this.head.fill(0, begin, end);
    if (marks) await this.forgetRemoved();
  }

  /** Snapshots that are removed have no content to rely on. */
  private async forgetRemoved(): Promise<void> {
    for (const { name, removed } of await this.chain.disks()) {
      if (removed) this.frozen.delete(name.slice('volume-snap-'.length, -'.img'.length));
    }
  }

  private async change(step: Step): Promise<void> {
    const names = [...this.frozen.keys()];
    const name = names[Math.floor(step.at * names.length)];
    switch (step.kind) {
      case 'snapshot': {
        const created = `s${this.count++}`;
        await this.chain.snapshot({ name: created, userCreated: true, created: CREATED });
        this.frozen.set(created, Buffer.from(this.head));
        return;
      }
      case 'expand': {
        if (this.head.length >= 3 * SECTORS * S) return;
        const grown = Buffer.alloc(this.head.length + 5 * S);
        this.head.copy(grown);
        await this.chain.expand(grown.length);
        this.frozen.set(`expand-${grown.length}`, Buffer.from(this.head));
        this.head = grown;
        return;
      }
      case 'reload':
        return this.chain.reload();
      case 'reopen':
        await this.chain.close();
        this.chain = await this.open({});
        return;
      case 'crash':
        return this.crash();
      default:
        break;
    }
    if (name === undefined) return;
    if (step.kind === 'revert') {
      await this.chain.revert(name, CREATED);
      this.head.fill(0);
      (this.frozen.get(name) as Buffer).copy(this.head);
    } else if (step.kind.endsWith('urge')) {
      this.frozen.delete(name);
      if (step.kind === 'purge') await purge(this.chain, name);
      else if (step.kind === 'busyPurge') await this.busyPurge(name, step);
      else await this.cutPurge(name, step);
    } else await this.removeLeaf(name);
  }

  /** Writes and trims go on while the purge runs. */
  private async busyPurge(name: string, step: Step): Promise<void> {
    let isOver = false;
    const purging = purge(this.chain, name).finally(() => {
      isOver = true;
    });
    for (let i = 0; i < 4 || !isOver; i++) {
      const at = (step.at + i * 0.37) % 1;
      const kind = i % 3 === 0 ? 'unmap' : 'writeSectors';
      await this.take({ ...step, kind, at, byte: ((step.byte + i) % 255) + 1 });
    }
    await purging;
  }

  /** Power fails in the middle; some writes have got their room on the disk and not their data. */
  private async cutPurge(name: string, step: Step): Promise<void> {
    const { disk } = this;
    if (!(disk instanceof MemoryDisk)) return await purge(this.chain, name);
    await control(this.chain, BLOCK_OP.flush);
    disk.crashAfter(step.byte % 30);
    await purge(this.chain, name).catch(() => undefined);
    disk.restart({
      page: (_path, page) => (page + step.byte) % 3 === 0,
      directoryChanges: (_path, count) => step.byte % (count + 1),
      eighths: (_path, page) => (page + step.byte) % 2,
    });
    this.chain = await this.open({});
  }

  private async removeLeaf(name: string): Promise<void> {
    const disk = (await this.chain.disks()).find((d) => d.name === `volume-snap-${name}.img`);
    if (disk === undefined || disk.children.length > 0) return;
    await this.chain.removeDisk(name, false);
    this.frozen.delete(name);
  }

  private async crash(): Promise<void> {
    if (!(this.disk instanceof MemoryDisk)) return;
    await control(this.chain, BLOCK_OP.flush);
    this.disk.restart(NOTHING_SURVIVES);
    this.chain = await this.open({});
  }

  private open(options: { readOnly?: boolean; headDiskName?: string }): Promise<ImageChain> {
    return openChain(this.disk, this.directory, options);
  }

  /** A snapshot from before an expansion reads zero beyond its end. */
  private compare(what: string, actual: Buffer, expected: Buffer): void {
    for (let i = 0; i < actual.length; i++) {
      const right = expected[i] ?? 0;
      if (actual[i] !== right) throw new Error(`${what}: byte ${i} is ${actual[i]}, not ${right}`);
    }
  }
}

async function run(disk: Disk, directory: string, history: readonly Step[]): Promise<void> {
  await ImageChain.create(disk, directory, { sizeBytes: SECTORS * S, ...chainDefaults });
  const chain = await openChain(disk, directory);
  const model = new History(disk, directory, chain);
  for (const step of history) await model.take(step);
  await model.check();
  await model.take({ kind: 'reopen', at: 0, length: 0, byte: 1 });
  await model.check();
  await model.end();
}

t.test('any history reads as the model says (memory disk)', async (t) => {
  const property = fc.asyncProperty(steps, (history) => run(memoryDisk(), '/volume', history));
  await fc.assert(property, { numRuns: 250 });
  t.pass();
});

t.test('any history reads as the model says (native disk)', async (t) => {
  const { disk, directory, end } = await nativeFixture();
  t.teardown(end);
  let count = 0;
  const property = fc.asyncProperty(steps, (history) =>
    run(disk, `${directory}/${count++}`, history),
  );
  await fc.assert(property, { numRuns: 6, endOnFailure: true });
  t.pass();
});

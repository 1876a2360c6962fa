// What the chain does ahead of time or side by side for speed: it must change nothing that a reader
// sees, give back every buffer and file, and stop when one part fails.

import t from 'tap';

import { SECTOR_BYTES } from '../../src/core/units.js';
import type { Disk } from '../../src/disk/disk.js';
import type { ImageChain } from '../../src/image/chain.js';
import { RevisionCounter } from '../../src/image/revision-counter.js';
import {
  CREATED,
  memoryChain,
  memoryDisk,
  openChain,
  purge,
  readBytes,
  sectorBytes,
  sectorsOf,
  snapshot,
  writeBytes,
} from '../support/image-chains.js';
import type { MemoryFile } from '../support/memory-disk-file.js';

const PAGE_SECTORS = 65536;

/** First bytes of eight sectors. */
async function sectorsAt(disk: Disk, chain: ImageChain, offset: number): Promise<number[]> {
  const content = await readBytes(disk, chain, offset, 8 * SECTOR_BYTES);
  return Array.from({ length: 8 }, (_, i) => content[i * SECTOR_BYTES] as number);
}

t.test('in a deep chain the first read has the rest of the index filled', async (t) => {
  const sectors = 3 * PAGE_SECTORS;
  const { disk, chain } = await memoryChain(sectors);
  for (let layer = 1; layer <= 5; layer++) {
    for (let page = 0; page < 3; page++) {
      const offset = (page * PAGE_SECTORS + layer) * SECTOR_BYTES;
      await writeBytes(disk, chain, offset, sectorsOf(layer));
    }
    await snapshot(chain, `s${layer}`);
  }
  await chain.close();
  const again = await openChain(disk, '/volume');
  const extentCalls = (): number => disk.log.filter(({ kind }) => kind === 'extents').length;
  const atOpen = extentCalls();
  await disk.pause();
  t.equal(extentCalls(), atOpen, 'nothing is listed before the first request');
  const first = await sectorsAt(disk, again, 0);
  t.strictSame(first, [0, 1, 2, 3, 4, 5, 0, 0]);
  // Six layers by three pages.
  while (extentCalls() < atOpen + 18) await disk.pause();
  const filled = extentCalls();
  for (let page = 1; page < 3; page++) {
    const offset = page * PAGE_SECTORS * SECTOR_BYTES;
    t.strictSame(await sectorsAt(disk, again, offset), [0, 1, 2, 3, 4, 5, 0, 0]);
  }
  t.equal(extentCalls(), filled, 'later reads list nothing');
  await again.close();
});

t.test('a chain that is closed while its index fills closes', async (t) => {
  const { disk, chain } = await memoryChain(2 * PAGE_SECTORS);
  for (let layer = 1; layer <= 5; layer++) await snapshot(chain, `s${layer}`);
  await chain.close();
  const again = await openChain(disk, '/volume');
  await sectorsAt(disk, again, 0);
  await again.close();
  t.equal((await openChain(disk, '/volume')).info().dirty, false);
});

t.test(
  'a write that fails ends a coalesce with its error, and gives back all buffers',
  async (t) => {
    const { disk, chain } = await memoryChain(256);
    await writeBytes(disk, chain, 0, sectorsOf(1, 256));
    await snapshot(chain, 'a');
    // Every other sector: 128 pieces.
    for (let i = 0; i < 256; i += 2)
      await writeBytes(disk, chain, i * SECTOR_BYTES, sectorsOf((i % 200) + 1));
    await snapshot(chain, 'b');
    await chain.markRemoved('a');
    const before = await sectorBytes(disk, chain);
    const free = disk.slab.freeCounts();
    let writes = 0;
    disk.fault = ({ kind, path }) =>
      kind === 'write' && path.endsWith('-a.img') && ++writes === 5 ? 'IO_ERROR' : null;
    await t.rejects(chain.coalesce('a', 'b'), { code: 'IO_ERROR' });
    t.ok(writes < 128, `stopped after ${writes} of 128 writes`);
    disk.fault = null;
    t.strictSame(disk.slab.freeCounts(), free);
    t.strictSame(await sectorBytes(disk, chain), before);
    await purge(chain, 'a');
    t.strictSame(await sectorBytes(disk, chain), before);
  },
);

t.test(
  'with the data in the child, a full disk, a cancel or a missing exchange loses none',
  async (t) => {
    for (const failure of ['NO_SPACE', 'CANCELLED', 'UNSUPPORTED'] as const) {
      const { disk, chain } = await memoryChain(256);
      for (let i = 1; i < 100; i += 2)
        await writeBytes(disk, chain, i * SECTOR_BYTES, sectorsOf(i));
      await writeBytes(disk, chain, 2 * SECTOR_BYTES, sectorsOf(9));
      await snapshot(chain, 'a');
      for (let i = 0; i < 256; i += 2)
        await writeBytes(disk, chain, i * SECTOR_BYTES, sectorsOf((i % 200) + 1));
      await snapshot(chain, 'b');
      await chain.markRemoved('a');
      const before = await sectorBytes(disk, chain);
      let writes = 0;
      const abort = new AbortController();
      disk.fault = ({ kind, path }) => {
        if (kind === 'exchange' && failure === 'UNSUPPORTED') return failure;
        // Opened by the name of the child: the file that lies below after the exchange.
        if (kind !== 'write' || !path.endsWith('-b.img') || ++writes !== 5) return null;
        if (failure === 'CANCELLED') abort.abort();
        return failure === 'NO_SPACE' ? failure : null;
      };
      const work = chain.coalesce('a', 'b', { signal: abort.signal });
      if (failure === 'UNSUPPORTED') await work;
      else await t.rejects(work, { code: failure });
      t.equal(writes > 0, failure !== 'UNSUPPORTED');
      disk.fault = null;
      t.strictSame(await sectorBytes(disk, chain), before, failure);
      await chain.close();
      const again = await openChain(disk, '/volume');
      t.strictSame(await sectorBytes(disk, again), before, `${failure}, reopened`);
      await purge(again, 'a');
      t.strictSame(await sectorBytes(disk, again), before, `${failure}, purged`);
    }
  },
);

t.test('a snapshot whose files cannot be made leaves none of them behind', async (t) => {
  for (const failing of ['volume-head-001.img.meta.tmp', 'volume-snap-a.img.meta.tmp']) {
    const { disk, chain } = await memoryChain(4);
    await writeBytes(disk, chain, 0, sectorsOf(1, 4));
    const files = await disk.list('/volume');
    disk.fault = ({ path }) => (path.endsWith(failing) ? 'NO_SPACE' : null);
    await t.rejects(snapshot(chain, 'a'), { code: 'NO_SPACE', details: { rollback: 'succeeded' } });
    disk.fault = null;
    t.strictSame(await disk.list('/volume'), files, failing);
    await snapshot(chain, 'a');
    t.strictSame(await sectorBytes(disk, chain), [1, 1, 1, 1]);
  }
});

const NEW = { name: 'a', userCreated: true, created: CREATED };

t.test('a prepared snapshot is taken with one sync of data and one of the directory', async (t) => {
  const { disk, chain } = await memoryChain(4);
  await writeBytes(disk, chain, 0, sectorsOf(1, 4));
  await chain.prepareSnapshot(NEW);
  await writeBytes(disk, chain, 0, sectorsOf(2));
  const before = disk.log.length;
  await chain.snapshot(NEW);
  const calls = disk.log.slice(before).map(({ kind }) => kind);
  t.strictSame(calls.slice(0, 3), ['sync', 'rename', 'syncDirectory']);
  t.notOk(calls.includes('writeFile'), 'no file is written');
  await writeBytes(disk, chain, 0, sectorsOf(3));
  const names = (await chain.disks()).map(({ name }) => name);
  t.strictSame(names, ['volume-head-001.img', 'volume-snap-a.img']);
  t.notOk((await disk.list('/volume')).includes('volume-head-000.img'), 'the old head is gone');
  await chain.close();
  const at = { readOnly: true, headDiskName: 'a' };
  const frozen = await openChain(disk, '/volume', at);
  t.strictSame(await sectorBytes(disk, frozen), [2, 1, 1, 1], 'a write in between is in it');
});

t.test('files of a prepared snapshot go with any other change, and with the close', async (t) => {
  const { disk, chain } = await memoryChain(4);
  await writeBytes(disk, chain, 0, sectorsOf(1, 4));
  const files = await disk.list('/volume');
  const others: Record<string, () => Promise<unknown>> = {
    'another snapshot': async () => {
      await t.rejects(snapshot(chain, '../x'), { code: 'INVALID_NAME' });
      await chain.setRebuilding(false);
    },
    'the rebuilding flag': () => chain.setRebuilding(false),
    'a reload': () => chain.reload(),
    'another preparation, which fails': async () => {
      disk.fault = ({ kind, path }) =>
        kind === 'writeFile' && path.endsWith('volume.meta.tmp') ? 'NO_SPACE' : null;
      await t.rejects(chain.prepareSnapshot({ ...NEW, name: 'b' }), { code: 'NO_SPACE' });
      disk.fault = null;
    },
    'the close': () => chain.close(),
  };
  for (const [name, change] of Object.entries(others)) {
    await chain.prepareSnapshot(NEW);
    t.not((await disk.list('/volume')).length, files.length);
    await change();
    t.strictSame(await disk.list('/volume'), files, name);
  }
});

t.test('a prepared snapshot that cannot be put into effect is undone', async (t) => {
  for (const failing of ['sync', 'rename', 'syncDirectory'] as const) {
    const { disk, chain } = await memoryChain(4);
    await writeBytes(disk, chain, 0, sectorsOf(1, 4));
    const files = await disk.list('/volume');
    await chain.prepareSnapshot(NEW);
    let failures = 0;
    disk.fault = ({ kind }) => (kind === failing && failures++ === 0 ? 'NO_SPACE' : null);
    await t.rejects(chain.snapshot(NEW), { code: 'NO_SPACE', details: { rollback: 'succeeded' } });
    disk.fault = null;
    t.strictSame(await disk.list('/volume'), files, failing);
    t.strictSame(await sectorBytes(disk, chain), [1, 1, 1, 1]);
    if (failing === 'sync') continue;
    await snapshot(chain, 'a');
    t.strictSame(await sectorBytes(disk, chain), [1, 1, 1, 1]);
  }
});

t.test('a revision counter that cannot be made gives back its file and buffer', async (t) => {
  const disk = memoryDisk();
  await disk.makeDirectory('/volume');
  const free = disk.slab.freeCounts();
  disk.fault = ({ kind }) => (kind === 'write' ? 'IO_ERROR' : null);
  await t.rejects(RevisionCounter.open(disk, '/volume'), { code: 'IO_ERROR' });
  disk.fault = null;
  t.strictSame(disk.slab.freeCounts(), free);
});

t.test('requests and changes go on while the blocks of a purged file are freed', async (t) => {
  const { disk, chain } = await memoryChain(8);
  await writeBytes(disk, chain, 0, sectorsOf(1, 4));
  await snapshot(chain, 'a');
  await writeBytes(disk, chain, 0, sectorsOf(2, 4));
  await snapshot(chain, 'b');
  await writeBytes(disk, chain, 0, sectorsOf(3, 1));
  await chain.close();
  // Closing the last handle of a file does not end before free() is called.
  let free = (): void => undefined;
  const freed = new Promise<void>((resolve) => (free = resolve));
  const openCounts = new Map<unknown, number>();
  const open = disk.open.bind(disk);
  disk.open = async (path, options) => {
    const file = await open(path, options);
    const { node } = file as MemoryFile;
    openCounts.set(node, (openCounts.get(node) ?? 0) + 1);
    const close = file.close.bind(file);
    file.close = async () => {
      const left = (openCounts.get(node) ?? 0) - 1;
      openCounts.set(node, left);
      if (left === 0) await freed;
      await close();
    };
    return file;
  };
  const again = await openChain(disk, '/volume');
  await purge(again, 'a');
  t.strictSame(await sectorBytes(disk, again), [3, 2, 2, 2, 0, 0, 0, 0]);
  await again.markRemoved('b');
  await again.removeDisk('b', false);
  t.strictSame(await sectorBytes(disk, again), [3, 0, 0, 0, 0, 0, 0, 0]);
  await snapshot(again, 'c');
  free();
  await again.close();
});

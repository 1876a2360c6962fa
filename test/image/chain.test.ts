// What an image chain promises to its callers: upstream's replica scenarios (numbers refer to the
// list of tests worth porting, groups A and B), Longhorn's file formats, and bad input.

import t from 'tap';

import { BLOCK_OP, submitAndWait } from '../../src/core/block-device.js';
import { MIB, SECTOR_BYTES } from '../../src/core/units.js';
import { ImageChain } from '../../src/image/chain.js';
import { nextHeadName } from '../../src/image/names.js';
import { ScratchBuffers } from '../../src/image/scratch.js';
import {
  chainDefaults,
  control,
  CREATED,
  memoryChain,
  memoryDisk,
  openChain,
  purge,
  readAll,
  readBytes,
  sectorBytes,
  sectorsOf,
  snapshot,
  testSlab,
  writeBytes,
} from '../support/image-chains.js';
import type { MemoryDisk } from '../support/memory-disk.js';

const S = SECTOR_BYTES;
const LONG_AGO = '2020-01-02T03:04:05Z';

async function text(disk: MemoryDisk, name: string): Promise<string> {
  return (await disk.readFile(`/volume/${name}`, MIB)).toString();
}

function put(disk: MemoryDisk, name: string, content: string): Promise<void> {
  return disk.writeFile(`/volume/${name}`, Buffer.from(content));
}

t.afterEach(() => {
  for (const { freeCount, count } of testSlab.freeCounts()) {
    if (freeCount !== count) throw new Error('a slab buffer leaked');
  }
  if (ScratchBuffers.of(testSlab).freeCount !== 16) throw new Error('a scratch buffer leaked');
});

t.test('create writes what Longhorn writes, and again does nothing (scenarios 1, 11)', async (t) => {
  const { disk, chain } = await memoryChain(2);
  t.match(
    await text(disk, 'volume-head-000.img.meta'),
    /^\{"Name":"volume-head-000.img","Parent":"","Removed":false,"UserCreated":false,"Created":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ","Labels":null\}\n$/,
  );
  t.equal(
    await text(disk, 'volume.meta'),
    '{"Size":8192,"Head":"volume-head-000.img","Dirty":true,"Rebuilding":false,"Error":"","Parent":"","SectorSize":512,"BackingFilePath":"","Encrypted":false}\n',
  );
  t.strictSame(await sectorBytes(disk, chain), [0, 0]);
  t.equal(chain.info().dirty, false, 'open after create is not dirty');
  await writeBytes(disk, chain, 0, sectorsOf(5));
  t.equal(chain.info().dirty, true);
  await chain.close();
  t.match(await text(disk, 'volume.meta'), '"Dirty":false');
  await ImageChain.create(disk, '/volume', { sizeBytes: 4 * S, ...chainDefaults });
  const again = await openChain(disk, '/volume');
  t.strictSame(await sectorBytes(disk, again), [5, 0]);
  await t.rejects(
    ImageChain.create(disk, '/odd', { sizeBytes: 9, ...chainDefaults }),
    { code: 'NOT_ALIGNED' },
  );
});

t.test('two snapshots: heads, chain, labels, children as upstream (scenario 2)', async (t) => {
  const { disk, chain } = await memoryChain(4);
  await chain.snapshot({
    name: '000',
    userCreated: true,
    created: LONG_AGO,
    labels: { zone: 'b<&>', app: 'db' },
  });
  await chain.snapshot({ name: '001', userCreated: false, created: CREATED });
  t.equal(chain.info().head, 'volume-head-002.img');
  t.equal(chain.info().parent, 'volume-snap-001.img');
  t.strictSame(chain.liveChain(), [
    'volume-head-002.img',
    'volume-snap-001.img',
    'volume-snap-000.img',
  ]);
  t.match(await chain.disks(), [
    { name: 'volume-head-002.img', userCreated: false, created: CREATED, children: [] },
    {
      name: 'volume-snap-000.img',
      parent: '',
      userCreated: true,
      created: LONG_AGO,
      labels: { app: 'db', zone: 'b<&>' },
      children: ['volume-snap-001.img'],
      allocatedBytes: 0,
    },
    { name: 'volume-snap-001.img', parent: 'volume-snap-000.img', children: ['volume-head-002.img'] },
  ]);
  t.equal(
    await text(disk, 'volume-snap-000.img.meta'),
    `{"Name":"volume-snap-000.img","Parent":"","Removed":false,"UserCreated":true,"Created":"${LONG_AGO}","Labels":{"app":"db","zone":"b\\u003c\\u0026\\u003e"}}\n`,
  );
  t.match(await chain.usage(), { snapshotCount: 2, diskCount: 3, remainingSnapshots: 248 });
  await t.rejects(snapshot(chain, '000'), {
    code: 'ALREADY_EXISTS',
    message: 'snapshot volume-snap-000.img is already existing',
  });
});

t.test('revert keeps the other branch and further changes keep the tree (scenarios 3, 4, 8)', async (t) => {
  const { disk, chain } = await memoryChain(2);
  await writeBytes(disk, chain, 0, sectorsOf(1));
  await snapshot(chain, '000');
  await writeBytes(disk, chain, 0, sectorsOf(2));
  await snapshot(chain, '001');
  await writeBytes(disk, chain, 0, sectorsOf(3));
  await chain.revert('volume-snap-000.img', CREATED);
  t.strictSame(chain.liveChain(), ['volume-head-003.img', 'volume-snap-000.img']);
  t.strictSame(await sectorBytes(disk, chain), [1, 0]);
  await writeBytes(disk, chain, S, sectorsOf(4));
  await snapshot(chain, '003');
  await chain.revert('001', CREATED);
  t.strictSame(await sectorBytes(disk, chain), [2, 0]);
  await chain.revert('003', CREATED);
  t.strictSame(await sectorBytes(disk, chain), [1, 4]);
  await chain.removeDisk('volume-snap-001.img', false);
  t.strictSame(await sectorBytes(disk, chain), [1, 4], 'a side branch is none of the chain');
  const base = (await chain.disks()).find((d) => d.name === 'volume-snap-000.img');
  t.strictSame(base?.children, ['volume-snap-003.img']);
  await t.rejects(chain.revert('nowhere', CREATED), { code: 'NOT_FOUND', message: /no such file/ });
  await t.rejects(chain.revert('volume-head-006.img', CREATED));
  await chain.markRemoved('000');
  await t.rejects(chain.revert('000', CREATED), {
    message: "cannot revert to disk file 000 since it's already marked as removed",
  });
});

t.test('removal of the head, the oldest, a middle and a forked snapshot (5, 6, 7, 18)', async (t) => {
  const { disk, chain } = await memoryChain(3);
  await writeBytes(disk, chain, 0, sectorsOf(1, 3));
  await snapshot(chain, 'a');
  await writeBytes(disk, chain, 0, sectorsOf(2, 2));
  await snapshot(chain, 'b');
  await writeBytes(disk, chain, 0, sectorsOf(3));
  await snapshot(chain, 'c');
  t.strictSame(await sectorBytes(disk, chain), [3, 2, 1]);
  await t.rejects(chain.removeDisk(chain.info().head, false), {
    message: /cannot delete the active differencing disk/,
  });
  await chain.removeDisk('b', false);
  t.strictSame(await sectorBytes(disk, chain), [3, 1, 1], 'its data went with it');
  t.match(await text(disk, 'volume-snap-c.img.meta'), '"Parent":"volume-snap-a.img"');
  await chain.revert('a', CREATED);
  await t.rejects(chain.removeDisk('a', false), { code: 'INVALID_STATE' });
  await chain.removeDisk('a', true);
  t.strictSame(await sectorBytes(disk, chain), [0, 0, 0]);
  t.strictSame(chain.info().parent, '');
  t.match(await text(disk, 'volume.meta'), '"Parent":""');
  await chain.revert('c', CREATED);
  t.strictSame(await sectorBytes(disk, chain), [3, 0, 0]);
  await t.rejects(chain.removeDisk('b', true), { code: 'NOT_FOUND' }, 'an unknown disk is refused');
});

t.test('prepareRemove gives the actions that peers know (9, 10, 47)', async (t) => {
  const { chain } = await memoryChain(1);
  await snapshot(chain, '000');
  await snapshot(chain, '001');
  const head = chain.info().head;
  t.throws(() => chain.prepareRemove('001'), {
    message: "disk volume-snap-001.img hasn't been marked as removed",
  });
  t.throws(() => chain.prepareRemove(head), { message: /cannot delete the active/ });
  await t.rejects(chain.markRemoved(head), {
    message: 'cannot mark the active differencing disk as removed',
  });
  t.strictSame(chain.prepareRemove('003'), []);
  await chain.markRemoved('003');
  await chain.markRemoved('001');
  await chain.markRemoved('volume-snap-000.img');
  t.strictSame(chain.liveChain(), [head]);
  const [source, target] = ['volume-snap-000.img', 'volume-snap-001.img'];
  t.strictSame(chain.prepareRemove('001'), [{ action: 'prune', source: target, target: head }]);
  t.strictSame(chain.prepareRemove(source), [
    { action: 'coalesce', source, target },
    { action: 'replace', source, target },
  ]);
  await t.rejects(chain.replaceDisk(head, '001'), { message: /cannot replace the active/ });
  await t.rejects(chain.replaceDisk('001', 'x'), { message: 'cannot find source of replacing: x' });
  await t.rejects(chain.replaceDisk('nowhere', '000'), { code: 'NOT_FOUND' });
  await chain.removeDisk('001', false);
  t.strictSame(chain.prepareRemove('000'), [{ action: 'prune', source, target: head }]);
});

t.test('three layers read newest first, partial writes keep their neighbours (13, 14, 16)', async (t) => {
  const { disk, chain } = await memoryChain(4);
  await writeBytes(disk, chain, 0, sectorsOf(1, 3));
  await snapshot(chain, 'a');
  await writeBytes(disk, chain, S, sectorsOf(2, 2));
  await snapshot(chain, 'b');
  await writeBytes(disk, chain, 2 * S, sectorsOf(3));
  t.strictSame(await sectorBytes(disk, chain), [1, 2, 3, 0]);
  await writeBytes(disk, chain, S - 10, Buffer.alloc(S + 20, 9));
  const content = await readAll(disk, chain);
  const expected = Buffer.concat([sectorsOf(1), sectorsOf(2), sectorsOf(3), sectorsOf(0)]);
  expected.fill(9, S - 10, 2 * S + 10);
  t.ok(content.equals(expected));
  await chain.close();
  const again = await openChain(disk, '/volume');
  t.ok((await readAll(disk, again)).equals(expected), 'and after a reopen');
});

t.test('reads may start and end anywhere (17), also through many scratch pieces', async (t) => {
  const { disk, chain } = await memoryChain(64);
  const content = Buffer.alloc(64 * S);
  for (let i = 0; i < content.length; i++) content[i] = (i * 7 + (i >> 12)) & 0xff;
  await writeBytes(disk, chain, 0, content);
  const ranges = [[0, 1], [511, 513], [S, 100], [S - 100, 100], [S + 1, 2 * S], [3, 63 * S], [0, 64 * S]];
  for (const [offset, length] of ranges as [number, number][]) {
    const part = await readBytes(disk, chain, offset, length);
    t.ok(part.equals(content.subarray(offset, offset + length)), `${length} bytes at ${offset}`);
  }
  await writeBytes(disk, chain, 5, content.subarray(0, 62 * S));
  t.ok((await readBytes(disk, chain, 5, 62 * S)).equals(content.subarray(0, 62 * S)));
});

t.test('a backing file shows through, zero-extended, and is never written (12, 15, 37)', async (t) => {
  const disk = memoryDisk();
  const image = Buffer.concat([sectorsOf(7, 1), Buffer.alloc(512, 8)]);
  await disk.makeDirectory('/images');
  await disk.writeFile('/images/base.raw', image);
  await ImageChain.create(disk, '/volume', { sizeBytes: 4 * S, ...chainDefaults });
  const chain = await openChain(disk, '/volume', { backingFilePath: '/images' });
  const expected = Buffer.alloc(4 * S);
  image.copy(expected);
  t.ok((await readAll(disk, chain)).equals(expected));
  await writeBytes(disk, chain, 100, Buffer.from([1]));
  expected[100] = 1;
  await snapshot(chain, 'a');
  await control(chain, BLOCK_OP.unmap, S, S);
  expected.fill(0, S);
  t.ok((await readAll(disk, chain)).equals(expected));
  t.strictSame(await chain.exportExtents(), [{ beginOffset: 0, endOffset: 2 * S }]);
  await purge(chain, 'a');
  await chain.close();
  const again = await openChain(disk, '/volume');
  t.equal(again.info().backingFilePath, '/images', 'volume.meta remembers it');
  t.ok((await readAll(disk, again)).equals(expected));
  t.ok((await disk.readFile('/images/base.raw', MIB)).equals(image));
  await again.close();

  await disk.writeFile('/images/second', image);
  await t.rejects(openChain(disk, '/volume'), { code: 'INVALID_ARGUMENT' }, 'two files');
  await disk.writeFile('/qcow2', Buffer.concat([Buffer.from('QFI\xfb', 'latin1'), Buffer.alloc(508)]));
  await t.rejects(openChain(disk, '/volume', { backingFilePath: '/qcow2' }), { code: 'UNSUPPORTED' });
  await disk.writeFile('/large', Buffer.alloc(5 * S));
  await t.rejects(openChain(disk, '/volume', { backingFilePath: '/large' }), { code: 'INVALID_ARGUMENT' });
});

t.test('unmap with the mark flag marks ancestors up to a fork, even for no bytes (19)', async (t) => {
  const { chain } = await memoryChain(1, { unmapMarkDiskChainRemoved: true });
  await snapshot(chain, '000');
  await snapshot(chain, '001a');
  await chain.revert('000', CREATED);
  await snapshot(chain, '001b');
  await snapshot(chain, '002b');
  await control(chain, BLOCK_OP.unmap, 0, 0);
  const removed = (await chain.disks()).filter((d) => d.removed).map((d) => d.name);
  t.strictSame(removed, ['volume-snap-001b.img', 'volume-snap-002b.img']);
});

t.test('unmap releases whole sectors only (20)', async (t) => {
  const cases = [[0, 0, 0], [512, 0, 0], [S, 0, S], [S + 1, 0, S], [512, 1, 0], [S, 1, 0],
    [2 * S, 2048, S], [5120, 2048, 0]];
  for (const [length, offset, released] of cases as [number, number, number][]) {
    const { disk, chain } = await memoryChain(4);
    await writeBytes(disk, chain, 0, sectorsOf(1, 4));
    t.equal(await control(chain, BLOCK_OP.unmap, offset, length), released, `${length} at ${offset}`);
  }
});

t.test('a trimmed sector never shows older data again, live, reopened or purged', async (t) => {
  const { disk, chain } = await memoryChain(4);
  await writeBytes(disk, chain, 0, sectorsOf(1, 2));
  await snapshot(chain, 'a');
  await writeBytes(disk, chain, 0, sectorsOf(2, 1));
  await writeBytes(disk, chain, 2 * S, sectorsOf(2, 1));
  const released = await control(chain, BLOCK_OP.unmap, 0, 3 * S);
  t.equal(released, 0, 'hiding sector 1 costs what sector 2 gives back');
  t.strictSame(await sectorBytes(disk, chain), [0, 0, 0, 0]);
  await chain.close();
  const again = await openChain(disk, '/volume');
  t.strictSame(await sectorBytes(disk, again), [0, 0, 0, 0]);
  await snapshot(again, 'b');
  await purge(again, 'a');
  t.strictSame(await sectorBytes(disk, again), [0, 0, 0, 0]);
  const b = (await again.disks()).find((d) => d.name === 'volume-snap-b.img');
  t.equal(b?.allocatedBytes, 0, 'nothing is left to hide at the root');
});

t.test('unmap punches removed snapshots but none above a kept one (on-disk §6 hazard)', async (t) => {
  const { disk, chain } = await memoryChain(2);
  await writeBytes(disk, chain, 0, sectorsOf(1, 2));
  await snapshot(chain, 'a');
  await writeBytes(disk, chain, 0, sectorsOf(2, 1));
  await snapshot(chain, 'b');
  await chain.markRemoved('a');
  await control(chain, BLOCK_OP.unmap, 0, 2 * S);
  t.strictSame(await sectorBytes(disk, chain), [0, 0]);
  const frozen = await openChain(disk, '/volume', { readOnly: true, headDiskName: 'b' });
  t.strictSame(await sectorBytes(disk, frozen), [2, 1], 'b is not removed and keeps its content');
  await chain.markRemoved('b');
  t.equal(await control(chain, BLOCK_OP.unmap, 0, 2 * S), 5 * S, 'now all three give space back');
  t.strictSame(await sectorBytes(disk, chain), [0, 0]);
  t.strictSame(await chain.exportExtents(), []);
});

t.test('writeZeroes reads zero at any alignment; extents tell data from holes', async (t) => {
  const { disk, chain } = await memoryChain(8);
  await writeBytes(disk, chain, 0, sectorsOf(1, 8));
  await snapshot(chain, 'a');
  await control(chain, BLOCK_OP.writeZeroes, 100, 3 * S);
  await control(chain, BLOCK_OP.writeZeroes, 5 * S + 1, 10);
  const expected = sectorsOf(1, 8);
  expected.fill(0, 100, 100 + 3 * S).fill(0, 5 * S + 1, 5 * S + 11);
  t.ok((await readAll(disk, chain)).equals(expected));

  const fresh = await memoryChain(8);
  await writeBytes(fresh.disk, fresh.chain, 2 * S, sectorsOf(1, 2));
  await snapshot(fresh.chain, 'a');
  await writeBytes(fresh.disk, fresh.chain, 4 * S, sectorsOf(2, 1));
  const bufferOffset = testSlab.allocate(64 * 1024);
  const fields = { op: BLOCK_OP.extents, offsetBytes: 100, lengthBytes: 8 * S - 100, bufferOffset };
  const { resultBytes } = await submitAndWait(fresh.chain, fields);
  const words: number[] = [];
  for (let i = 0; i < resultBytes; i += 4) words.push(testSlab.view.getUint32(bufferOffset + i, true));
  testSlab.release(bufferOffset);
  t.strictSame(words, [2 * S - 100, 3, 3 * S, 0, 3 * S, 3]);
});

t.test('unwritten extents hide older layers (158)', async (t) => {
  const { disk, chain } = await memoryChain(4);
  await writeBytes(disk, chain, 0, sectorsOf(1, 4));
  await snapshot(chain, 'a');
  disk.allocateUnwritten(`/volume/${chain.info().head}`, S, 3 * S);
  await chain.close();
  const again = await openChain(disk, '/volume');
  t.strictSame(await sectorBytes(disk, again), [1, 0, 0, 1]);
});

t.test('expand: new head only, zero-extended snapshots, thirty times (65, 66, 80)', async (t) => {
  const { disk, chain } = await memoryChain(2);
  await writeBytes(disk, chain, 0, sectorsOf(1, 2));
  await snapshot(chain, 'a');
  await chain.expand(4 * S);
  await writeBytes(disk, chain, 3 * S, sectorsOf(2));
  t.strictSame(await sectorBytes(disk, chain), [1, 1, 0, 2]);
  t.match((await chain.disks()).find((d) => d.name === 'volume-snap-expand-16384.img'), {
    userCreated: false,
    labels: { 'replica-expansion': '16384' },
    imageBytes: 2 * S,
  });
  for (let size = 5; size < 35; size++) await chain.expand(size * S);
  await chain.expand(34 * S);
  await t.rejects(chain.expand(4 * S), { message: /cannot expand replica to a smaller size 16384/ });
  await t.rejects(chain.expand(35 * S + 1), { code: 'NOT_ALIGNED' });
  await chain.revert('a', CREATED);
  t.strictSame(await sectorBytes(disk, chain), [1, 1, ...new Array<number>(32).fill(0)]);
  await writeBytes(disk, chain, 33 * S, sectorsOf(3));
  await chain.close();
  t.equal((await openChain(disk, '/volume')).sizeBytes, 34 * S);
});

t.test('a failed expansion is rolled back and can be repeated (93)', async (t) => {
  const { disk, chain } = await memoryChain(2);
  await writeBytes(disk, chain, 0, sectorsOf(1, 2));
  const before = await disk.list('/volume');
  await disk.makeDirectory('/volume/volume-snap-expand-16384.img.meta.tmp');
  const error = await chain.expand(4 * S).catch((e: unknown) => e);
  t.match(error, { code: 'IO_ERROR', details: { rollback: 'succeeded' } });
  t.equal(chain.sizeBytes, 2 * S);
  t.strictSame(await disk.list('/volume'), before);
  await snapshot(chain, 'works');
  await chain.expand(4 * S);
  t.strictSame(await sectorBytes(disk, chain), [1, 1, 0, 0]);
});

t.test('head numbers follow the last digit (157)', async (t) => {
  const { chain } = await memoryChain(1);
  const heads: string[] = [];
  for (let i = 0; i < 22; i++) {
    await snapshot(chain, `s${i}`);
    heads.push(chain.info().head.slice(12, 15));
  }
  const once = ['001', '002', '003', '004', '005', '006', '007', '008', '009', '010'];
  t.strictSame(heads, [...once, ...once, '001', '002']);
  t.equal(nextHeadName('volume-head-999.img'), 'volume-head-010.img');
});

t.test('purging everything again and again keeps ids, files and content bounded (66, 78)', async (t) => {
  const { disk, chain } = await memoryChain(4);
  for (let i = 1; i <= 300; i++) {
    await writeBytes(disk, chain, (i % 4) * S, sectorsOf(i % 251));
    await snapshot(chain, `s${i}`);
    if (i > 2) await purge(chain, `s${i - 2}`);
  }
  t.strictSame(await sectorBytes(disk, chain), [300 % 251, 297 % 251, 298 % 251, 299 % 251]);
  t.equal((await disk.list('/volume')).length, 7);
});

t.test('purge coalesces, replaces and prunes without changing a byte (82, 83)', async (t) => {
  const { disk, chain } = await memoryChain(6);
  await writeBytes(disk, chain, 0, sectorsOf(1, 3));
  await snapshot(chain, 'a');
  await writeBytes(disk, chain, S, sectorsOf(2, 3));
  await snapshot(chain, 'b');
  await writeBytes(disk, chain, 2 * S, sectorsOf(3, 2));
  const before = await sectorBytes(disk, chain);
  await chain.markRemoved('b');
  await purge(chain, 'a');
  t.strictSame(await sectorBytes(disk, chain), before);
  await purge(chain, 'b');
  t.strictSame(await sectorBytes(disk, chain), before);
  const disks = await chain.disks();
  t.match(disks, [{ name: 'volume-head-002.img' }, { name: 'volume-snap-b.img', removed: true }]);
  t.equal(disks[1]?.allocatedBytes, 2 * S, 'what the head hides is gone');
  t.strictSame(chain.liveChain(), ['volume-head-002.img']);
});

t.test('purge can be cancelled and reports progress; its disks are busy meanwhile', async (t) => {
  const { disk, chain } = await memoryChain(8);
  await snapshot(chain, 'a');
  await writeBytes(disk, chain, 0, sectorsOf(1, 4));
  await snapshot(chain, 'b');
  await chain.markRemoved('a');
  const seen: number[] = [];
  const abort = new AbortController();
  const work = chain.coalesce('a', 'b', { signal: abort.signal, onProgress: (done) => seen.push(done) });
  await t.rejects(chain.removeDisk('a', false), { code: 'BUSY' });
  await t.rejects(chain.coalesce('a', 'b'), { code: 'BUSY' });
  await work;
  t.equal(seen.at(-1), 4 * S);
  abort.abort();
  await t.rejects(chain.coalesce('a', 'b', { signal: abort.signal }), { code: 'CANCELLED' });
  await chain.replaceDisk('b', 'a');
  t.strictSame(await sectorBytes(disk, chain), [1, 1, 1, 1, 0, 0, 0, 0]);
});

t.test('the revision counter counts writes and trims and outlives a reopen', async (t) => {
  const { disk, chain } = await memoryChain(8, { revisionCounter: true });
  const writes = [0, 1, 2, 3, 4].map((i) => writeBytes(disk, chain, i * S, sectorsOf(1)));
  await Promise.all(writes);
  await writeBytes(disk, chain, 7, Buffer.alloc(3));
  await control(chain, BLOCK_OP.unmap, 0, S);
  t.equal(chain.revisionCounter, 7);
  const file = await disk.readFile('/volume/revision.counter', MIB);
  t.equal(file.length, S);
  t.equal(file.toString('latin1').replace(/\0+$/, ''), '7');
  await chain.setRevisionCounter(100);
  await chain.close();
  const again = await openChain(disk, '/volume', { revisionCounter: true });
  t.equal(again.revisionCounter, 100);
  disk.fault = (call) => (call.path.endsWith('revision.counter') ? 'IO_ERROR' : null);
  await t.rejects(writeBytes(disk, again, 0, sectorsOf(1)), { code: 'IO_ERROR' }, 'no ack without it');
  disk.fault = null;
  await again.close().catch(() => undefined);
});

t.test('the rebuilding flag survives close, open and reload (48, 49)', async (t) => {
  const { disk, chain } = await memoryChain(1);
  await chain.setRebuilding(true);
  await chain.reload();
  t.equal(chain.info().rebuilding, true);
  t.equal(chain.info().dirty, false, 'reload keeps the state');
  await chain.close();
  const again = await openChain(disk, '/volume');
  t.match(again.info(), { rebuilding: true, dirty: false });
  await again.setRebuilding(false);
  t.match(await text(disk, 'volume.meta'), '"Dirty":true,"Rebuilding":false');
});

t.test('reload sees files that others put there', async (t) => {
  const { disk, chain } = await memoryChain(2);
  await writeBytes(disk, chain, 0, sectorsOf(1));
  await snapshot(chain, 'a');
  await put(disk, 'volume-snap-z.img', 'z'.repeat(2 * S));
  await put(disk, 'volume-snap-z.img.meta', '{"Parent":""}\n');
  await put(disk, 'volume-snap-a.img.meta', '{"parent":"volume-snap-z.img","LABELS":null}{');
  await chain.reload();
  t.strictSame(chain.liveChain().slice(1), ['volume-snap-a.img', 'volume-snap-z.img']);
  t.strictSame(await sectorBytes(disk, chain), [1, 'z'.charCodeAt(0)]);
});

t.test('volume.meta that is missing or empty is made again from the head (131)', async (t) => {
  for (const content of [null, '', '{"Size":0,"Head":"","Dirty":true}']) {
    const { disk, chain } = await memoryChain(2);
    await writeBytes(disk, chain, 0, sectorsOf(1));
    await snapshot(chain, 'a');
    await writeBytes(disk, chain, S, sectorsOf(2));
    await chain.close();
    if (content === null) await disk.unlink('/volume/volume.meta');
    else await put(disk, 'volume.meta', content);
    const files = await disk.list('/volume');
    await t.rejects(openChain(disk, '/volume'), { code: 'NOT_FOUND' });
    t.strictSame(await disk.list('/volume'), files, 'the refused open wrote nothing');
    t.equal(await ImageChain.probe(disk, '/volume'), null);
    await ImageChain.create(disk, '/volume', { sizeBytes: 4 * S, ...chainDefaults });
    const again = await openChain(disk, '/volume');
    t.strictSame(await sectorBytes(disk, again), [1, 2]);
    t.equal(again.info().dirty, true);
  }
});

t.test('a directory that cannot be a volume is refused with the reason', async (t) => {
  const good = '{"Size":8192,"Head":"volume-head-001.img"}';
  const spoil: [string, string, (disk: MemoryDisk) => Promise<void>][] = [
    ['BAD_METADATA', 'volume.meta', (d) => put(d, 'volume.meta', '{"Size":')],
    ['BAD_METADATA', 'volume.meta', (d) => put(d, 'volume.meta', '[]')],
    ['BAD_METADATA', 'size 8191', (d) => put(d, 'volume.meta', good.replace('8192', '8191'))],
    ['BAD_METADATA', '../x', (d) => put(d, 'volume.meta', good.replace('volume-head-001.img', '../x'))],
    ['BAD_METADATA', 'volume-snap-a.img.meta', (d) => put(d, 'volume-snap-a.img.meta', '{]')],
    ['BAD_METADATA', 'parent', (d) => put(d, 'volume-snap-a.img.meta', '{"Parent":5}')],
    ['CHAIN_BROKEN', 'volume-head-007.img', (d) => put(d, 'volume.meta', good.replace('001', '007'))],
    ['CHAIN_BROKEN', 'volume-snap-a.img', (d) => d.unlink('/volume/volume-snap-a.img.meta')],
    ['CHAIN_BROKEN', 'volume-snap-a.img', (d) => d.unlink('/volume/volume-snap-a.img')],
    ['CHAIN_BROKEN', 'ancestor', (d) => put(d, 'volume-snap-a.img.meta', '{"Parent":"volume-head-001.img"}')],
    ['IMAGE_TRUNCATED', 'volume-snap-a.img', (d) => put(d, 'volume-snap-a.img', '')],
    ['IMAGE_TRUNCATED', 'volume-head-001.img', (d) => put(d, 'volume-head-001.img', 'x'.repeat(S))],
    ['EXTENTS_UNSUPPORTED', 'extent', async (d) => void (d.supportsExtents = false)],
  ];
  for (const [code, mentioned, change] of spoil) {
    const { disk, chain } = await memoryChain(2);
    await snapshot(chain, 'a');
    await chain.close();
    await change(disk);
    const files = await disk.list('/volume');
    const error = await openChain(disk, '/volume').then(() => null, (e: Error) => e);
    t.match(error, { code, message: new RegExp(mentioned.replaceAll('.', '\\.')) });
    t.strictSame(await disk.list('/volume'), files);
  }
  const disk = memoryDisk();
  await t.rejects(openChain(disk, '/nowhere'), { code: 'NOT_FOUND' });
  await disk.writeFile('/file', Buffer.from('x'));
  await t.rejects(openChain(disk, '/file'), { code: 'INVALID_ARGUMENT' });
  await disk.makeDirectory('/empty');
  await t.rejects(openChain(disk, '/empty'), { code: 'NOT_FOUND', message: /file does not exist/ });
  t.strictSame(await disk.list('/empty'), []);
});

t.test('a chain has at most 250 layers, and the snapshot limit is kept', async (t) => {
  const { disk, chain } = await memoryChain(1, { snapshotMaxCount: 1000 });
  for (let i = 0; i < 249; i++) await snapshot(chain, `s${i}`);
  await t.rejects(snapshot(chain, 'more'), { message: 'too many active disks: 250' });
  chain.setSnapshotMaxCount(249);
  t.match(await chain.usage(), { remainingSnapshots: 0, snapshotCount: 249 });
  await chain.close();
  const again = await openChain(disk, '/volume');
  await again.close();
  await put(disk, 'volume-snap-x.img.meta', '{"Parent":""}');
  await put(disk, 'volume-snap-x.img', 'x'.repeat(S));
  await put(disk, 'volume-snap-s0.img.meta', '{"Parent":"volume-snap-x.img"}');
  await t.rejects(openChain(disk, '/volume'), { message: 'live chain is too long: 251' });
});

t.test('names from outside never become other paths', async (t) => {
  const { chain } = await memoryChain(1);
  for (const name of ['', '.', '..', 'a/b', '../../etc', 'a\0b', 'a\nb', 'x'.repeat(300)]) {
    if (name !== '.') await t.rejects(snapshot(chain, name), { code: 'INVALID_NAME' });
    await t.rejects(chain.revert(name, CREATED));
    await t.rejects(chain.removeDisk(name, true), { code: 'NOT_FOUND' });
  }
  await snapshot(chain, 'x'.repeat(221));
});

t.test('bad requests fail alone', async (t) => {
  const { disk, chain } = await memoryChain(2);
  const outside = { code: 'OUT_OF_RANGE' };
  await t.rejects(writeBytes(disk, chain, 2 * S, sectorsOf(1)), outside);
  await t.rejects(writeBytes(disk, chain, S, sectorsOf(1, 2)), outside);
  await t.rejects(readBytes(disk, chain, 2 * S - 1, 2), outside);
  await t.rejects(control(chain, BLOCK_OP.unmap, -S, S), outside);
  t.strictSame(await sectorBytes(disk, chain), [0, 0]);
  const frozen = await openChain(disk, '/volume', { readOnly: true });
  await t.rejects(writeBytes(disk, frozen, 0, sectorsOf(1)), { code: 'READ_ONLY' });
  await t.rejects(snapshot(frozen, 'a'), { code: 'READ_ONLY' });
  await chain.close();
  await chain.close();
  await t.rejects(readBytes(disk, chain, 0, S), { code: 'CLOSED' });
  await t.rejects(snapshot(chain, 'a'), { code: 'CLOSED' });
});

t.test('a full disk: clear error, old data stays, the chain lives on (21, 22)', async (t) => {
  const { disk, chain } = await memoryChain(8);
  await writeBytes(disk, chain, 0, sectorsOf(1, 8));
  await snapshot(chain, 'a');
  await writeBytes(disk, chain, 0, sectorsOf(2));
  disk.fault = (call) => (call.kind === 'write' ? 'NO_SPACE' : null);
  const full = { code: 'NO_SPACE', message: /no space left on device/ };
  await t.rejects(writeBytes(disk, chain, 0, sectorsOf(3, 4)), full);
  await t.rejects(writeBytes(disk, chain, S + 5, Buffer.alloc(100, 3)), full);
  t.strictSame(await sectorBytes(disk, chain), [2, 1, 1, 1, 1, 1, 1, 1], 'not zeros of an empty head');
  disk.fault = (call) => (call.kind === 'writeFile' ? 'NO_SPACE' : null);
  await t.rejects(snapshot(chain, 'b'), full);
  disk.fault = null;
  await snapshot(chain, 'b');
  t.strictSame(await sectorBytes(disk, chain), [2, 1, 1, 1, 1, 1, 1, 1]);
});

t.test('where holes are unsupported, trims write zeros', async (t) => {
  const { disk, chain } = await memoryChain(8);
  await writeBytes(disk, chain, 0, sectorsOf(1, 8));
  disk.supportsHoles = false;
  await control(chain, BLOCK_OP.unmap, S, 6 * S);
  t.strictSame(await sectorBytes(disk, chain), [1, 0, 0, 0, 0, 0, 0, 1]);
});

t.test('after a failed sync no flush succeeds again (P2)', async (t) => {
  const { disk, chain } = await memoryChain(2);
  await control(chain, BLOCK_OP.flush);
  await writeBytes(disk, chain, 0, sectorsOf(1));
  disk.fault = (call) => (call.kind === 'sync' ? 'IO_ERROR' : null);
  await t.rejects(control(chain, BLOCK_OP.flush), { code: 'IO_ERROR' });
  disk.fault = null;
  await t.rejects(control(chain, BLOCK_OP.flush), { code: 'IO_ERROR' });
  await t.rejects(writeBytes(disk, chain, 0, sectorsOf(1), true), { code: 'IO_ERROR' }, 'fua too');
  await chain.close().catch(() => undefined);
  t.match(await text(disk, 'volume.meta'), '"Dirty":true', 'nor is the close clean');
});

t.test('flush and fua make writes survive a power cut', async (t) => {
  const { disk, chain } = await memoryChain(4);
  await writeBytes(disk, chain, 0, sectorsOf(1));
  await control(chain, BLOCK_OP.flush);
  await writeBytes(disk, chain, S, sectorsOf(2), true);
  await writeBytes(disk, chain, 2 * S, sectorsOf(3));
  disk.restart();
  const again = await openChain(disk, '/volume');
  t.strictSame(await sectorBytes(disk, again), [1, 2, 0, 0]);
  t.equal(again.info().dirty, true);
});

t.test('a head file that is gone makes the questions fail (95)', async (t) => {
  const { disk, chain } = await memoryChain(1);
  await disk.unlink(`/volume/${chain.info().head}`);
  await t.rejects(chain.disks(), { code: 'NOT_FOUND' });
  await t.rejects(chain.headUsage(), { code: 'NOT_FOUND' });
});

t.test('a large empty volume opens at once and costs no memory', async (t) => {
  const disk = memoryDisk();
  const sizeBytes = 64 * 1024 * 1024 * MIB;
  await ImageChain.create(disk, '/volume', { sizeBytes, ...chainDefaults });
  const chain = await openChain(disk, '/volume');
  await writeBytes(disk, chain, sizeBytes - S, sectorsOf(1));
  t.equal((await readBytes(disk, chain, sizeBytes - S, 1))[0], 1);
  t.equal((await readBytes(disk, chain, sizeBytes / 2, 1))[0], 0);
  t.strictSame(await chain.exportExtents(), [{ beginOffset: sizeBytes - S, endOffset: sizeBytes }]);
});

t.test('overlapping requests keep their order of arrival', async (t) => {
  const { disk, chain } = await memoryChain(4);
  const results: Promise<unknown>[] = [];
  for (let i = 1; i <= 40; i++) {
    results.push(writeBytes(disk, chain, (i % 3) * 100, Buffer.alloc(2 * S, i)));
    if (i % 10 === 0) results.push(snapshot(chain, `s${i}`));
  }
  await Promise.all(results);
  const expected = Buffer.alloc(4 * S);
  for (let i = 1; i <= 40; i++) expected.fill(i, (i % 3) * 100, (i % 3) * 100 + 2 * S);
  t.ok((await readAll(disk, chain)).equals(expected));
});

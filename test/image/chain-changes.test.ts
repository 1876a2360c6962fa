// What an image chain promises when it grows, is purged and meets bad input: upstream's replica scenarios (numbers refer to the
// list of tests worth porting, groups A and B), Longhorn's file formats, and bad input.

import t from 'tap';

import { BLOCK_OP } from '../../src/core/block-device.js';
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

async function text(disk: MemoryDisk, name: string): Promise<string> {
  return (await disk.readFile(`/volume/${name}`, MIB)).toString();
}

function put(disk: MemoryDisk, name: string, content: string): Promise<void> {
  return disk.writeFile(`/volume/${name}`, Buffer.from(content));
}

async function withoutExtents(disk: MemoryDisk): Promise<void> {
  disk.supportsExtents = false;
}

t.afterEach(() => {
  for (const { freeCount, count } of testSlab.freeCounts()) {
    if (freeCount !== count) throw new Error('a slab buffer leaked');
  }
  if (ScratchBuffers.of(testSlab).freeCount !== 16) throw new Error('a scratch buffer leaked');
});

t.test('#65 #66 #80 expand: new head only, zero-extended snapshots, thirty times', async (t) => {
  const { disk, chain } = await memoryChain(2);
  await writeBytes(disk, chain, 0, sectorsOf(1, 2));
  await snapshot(chain, 'a');
  await chain.expand(4 * S);
  await writeBytes(disk, chain, 3 * S, sectorsOf(2));
  t.strictSame(await sectorBytes(disk, chain), [1, 1, 0, 2]);
  t.match(
    (await chain.disks()).find((d) => d.name === 'volume-snap-expand-16384.img'),
    {
      userCreated: false,
      labels: { 'replica-expansion': '16384' },
      imageBytes: 2 * S,
    },
  );
  for (let size = 5; size < 35; size++) await chain.expand(size * S);
  await chain.expand(34 * S);
  await t.rejects(chain.expand(4 * S), {
    message: /cannot expand replica to a smaller size 16384/,
  });
  await t.rejects(chain.expand(35 * S + 1), { code: 'NOT_ALIGNED' });
  await chain.revert('a', CREATED);
  t.strictSame(await sectorBytes(disk, chain), [1, 1, ...new Array<number>(32).fill(0)]);
  await writeBytes(disk, chain, 33 * S, sectorsOf(3));
  await chain.close();
  t.equal((await openChain(disk, '/volume')).sizeBytes, 34 * S);
});

t.test('#93 a failed expansion is rolled back and can be repeated', async (t) => {
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

t.test('#157 head numbers follow the last digit', async (t) => {
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

t.test(
  '#66 #78 purging everything again and again keeps ids, files and content bounded',
  async (t) => {
    const { disk, chain } = await memoryChain(4);
    for (let i = 1; i <= 300; i++) {
      await writeBytes(disk, chain, (i % 4) * S, sectorsOf(i % 251));
      await snapshot(chain, `s${i}`);
      if (i > 2) await purge(chain, `s${i - 2}`);
    }
    t.strictSame(await sectorBytes(disk, chain), [300 % 251, 297 % 251, 298 % 251, 299 % 251]);
    t.equal((await disk.list('/volume')).length, 7);
  },
);

t.test('#82 #83 purge coalesces, replaces and prunes without changing a byte', async (t) => {
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
  await writeBytes(disk, chain, 2 * S, sectorsOf(7, 6));
  await snapshot(chain, 'a');
  await writeBytes(disk, chain, 0, sectorsOf(1, 4));
  await snapshot(chain, 'b');
  await chain.markRemoved('a');
  const seen: number[] = [];
  const abort = new AbortController();
  const work = chain.coalesce('a', 'b', {
    signal: abort.signal,
    onProgress: (done) => seen.push(done),
  });
  await t.rejects(chain.removeDisk('a', false), { code: 'BUSY' });
  await t.rejects(chain.coalesce('a', 'b'), { code: 'BUSY' });
  await work;
  t.equal(seen.at(-1), 4 * S);
  abort.abort();
  await t.rejects(chain.coalesce('a', 'b', { signal: abort.signal }), { code: 'CANCELLED' });
  await chain.replaceDisk('b', 'a');
  t.strictSame(await sectorBytes(disk, chain), [1, 1, 1, 1, 7, 7, 7, 7]);
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
  await t.rejects(
    writeBytes(disk, again, 0, sectorsOf(1)),
    { code: 'IO_ERROR' },
    'no ack without it',
  );
  disk.fault = null;
  await again.close().catch(() => undefined);
});

t.test('#48 #49 the rebuilding flag survives close, open and reload', async (t) => {
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

t.test('#131 volume.meta that is missing or empty is made again from the head', async (t) => {
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
    [
      'BAD_METADATA',
      '../x',
      (d) => put(d, 'volume.meta', good.replace('volume-head-001.img', '../x')),
    ],
    ['BAD_METADATA', 'volume-snap-a.img.meta', (d) => put(d, 'volume-snap-a.img.meta', '{]')],
    ['BAD_METADATA', 'parent', (d) => put(d, 'volume-snap-a.img.meta', '{"Parent":5}')],
    [
      'CHAIN_BROKEN',
      'volume-head-007.img',
      (d) => put(d, 'volume.meta', good.replace('001', '007')),
    ],
    ['CHAIN_BROKEN', 'volume-snap-a.img', (d) => d.unlink('/volume/volume-snap-a.img.meta')],
    ['CHAIN_BROKEN', 'volume-snap-a.img', (d) => d.unlink('/volume/volume-snap-a.img')],
    [
      'CHAIN_BROKEN',
      'ancestor',
      (d) => put(d, 'volume-snap-a.img.meta', '{"Parent":"volume-head-001.img"}'),
    ],
    ['IMAGE_TRUNCATED', 'volume-snap-a.img', (d) => put(d, 'volume-snap-a.img', '')],
    ['IMAGE_TRUNCATED', 'volume-head-001.img', (d) => put(d, 'volume-head-001.img', 'x'.repeat(S))],
    ['EXTENTS_UNSUPPORTED', 'extent', withoutExtents],
  ];
  for (const [code, mentioned, change] of spoil) {
    const { disk, chain } = await memoryChain(2);
    await snapshot(chain, 'a');
    await chain.close();
    await change(disk);
    const files = await disk.list('/volume');
    const error = await openChain(disk, '/volume').then(
      () => null,
      (e: Error) => e,
    );
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

t.test('#21 #22 a full disk: clear error, old data stays, the chain lives on', async (t) => {
  const { disk, chain } = await memoryChain(8);
  await writeBytes(disk, chain, 0, sectorsOf(1, 8));
  await snapshot(chain, 'a');
  await writeBytes(disk, chain, 0, sectorsOf(2));
  disk.fault = (call) => (call.kind === 'write' ? 'NO_SPACE' : null);
  const full = { code: 'NO_SPACE', message: /no space left on device/ };
  await t.rejects(writeBytes(disk, chain, 0, sectorsOf(3, 4)), full);
  await t.rejects(writeBytes(disk, chain, S + 5, Buffer.alloc(100, 3)), full);
  t.strictSame(
    await sectorBytes(disk, chain),
    [2, 1, 1, 1, 1, 1, 1, 1],
    'not zeros of an empty head',
  );
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

t.test('#95 a head file that is gone makes the questions fail', async (t) => {
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

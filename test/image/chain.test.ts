// What an image chain promises to its callers: upstream's replica scenarios (numbers refer to the
// list of tests worth porting, groups A and B), Longhorn's file formats, and bad input.

import t from 'tap';

import { BLOCK_OP, submitAndWait } from '../../src/core/block-device.js';
import { MIB, SECTOR_BYTES } from '../../src/core/units.js';
import { ImageChain } from '../../src/image/chain.js';
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

t.afterEach(() => {
  for (const { freeCount, count } of testSlab.freeCounts()) {
    if (freeCount !== count) throw new Error('a slab buffer leaked');
  }
  if (ScratchBuffers.of(testSlab).freeCount !== 16) throw new Error('a scratch buffer leaked');
});

t.test('#1 #11 create writes what Longhorn writes, and again does nothing', async (t) => {
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
  await t.rejects(ImageChain.create(disk, '/odd', { sizeBytes: 9, ...chainDefaults }), {
    code: 'NOT_ALIGNED',
  });
});

t.test('#2 two snapshots: heads, chain, labels, children as upstream', async (t) => {
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
    {
      name: 'volume-snap-001.img',
      parent: 'volume-snap-000.img',
      children: ['volume-head-002.img'],
    },
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

t.test('#3 #4 #8 revert keeps the other branch and further changes keep the tree', async (t) => {
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
  await t.rejects(chain.revert('nowhere', CREATED), {
    code: 'NOT_FOUND',
    message: /no such file/,
  });
  await t.rejects(chain.revert('volume-head-006.img', CREATED));
  await chain.markRemoved('000');
  await t.rejects(chain.revert('000', CREATED), {
    message: "cannot revert to disk file 000 since it's already marked as removed",
  });
});

t.test(
  '#5 #6 #7 #18 removal of the head, the oldest, a middle and a forked snapshot',
  async (t) => {
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
    await t.rejects(
      chain.removeDisk('b', true),
      { code: 'NOT_FOUND' },
      'an unknown disk is refused',
    );
  },
);

t.test('#9 #10 #47 prepareRemove gives the actions that peers know', async (t) => {
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

t.test(
  '#13 #14 #16 three layers read newest first, partial writes keep their neighbours',
  async (t) => {
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
  },
);

t.test('#17 reads may start and end anywhere, also through many scratch pieces', async (t) => {
  const { disk, chain } = await memoryChain(64);
  const content = Buffer.alloc(64 * S);
  for (let i = 0; i < content.length; i++) content[i] = (i * 7 + (i >> 12)) & 0xff;
  await writeBytes(disk, chain, 0, content);
  const ranges = [
    [0, 1],
    [511, 513],
    [S, 100],
    [S - 100, 100],
    [S + 1, 2 * S],
    [3, 63 * S],
    [0, 64 * S],
  ];
  for (const [offset, length] of ranges as [number, number][]) {
    const part = await readBytes(disk, chain, offset, length);
    t.ok(part.equals(content.subarray(offset, offset + length)), `${length} bytes at ${offset}`);
  }
  await writeBytes(disk, chain, 5, content.subarray(0, 62 * S));
  t.ok((await readBytes(disk, chain, 5, 62 * S)).equals(content.subarray(0, 62 * S)));
});

t.test(
  '#12 #15 #37 a backing file shows through, zero-extended, and is never written',
  async (t) => {
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
    await disk.writeFile(
      '/qcow2',
      Buffer.concat([Buffer.from('QFI\xfb', 'latin1'), Buffer.alloc(508)]),
    );
    await t.rejects(openChain(disk, '/volume', { backingFilePath: '/qcow2' }), {
      code: 'UNSUPPORTED',
    });
    await disk.writeFile('/large', Buffer.alloc(5 * S));
    await t.rejects(openChain(disk, '/volume', { backingFilePath: '/large' }), {
      code: 'INVALID_ARGUMENT',
    });
  },
);

t.test(
  '#19 unmap with the mark flag marks ancestors up to a fork, even for no bytes',
  async (t) => {
    const { chain } = await memoryChain(1, { unmapMarkDiskChainRemoved: true });
    await snapshot(chain, '000');
    await snapshot(chain, '001a');
    await chain.revert('000', CREATED);
    await snapshot(chain, '001b');
    await snapshot(chain, '002b');
    await control(chain, BLOCK_OP.unmap, 0, 0);
    const removed = (await chain.disks()).filter((d) => d.removed).map((d) => d.name);
    t.strictSame(removed, ['volume-snap-001b.img', 'volume-snap-002b.img']);
  },
);

t.test('#20 unmap releases whole sectors only', async (t) => {
  const cases = [
    [0, 0, 0],
    [512, 0, 0],
    [S, 0, S],
    [S + 1, 0, S],
    [512, 1, 0],
    [S, 1, 0],
    [2 * S, 2048, S],
    [5120, 2048, 0],
  ];
  for (const [length, offset, released] of cases as [number, number, number][]) {
    const { disk, chain } = await memoryChain(4);
    await writeBytes(disk, chain, 0, sectorsOf(1, 4));
    t.equal(
      await control(chain, BLOCK_OP.unmap, offset, length),
      released,
      `${length} at ${offset}`,
    );
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

t.test(
  'unmap punches removed snapshots but none above a kept one (on-disk §6 hazard)',
  async (t) => {
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
  },
);

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
  for (let i = 0; i < resultBytes; i += 4)
    words.push(testSlab.view.getUint32(bufferOffset + i, true));
  testSlab.release(bufferOffset);
  t.strictSame(words, [2 * S - 100, 3, 3 * S, 0, 3 * S, 3]);
});

t.test('#158 unwritten extents hide older layers', async (t) => {
  const { disk, chain } = await memoryChain(4);
  await writeBytes(disk, chain, 0, sectorsOf(1, 4));
  await snapshot(chain, 'a');
  disk.allocateUnwritten(`/volume/${chain.info().head}`, S, 3 * S);
  await chain.close();
  const again = await openChain(disk, '/volume');
  t.strictSame(await sectorBytes(disk, again), [1, 0, 0, 1]);
});

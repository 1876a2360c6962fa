// Write intents: whatever a crash, a torn write or a failing disk does, each region that a write may
// have touched since the last checkpoint is known afterwards, or that nothing is known.

import t from 'tap';
import { BLOCK_OP } from '../../src/core/block-device.js';
import { GIB, MIB } from '../../src/core/units.js';
import {
  BITMAP_BYTES,
  decodeFile,
  encodeSlot,
  INTENTS_BYTES,
  REGIONS_MAX,
  regionBytesFor,
  SLOT_BYTES,
  setBits,
} from '../../src/replica/intents-record.js';
import { WriteIntents } from '../../src/replica/write-intents.js';
import {
  DIRECTORY,
  Next,
  PATH,
  WRITE_BYTES,
  covers,
  newDisk,
  open,
  syncCount,
  write,
} from '../support/intents-bed.js';

t.test(
  'a region costs one sync, reads and flushes none, and writes that come together share one',
  async (t) => {
    const disk = await newDisk();
    const next = new Next(64 * MIB);
    const intents = await open(disk, next);
    t.same(intents.ranges(), []);
    t.equal(await syncCount(disk, () => write(intents, 10 * MIB)), 1);
    t.equal(await syncCount(disk, () => write(intents, 10 * MIB + WRITE_BYTES)), 0);
    t.equal(await syncCount(disk, () => write(intents, 0, WRITE_BYTES, BLOCK_OP.read)), 0);
    t.equal(await syncCount(disk, () => write(intents, 0, 0, BLOCK_OP.flush)), 0);
    const together = [20, 30, 40].map((mib) => (): Promise<unknown> => write(intents, mib * MIB));
    t.equal(await syncCount(disk, () => Promise.all(together.map((start) => start()))), 1);
    t.equal(await syncCount(disk, () => write(intents, 50 * MIB - 4096, 8192, BLOCK_OP.unmap)), 1);
    t.equal(await syncCount(disk, () => write(intents, 60 * MIB, MIB, BLOCK_OP.writeZeroes)), 1);
    t.same(
      intents.ranges(),
      [
        [10, 11],
        [20, 21],
        [30, 31],
        [40, 41],
        [49, 51],
        [60, 61],
      ].map(([begin = 0, end = 0]) => ({ beginOffset: begin * MIB, endOffset: end * MIB })),
    );
    const free = disk.slab.freeCountOf(SLOT_BYTES);
    await intents.close();
    t.equal(disk.slab.freeCountOf(SLOT_BYTES), free + 1, 'its buffer is given back');
  },
);

t.test('a write in a marked region goes on before admit returns', async (t) => {
  const disk = await newDisk();
  const next = new Next(8 * MIB);
  const intents = await open(disk, next);
  await write(intents, 0);
  const done = write(intents, WRITE_BYTES);
  t.equal(next.arrived.length, 2);
  await done;
  await intents.close();
});

t.test(
  'a later write that overlaps a waiting one goes on after it, others need not wait',
  async (t) => {
    const disk = await newDisk();
    const next = new Next(64 * MIB);
    const intents = await open(disk, next);
    await write(intents, 0);
    next.arrived.length = 0;
    const writes = [
      write(intents, MIB - 4096, 8192),
      write(intents, MIB - 4096, 4096),
      write(intents, MIB - 8192, 8192),
      write(intents, 0, 4096),
    ];
    await Promise.all(writes);
    t.same(
      next.arrived.map(({ beginOffset, endOffset }) => [beginOffset, endOffset]),
      [
        [0, 4096],
        [MIB - 4096, MIB + 4096],
        [MIB - 4096, MIB],
        [MIB - 8192, MIB],
      ],
    );
    await intents.close();
  },
);

t.test('close lets what waits go on first', async (t) => {
  const disk = await newDisk();
  const next = new Next(64 * MIB);
  const intents = await open(disk, next);
  const writes = [write(intents, 0), write(intents, 32 * MIB)];
  await intents.close();
  t.equal(next.arrived.length, 2);
  await Promise.all(writes);
});

t.test('a stream is marked ahead: far fewer syncs than regions', async (t) => {
  const disk = await newDisk();
  const intents = await open(disk, new Next(64 * MIB));
  const syncs = await syncCount(disk, async () => {
    for (let at = 0; at < 64 * MIB; at += MIB / 2) await write(intents, at, MIB / 2);
  });
  t.ok(syncs <= 9, `${syncs} syncs for 64 regions`);
  await intents.close();
});

t.test('writes all over a large volume cost far fewer syncs than it has regions', async (t) => {
  const disk = await newDisk();
  const next = new Next(10 * GIB);
  const intents = await open(disk, next);
  const syncs = { count: 0 };
  disk.fault = ({ kind, path }) => {
    if (kind === 'sync' && path === PATH) syncs.count++;
    return null;
  };
  const sweep = async (): Promise<number> => {
    syncs.count = 0;
    // 4,001 has no common factor with 10,240: every region comes once, never two in a row.
    for (let i = 0; i < 10_240; i++) await write(intents, ((i * 4001) % 10_240) * MIB);
    return syncs.count;
  };
  t.ok((await sweep()) < 2000);
  t.ok(covers(intents.ranges(), next.arrived));
  await intents.begin();
  await intents.end();
  t.same(intents.ranges(), []);
  await write(intents, 100 * MIB);
  t.same(
    intents.ranges(),
    [{ beginOffset: 100 * MIB, endOffset: 101 * MIB }],
    'and it narrows again',
  );
  await intents.close();
});

for (const fault of ['NO_SPACE', 'IO_ERROR'] as const) {
  t.test(`${fault}: those that wait fail with it, and so does every later write`, async (t) => {
    const disk = await newDisk();
    const next = new Next(64 * MIB);
    const intents = await open(disk, next);
    await write(intents, 0);
    next.arrived.length = 0;
    disk.fault = ({ kind }) => (kind === 'write' ? fault : null);
    const writes = [write(intents, 8 * MIB), write(intents, 16 * MIB)];
    for (const failed of writes) await t.rejects(failed, { code: fault });
    disk.fault = null;
    await t.rejects(write(intents, 0), { code: fault });
    await t.rejects(intents.begin(), { code: fault });
    t.same(next.arrived, []);
    await write(intents, 0, WRITE_BYTES, BLOCK_OP.read);
    await intents.close();
    const again = await open(disk, next);
    t.ok(covers(again.ranges(), [{ beginOffset: 0, endOffset: WRITE_BYTES }]));
    await write(again, 8 * MIB);
    await again.close();
  });
}

t.test('a failed sync marks nothing', async (t) => {
  const disk = await newDisk();
  const next = new Next(64 * MIB);
  const intents = await open(disk, next);
  disk.fault = ({ kind }) => (kind === 'sync' ? 'IO_ERROR' : null);
  await t.rejects(write(intents, 0), { code: 'IO_ERROR' });
  t.same(next.arrived, []);
  await intents.close();
});

t.test('only an end() forgets: neither a clean close nor a begin() does', async (t) => {
  const disk = await newDisk();
  const next = new Next(64 * MIB);
  const first = await open(disk, next);
  await write(first, 3 * MIB);
  await first.close();
  const second = await open(disk, next);
  const three = { beginOffset: 3 * MIB, endOffset: 4 * MIB };
  t.same(second.ranges(), [three]);
  await second.begin();
  await write(second, 9 * MIB);
  await second.begin();
  await second.begin();
  t.equal(second.ranges()?.length, 2);
  await write(second, 20 * MIB);
  await second.end();
  t.same(second.ranges(), [{ beginOffset: 20 * MIB, endOffset: 21 * MIB }]);
  await second.close();
});

t.test(
  'unknown: no file after an unclean end, a damaged file, another program; until an end()',
  async (t) => {
    const disk = await newDisk();
    const next = new Next(64 * MIB);
    const expectUnknown = async (fields: { isMissingUnknown?: boolean; isStale?: boolean }) => {
      const intents = await open(disk, next, fields);
      t.equal(intents.ranges(), null);
      await write(intents, 5 * MIB);
      await intents.begin();
      t.equal(intents.ranges(), null, 'a begin does not forget it');
      await intents.close();
      const again = await open(disk, next);
      t.equal(again.ranges(), null, 'nor a reopen');
      await again.end();
      await again.close();
      const later = await open(disk, next);
      t.not(later.ranges(), null, 'an end does, durably');
      await later.close();
    };
    await expectUnknown({ isMissingUnknown: true });
    await expectUnknown({ isStale: true });
    await WriteIntents.invalidate(disk, DIRECTORY);
    await expectUnknown({});
    const content = await disk.readFile(PATH, INTENTS_BYTES);
    for (const damaged of [
      content.subarray(0, 512),
      Buffer.alloc(INTENTS_BYTES),
      Buffer.alloc(1e6),
    ]) {
      await disk.writeFile(PATH, damaged);
      await expectUnknown({});
    }
    content.writeUInt8(255, 512 * 9 + 100);
    await disk.writeFile(PATH, content);
    await expectUnknown({});
  },
);

t.test('an engine that makes no checkpoints leaves no file where there was none', async (t) => {
  const disk = await newDisk();
  await WriteIntents.invalidate(disk, DIRECTORY);
  t.same(await disk.list(DIRECTORY), []);
});

t.test('a slot torn between any sectors keeps all bits it had before', async (t) => {
  const sizeBytes = REGIONS_MAX * MIB;
  const slotWith = (regions: readonly number[]): Uint8Array => {
    const bits = new Uint8Array(BITMAP_BYTES);
    for (const region of regions) setBits(bits, MIB, region * MIB, (region + 1) * MIB);
    const slot = new Uint8Array(SLOT_BYTES);
    encodeSlot(slot, sizeBytes, MIB, { isUnknown: false, bits });
    return slot;
  };
  const old = [0, 3839, 3840, 20_000, REGIONS_MAX - 1];
  const before = slotWith(old);
  const after = slotWith([...old, 1, 8000, 30_000]);
  for (let mask = 0; mask < 256; mask++) {
    const torn = before.slice();
    for (let i = 0; i < 8; i++) {
      if ((mask & (1 << i)) !== 0) torn.set(after.subarray(i * 512, (i + 1) * 512), i * 512);
    }
    const stored = decodeFile(Buffer.concat([slotWith([]), torn]));
    const wanted = old.map((r) => ({ beginOffset: r * MIB, endOffset: (r + 1) * MIB }));
    if (stored.isUnknown || !covers(stored.ranges, wanted)) t.fail(`torn by mask ${mask}`);
  }
});

t.test('regions are the smallest that fit a slot', async (t) => {
  t.equal(regionBytesFor(0), MIB);
  t.equal(regionBytesFor(REGIONS_MAX * MIB), MIB);
  t.equal(regionBytesFor(REGIONS_MAX * MIB + 4096), 2 * MIB);
  t.equal(regionBytesFor(1024 * GIB), 64 * MIB);
});

t.test(
  'a volume that grows into larger regions forgets nothing, also when nobody said so',
  async (t) => {
    const disk = await newDisk();
    const next = new Next(10 * GIB);
    const intents = await open(disk, next);
    await write(intents, 7 * MIB);
    await intents.begin();
    await write(intents, 9 * GIB);
    const grown = intents.grow(100 * GIB);
    const during = write(intents, 3 * GIB);
    await Promise.all([grown, during]);
    next.sizeBytes = 100 * GIB;
    await write(intents, 99 * GIB);
    next.sizeBytes = 300 * GIB;
    await write(intents, 299 * GIB);
    t.ok(covers(intents.ranges(), next.arrived));
    await intents.close();
    const again = await open(disk, next);
    t.ok(covers(again.ranges(), next.arrived));
    t.ok((again.ranges()?.length ?? 0) === 5);
    await again.close();
  },
);

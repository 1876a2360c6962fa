// Orders that matter only when something goes wrong in between: writes during a snapshot, a purge
// whose covering data is not durable yet, a disk that fills up in the middle of a write.

import t from 'tap';

import { BLOCK_OP } from '../../src/core/block-device.js';
import { SECTOR_BYTES } from '../../src/core/units.js';
import { DISK_OP, type DiskOp } from '../../src/disk/disk.js';
import { ImageChain } from '../../src/image/chain.js';
import {
  chainDefaults,
  control,
  memoryChain,
  openChain,
  purge,
  sectorBytes,
  sectorsOf,
  snapshot,
  testSlab,
  writeBytes,
} from '../support/image-chains.js';
import { MemoryDisk } from '../support/memory-disk.js';

const S = SECTOR_BYTES;

/** Keeps the next operation of this kind from the disk; resolves with what lets it go on. */
function holdNext(disk: MemoryDisk, op: DiskOp): Promise<() => void> {
  const { queue } = disk;
  const submit = queue.submit.bind(queue);
  return new Promise((resolve) => {
    queue.submit = (request) => {
      if (request.op !== op) submit(request);
      else {
        queue.submit = submit;
        resolve(() => submit(request));
      }
    };
  });
}

t.test('P2: a flush during a trim does not stand for the flush after it', async (t) => {
  const { disk, chain } = await memoryChain(2);
  await writeBytes(disk, chain, 0, sectorsOf(1, 2));
  await snapshot(chain, 'a');
  const clearing = holdNext(disk, DISK_OP.write);
  const zeroed = control(chain, BLOCK_OP.writeZeroes, 0, S);
  const goOn = await clearing;
  await control(chain, BLOCK_OP.flush);
  goOn();
  await zeroed;
  await control(chain, BLOCK_OP.flush);
  disk.restart();
  t.strictSame(await sectorBytes(disk, await openChain(disk, '/volume')), [0, 1]);
});

t.test('P2: the first flush covers what was written before the chain was opened', async (t) => {
  // Found by the simulator: the process was killed, or its engine, and nobody had flushed.
  const { disk, chain } = await memoryChain(2);
  await writeBytes(disk, chain, 0, sectorsOf(1, 2));
  await chain.abandon();
  const again = await openChain(disk, '/volume');
  await control(again, BLOCK_OP.flush);
  disk.restart();
  t.strictSame(await sectorBytes(disk, await openChain(disk, '/volume')), [1, 1]);
});

t.test('P2: what makes a write durable makes its revision durable too', async (t) => {
  const options = { revisionCounter: true };
  const { disk, chain } = await memoryChain(4, options);
  await writeBytes(disk, chain, 0, sectorsOf(1));
  await writeBytes(disk, chain, S, sectorsOf(2), true);
  disk.restart();
  const again = await openChain(disk, '/volume', options);
  t.equal(again.revisionCounter, 2, 'a write with fua');
  await writeBytes(disk, again, 2 * S, sectorsOf(3));
  await writeBytes(disk, again, 3 * S, sectorsOf(4), true);
  await control(again, BLOCK_OP.flush);
  disk.restart();
  t.equal((await openChain(disk, '/volume', options)).revisionCounter, 4, 'a flush after it');
});

t.test('P2: after any failed sync of the head no flush succeeds', async (t) => {
  const tries: Record<string, (chain: ImageChain) => Promise<unknown>> = {
    'a snapshot': (chain: ImageChain) => snapshot(chain, 'b'),
    'a trim over removed data': (chain: ImageChain) => control(chain, BLOCK_OP.unmap, S, S),
    'a purge behind the head': (chain: ImageChain) => chain.prune('a'),
    'a reload': (chain: ImageChain) => chain.reload(),
  };
  for (const [what, run] of Object.entries(tries)) {
    const { disk, chain } = await memoryChain(2);
    await writeBytes(disk, chain, 0, sectorsOf(1, 2));
    await snapshot(chain, 'a');
    await chain.markRemoved('a');
    await writeBytes(disk, chain, 0, sectorsOf(2));
    // The kernel tells of a failure once and drops what it could not write.
    disk.fault = ({ kind }) => (kind === 'sync' ? 'IO_ERROR' : null);
    await t.rejects(async () => void (await run(chain)), { code: 'IO_ERROR' }, what);
    disk.fault = null;
    await t.rejects(control(chain, BLOCK_OP.flush), { code: 'IO_ERROR' }, `a flush after ${what}`);
  }
});

t.test('writes during a snapshot are durable after the next flush', async (t) => {
  const { disk, chain } = await memoryChain(64);
  await writeBytes(disk, chain, 0, sectorsOf(1));
  let isTaken = false;
  const taken = snapshot(chain, 'a').then(() => {
    isTaken = true;
  });
  let written = 1;
  while (!isTaken && written < 64) {
    await writeBytes(disk, chain, written * S, sectorsOf(written + 1));
    written++;
  }
  await taken;
  await control(chain, BLOCK_OP.flush);
  disk.restart();
  const again = await openChain(disk, '/volume');
  const expected = Array.from({ length: 64 }, (_, i) => (i < written ? i + 1 : 0));
  t.ok(written > 3, 'the snapshot does not stop writes for long');
  t.strictSame(await sectorBytes(disk, again), expected);
});

t.test('prune takes nothing away before what hides it is durable', async (t) => {
  const { disk, chain } = await memoryChain(2);
  await writeBytes(disk, chain, 0, sectorsOf(1, 2));
  await snapshot(chain, 'a');
  await writeBytes(disk, chain, 0, sectorsOf(2));
  await purge(chain, 'a');
  disk.restart();
  const again = await openChain(disk, '/volume');
  t.match(
    await sectorBytes(disk, again),
    [2, 1],
    'the un-flushed write or the old data, never zeros',
  );
});

t.test('a trim takes removed snapshots away only behind a durable head', async (t) => {
  const { disk, chain } = await memoryChain(2);
  await writeBytes(disk, chain, 0, sectorsOf(1, 2));
  await snapshot(chain, 'a');
  await writeBytes(disk, chain, 0, sectorsOf(2));
  await snapshot(chain, 'b');
  await chain.markRemoved('b');
  await control(chain, BLOCK_OP.unmap, 0, S);
  disk.restart();
  const again = await openChain(disk, '/volume');
  const bytes = await sectorBytes(disk, again);
  t.ok(bytes[0] === 0 || bytes[0] === 2, 'never the data of a, which b hid');
});

t.test('#21 a write that the disk has room for in part shows exactly that part', async (t) => {
  const disk = new MemoryDisk({ slab: testSlab, capacityBytes: 14 * S });
  await ImageChain.create(disk, '/volume', { sizeBytes: 8 * S, ...chainDefaults });
  const chain = await openChain(disk, '/volume');
  await writeBytes(disk, chain, 0, sectorsOf(1, 8));
  await snapshot(chain, 'a');
  await t.rejects(writeBytes(disk, chain, 0, sectorsOf(2, 8)), { code: 'NO_SPACE' });
  const live = await sectorBytes(disk, chain);
  t.match(live.join(' '), /^2 (2 )*1( 1)*$/, 'new sectors first, then the old ones');
  disk.restart({ page: () => true, directoryChanges: (_path, count) => count });
  const again = await openChain(disk, '/volume');
  t.strictSame(await sectorBytes(disk, again), live, 'and so it stays');
});

t.test(
  'what was waiting when the chain was closed is durable before it counts as clean',
  async (t) => {
    const { disk, chain } = await memoryChain(1);
    await writeBytes(disk, chain, 0, sectorsOf(1));
    const writing = holdNext(disk, DISK_OP.write);
    const first = writeBytes(disk, chain, 0, sectorsOf(2));
    const goOn = await writing;
    const closing = chain.close();
    await Promise.resolve();
    const second = writeBytes(disk, chain, 0, sectorsOf(3)).then(
      () => 3,
      () => 2,
    );
    goOn();
    await Promise.all([first, closing]);
    const last = await second;
    disk.restart();
    t.strictSame(await sectorBytes(disk, await openChain(disk, '/volume')), [last]);
  },
);

t.test('closing stops a purge at its next step and nothing is lost', async (t) => {
  const { disk, chain } = await memoryChain(600);
  for (let i = 0; i < 600; i += 200) await writeBytes(disk, chain, i * S, sectorsOf(2, 200));
  await snapshot(chain, 'a');
  for (let i = 0; i < 600; i += 200) await writeBytes(disk, chain, i * S, sectorsOf(1, 150));
  await snapshot(chain, 'b');
  await chain.markRemoved('a');
  const before = await sectorBytes(disk, chain);
  let closing: Promise<void> | null = null;
  const work = chain.coalesce('a', 'b', {
    onProgress: () => {
      closing ??= chain.close();
    },
  });
  let isOver = false;
  const outcome = t.rejects(work, { code: 'CLOSED' }).then(() => {
    isOver = true;
  });
  // close() waits for the step that runs, so nothing touches the files afterwards.
  while (closing === null) await disk.pause();
  await closing;
  t.equal(isOver, true);
  await outcome;
  const again = await openChain(disk, '/volume');
  t.equal(again.info().dirty, false);
  t.strictSame(await sectorBytes(disk, again), before);
  await purge(again, 'a');
  t.strictSame(await sectorBytes(disk, again), before);
});

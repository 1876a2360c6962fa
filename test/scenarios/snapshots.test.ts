// Snapshots of a served volume, through the command line and an NBD client on real processes: what
// upstream's integration tests ask (group K), and what happens while clients write.

import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { fioRefusal, startFio } from '../support/fio.js';
import { allocatedAtLeast, waitUntil } from '../support/replica-state.js';
import { SECTOR, VolumeBench } from '../support/volume-bench.js';

const MIB = 1024 * 1024;
const SIZE = 4 * MIB;

t.setTimeout(180_000);

async function backingFile(t: Test): Promise<{ content: Buffer; flags: string[] }> {
  const path = join(t.testdir({}), 'base.raw');
  const image = Buffer.alloc(SIZE / 2, 0x77);
  await writeFile(path, image);
  return {
    content: Buffer.concat([image], SIZE),
    flags: ['--backing-file', path],
  };
}

for (const withBacking of [false, true]) {
  const what = withBacking ? 'with a backing file' : 'without a backing file';

  t.test(`#77 #79 #80 a tree of snapshots ${what}`, async (t) => {
    const backing = withBacking ? await backingFile(t) : { content: Buffer.alloc(SIZE), flags: [] };
    const bench = await VolumeBench.start(t, {
      replicas: 2,
      sizeBytes: SIZE,
      content: backing.content,
      replicaFlags: backing.flags,
    });
    const taken: Record<string, Buffer> = {};
    const next = async (name: string, byte: number): Promise<void> => {
      await bench.fill(byte * SECTOR, 300 * SECTOR, byte);
      await bench.fill(SIZE - MIB / 2 + byte * 100, 1000, byte);
      taken[name] = await bench.snapshot(name);
    };
    const revert = async (name: string): Promise<void> => {
      await bench.revert(name, taken[name] as Buffer);
      t.ok(await bench.holds(), `the volume is ${name}`);
    };
    for (const [i, name] of ['s1', 's2', 's3'].entries()) await next(name, i + 1);
    await bench.fill(0, SIZE / 4, 9);
    for (const name of ['s2', 's1', 's3', 's1']) await revert(name);

    await next('b1', 11);
    await next('b2', 12);
    await revert('s2');
    await next('c1', 21);
    const tree = await bench.infos();
    t.same(Object.keys(tree['s1']?.children ?? {}).sort(), ['b1', 's2']);
    await bench.purge('s1', 's3', 'b1');
    t.ok(await bench.holds(), 'a purge changes nothing that can be read');
    const purged = await bench.infos();
    t.match(purged['s1'], { removed: true }, 'a branch point is kept');
    t.same(
      ['s3', 'b1'].filter((name) => name in purged),
      [],
      'a leaf and a middle snapshot are gone',
    );
    for (const name of ['b2', 's2', 'c1']) await revert(name);

    await bench.ok('expand', '--size', String(2 * SIZE));
    await waitUntil('it is expanded', async () => {
      return (await bench.json<{ size: number }>('info')).size === 2 * SIZE;
    });
    bench.detach();
    bench.model = Buffer.concat([bench.model], 2 * SIZE);
    t.ok(await bench.holds(), 'what is new reads zero');
    await bench.fill(2 * SIZE - SECTOR, SECTOR, 5);
    taken['wide'] = await bench.snapshot('wide');
    await revert('b2');
    await bench.fill(2 * SIZE - 2 * SECTOR, SECTOR, 6);
    await revert('wide');
    await bench.purge('b2', 'c1');
    t.ok(await bench.holds(), 'a purge after an expansion');
    t.same(await bench.imagesOf(bench.slot(0)), await bench.imagesOf(bench.slot(1)));
  });
}

t.test('snapshot life on one volume', async (t) => {
  const bench = await VolumeBench.start(t, {
    replicas: 2,
    sizeBytes: SIZE,
    engineFlags: ['--snapshot-max-count', '8'],
    replicaFlags: ['--snapshot-max-count', '8'],
  });

  await t.test('#78 rolling snapshots leave a bounded number of files', async (t) => {
    const kept: string[] = [];
    for (let i = 1; i <= 12; i++) {
      await bench.fill((i % 5) * 16 * SECTOR, 20 * SECTOR, i);
      await bench.snapshot(`roll${i}`);
      kept.push(`roll${i}`);
      if (kept.length > 2) await bench.purge(kept.shift() as string);
    }
    t.ok(await bench.holds());
    t.same(Object.keys(await bench.infos()).sort(), ['roll11', 'roll12', 'volume-head']);
    await bench.purge('roll12', 'roll11');
    t.ok(await bench.holds(), 'the last and the first one removed');
  });

  // Longhorn's own test mounts a file system; a device of ours is the client's, who alone can freeze it.
  await t.test('#81 --freeze-fs takes the snapshot, and the volume stays writable', async (t) => {
    await bench.fill(0, MIB, 0x41);
    await bench.ok('snapshots', 'create', 'frozen', '--freeze-fs');
    const content = Buffer.from(bench.model);
    await bench.fill(0, MIB, 0x42);
    await bench.revert('frozen', content);
    t.ok(await bench.holds());
  });

  await t.test('#82 prune frees what the head hides', async (t) => {
    await bench.fill(0, MIB, 0x51);
    await bench.snapshot('hidden');
    await bench.fill(0, MIB / 2, 0x52);
    const before = Number((await bench.infos())['hidden']?.size);
    await bench.purge('hidden');
    const after = (await bench.infos())['hidden'];
    t.match(after, { removed: true }, 'it stays behind the head');
    t.ok(Number(after?.size) <= before - MIB / 2, `${before} became ${after?.size}`);
    t.ok(await bench.holds());
  });

  await t.test('#83 of two removed ones the older is coalesced, the newer pruned', async (t) => {
    await bench.fill(MIB, MIB, 0x61);
    await bench.snapshot('older');
    await bench.fill(MIB + MIB / 2, MIB, 0x62);
    await bench.snapshot('newer');
    await bench.fill(2 * MIB, MIB, 0x63);
    await bench.purge('older', 'newer');
    const infos = await bench.infos();
    t.notOk('older' in infos);
    t.match(infos['newer'], { removed: true });
    t.ok(await bench.holds());
  });

  await t.test('#84 a trim reclaims snapshots only when they may be marked', async (t) => {
    await bench.fill(0, 2 * MIB, 0x71);
    await bench.snapshot('kept');
    const client = await bench.client();
    await bench.fill(0, 2 * MIB, 0x72);
    const headSize = async (): Promise<number> =>
      Number((await bench.infos())['volume-head']?.size);
    const before = await headSize();
    await client.trim(0, 2 * MIB);
    bench.model.fill(0, 0, 2 * MIB);
    t.ok((await headSize()) <= before, 'the head does not grow');
    t.match((await bench.infos())['kept'], { removed: false });
    t.ok(await bench.holds());

    await bench.fill(0, 2 * MIB, 0x73);
    const keptBefore = Number((await bench.infos())['kept']?.size);
    await bench.ok('unmap-mark-snap-chain-removed', '--enable');
    await client.trim(0, 2 * MIB);
    bench.model.fill(0, 0, 2 * MIB);
    const kept = (await bench.infos())['kept'];
    t.match(kept, { removed: true });
    t.equal(Number(kept?.size), keptBefore - 2 * MIB, 'its space is free at once');
    t.ok((await headSize()) < before, "and the head's");
    t.ok(await bench.holds());
    await bench.ok('unmap-mark-snap-chain-removed', '--disable');
  });

  await t.test('limits on count and size refuse the snapshot and cost nobody', async (t) => {
    await bench.ok('snapshots', 'create', 'room');
    await bench.purge('frozen', 'hidden', 'newer', 'kept');
    let result = await bench.cli('snapshots', 'create');
    while (result.code === 0) result = await bench.cli('snapshots', 'create');
    t.match(result.stderr, /snapshot count usage 8 is equal or larger than snapshotMaxCount 8/);
    t.match(result.stderr, /TOO_MANY_SNAPSHOTS/);
    await bench.withApi(async ({ engine }) => {
      await engine.volumeSnapshotMaxCountSet({ count: 20 });
      await engine.volumeSnapshotMaxSizeSet({ size: MIB });
    });
    await bench.fill(0, 2 * MIB, 0x33);
    const tooLarge = await bench.cli('snapshots', 'create');
    t.match(tooLarge.stderr, /snapshot free space \d+ is not enough for head file \d+/);
    t.match(tooLarge.stderr, /SNAPSHOT_SPACE_EXCEEDED/);
    t.same(await bench.modes(), ['RW', 'RW']);
    await bench.withApi(({ engine }) => engine.volumeSnapshotMaxSizeSet({ size: 0 }));
    await bench.ok('snapshots', 'create', 'at-last');
    t.ok(await bench.holds());
  });
});

t.test(
  'while a client writes and verifies, snapshots come and go and not a byte is wrong',
  { skip: fioRefusal() },
  async (t) => {
    const bench = await VolumeBench.start(t, { replicas: 2, sizeBytes: 32 * MIB });
    const { stack } = bench;
    const flags = ['--rw=randwrite', '--bs=4k', '--size=32m', '--io_size=24m', '--rate_iops=2500'];
    const verify = ['--verify=crc32c', '--verify_fatal=1', '--randseed=3', '--verify_backlog=512'];
    const fio = startFio(stack.nbdUri, stack.directory, [...flags, ...verify]);
    let isRunning = true;
    void fio.finished.then(() => (isRunning = false));
    await allocatedAtLeast(bench.slot(0), MIB);
    let rounds = 0;
    while (isRunning && rounds < 9) {
      await bench.ok('snapshots', 'create', `busy${rounds}`);
      if (rounds >= 2) await bench.purge(`busy${rounds - 2}`);
      if (rounds % 3 === 2) await bench.purge(`busy${rounds - 1}`, `busy${rounds}`);
      rounds++;
    }
    const { code, output } = await fio.finished;
    t.equal(code, 0, code === 0 ? 'the client read what it wrote' : output);
    t.ok(rounds > 2, `${rounds} rounds`);
    t.same(await bench.modes(), ['RW', 'RW']);
  },
);

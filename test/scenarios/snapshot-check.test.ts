// A disk that changes data behind everybody's back: the check of a snapshot finds the replica, takes
// it out and never a good one, and adding it again repairs it. And clones, which start from a snapshot.

import { open, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { judgeChecksums } from '../../src/client/snapshot-check.js';
import type { HashStatus } from '../../src/client/snapshot-hash.js';
import { formatChangeTime } from '../../src/sync/checksum-record.js';
import type { ReplicaSlot } from '../support/process-stack.js';
import { VolumeBench } from '../support/volume-bench.js';

const MIB = 1024 * 1024;
const SIZE = 4 * MIB;

t.setTimeout(180_000);

/** Turns one bit of a snapshot's image. */
async function flipBit(slot: ReplicaSlot, snapshot: string): Promise<string> {
  const path = join(slot.directory, `volume-snap-${snapshot}.img`);
  const file = await open(path, 'r+');
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, 12_345);
  await file.write(Buffer.from([(byte[0] ?? 0) ^ 4]), 0, 1, 12_345);
  await file.sync();
  await file.close();
  return path;
}

/**
 * Bit rot leaves the change time as it was. No program can, so the record is moved to the new one: to
 * who reads both it looks the same.
 */
async function rot(slot: ReplicaSlot, snapshot: string): Promise<void> {
  const path = await flipBit(slot, snapshot);
  const record = JSON.parse(await readFile(`${path}.checksum`, 'utf8')) as object;
  const { ctimeNs } = await stat(path, { bigint: true });
  const moved = { ...record, change_time: formatChangeTime(ctimeNs) };
  await writeFile(`${path}.checksum`, `${JSON.stringify(moved)}\n`);
}

interface Checked {
  readonly verdict: string;
  readonly silentlyCorrupted: boolean;
}

t.test('#138 a flipped bit is found, the replica leaves, and a rebuild repairs it', async (t) => {
  const bench = await VolumeBench.start(t, { replicas: 3, sizeBytes: SIZE });
  await bench.fill(0, 2 * MIB, 7);
  await bench.snapshot('s1');
  await bench.fill(MIB, 2 * MIB, 8);
  const check = async (code: number): Promise<{ verdicts: string[]; stderr: string }> => {
    const result = await bench.cli('snapshots', 'check', 's1');
    t.equal(result.code, code, result.stderr);
    const verdicts = JSON.parse(result.stdout) as Record<string, Checked>;
    const inOrder = bench.stack.replicas.flatMap(({ address }) => verdicts[address] ?? []);
    return { verdicts: inOrder.map(({ verdict }) => verdict), stderr: result.stderr };
  };
  const repair = async (slot: ReplicaSlot): Promise<void> => {
    await bench.ok('rm', slot.address);
    await bench.add(slot);
    t.ok(await bench.holds());
    t.same(await bench.imagesOf(slot), await bench.imagesOf(bench.slot(0)), 'it is as the first');
  };
  t.same((await check(0)).verdicts, ['good', 'good', 'good']);

  await rot(bench.slot(1), 's1');
  await bench.ok('snapshots', 'hash', 's1');
  t.same(await bench.modes(), ['RW', 'RW', 'RW'], 'hashing alone trusts what did not change');
  const rotten = await check(1);
  t.same(rotten.verdicts, ['good', 'corrupted', 'good']);
  t.match(rotten.stderr, `corrupted on ${bench.slot(1).address}, now ERR`);
  t.match(rotten.stderr, /CHECKSUM_MISMATCH.*\n?.*rm-replica/);
  t.same(await bench.modes(), ['RW', 'ERR', 'RW']);
  await repair(bench.slot(1));
  t.same((await check(0)).verdicts, ['good', 'good', 'good']);

  await flipBit(bench.slot(2), 's1');
  t.same((await check(1)).verdicts, ['good', 'good', 'corrupted'], 'outvoted, without a record');
  await repair(bench.slot(2));

  await bench.ok('update', '--mode', 'ERR', bench.slot(2).address);
  await flipBit(bench.slot(1), 's1');
  const undecided = await check(1);
  t.same(undecided.verdicts, ['undecided', 'undecided']);
  t.match(undecided.stderr, 'none was taken out');
  t.same((await bench.modes()).sort(), ['ERR', 'RW', 'RW']);

  t.match((await bench.cli('snapshots', 'check', 'nosuch')).stderr, 'there is no snapshot nosuch');
  await bench.ok('rm', bench.slot(2).address);
  await bench.ok('snapshots', 'rm', 's1');
  t.match((await bench.cli('snapshots', 'check', 's1')).stderr, 'marked as removed');
});

t.test('the votes decide who is corrupted, and nobody when they cannot', (t) => {
  const status = (text: string): HashStatus => ({
    state: text === '?' ? 'error' : 'complete',
    checksum: text === '?' ? '' : text.replace('!', ''),
    error: '',
    silentlyCorrupted: text.endsWith('!'),
  });
  // A letter is a checksum; ! says that it is only what the content once was, ? that there is none.
  const cases: [string, string][] = [
    ['a', 'good'],
    ['a a', 'good good'],
    ['a b', 'undecided undecided'],
    ['a! a', 'corrupted good'],
    ['a! b', 'undecided undecided'],
    ['a! b b', 'corrupted good good'],
    ['a! a!', 'undecided undecided'],
    ['a!', 'undecided'],
    ['a! a b', 'corrupted good corrupted'],
    ['a a b', 'good good corrupted'],
    ['a a b b', 'undecided undecided undecided undecided'],
    ['a b c', 'undecided undecided undecided'],
    ['? a', 'unknown good'],
    ['? a b', 'unknown undecided undecided'],
    ['?', 'unknown'],
  ];
  for (const [votes, verdicts] of cases) {
    const statuses = Object.fromEntries(votes.split(' ').map((text, i) => [`r${i}`, status(text)]));
    const judged = Object.values(judgeChecksums(statuses)).map(({ verdict }) => verdict);
    t.equal(judged.join(' '), verdicts, votes);
  }
  t.end();
});

t.test('#143 a clone holds what the snapshot held, in every replica, and lives on', async (t) => {
  const source = await VolumeBench.start(t, { replicas: 2, sizeBytes: SIZE });
  await source.fill(0, MIB, 1);
  await source.snapshot('base');
  await source.fill(MIB / 2, MIB, 2);
  const held = await source.snapshot('s2');
  await source.fill(0, SIZE, 3);
  const target = await VolumeBench.start(t, {
    replicas: 2,
    sizeBytes: SIZE,
    volumeName: 'copy',
    content: held,
  });
  const from = ['--from-controller-address', source.engineAddress];
  const wrong = await target.cli('snapshots', 'clone', '--snapshot-name', 'nosuch', ...from);
  t.equal(wrong.code, 1);
  t.match(wrong.stderr, /nosuch/);
  await target.ok('sync-agent-server-reset');
  await target.ok('snapshots', 'clone', '--snapshot-name', 's2', ...from);
  const statuses = await target.json<Record<string, object>>('snapshots', 'clone-status');
  t.equal(Object.keys(statuses).length, 2);
  for (const status of Object.values(statuses)) {
    t.match(status, { isCloning: false, error: '', progress: 100, state: 'complete' });
    t.match(status, { snapshotName: 's2' });
  }
  t.ok(await target.holds());
  await target.fill(100, 5000, 4);
  t.ok(await target.holds());
  t.ok(await source.holds(), 'the source is none the wiser');
  t.same(await target.imagesOf(target.slot(0)), await target.imagesOf(target.slot(1)));
});

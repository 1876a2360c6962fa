// The replica's own promises: its states, what a ping says, that data in flight is finished before
// the chain closes, and that nothing is written where nothing was created. Real files.

import { randomUUID } from 'node:crypto';
import { mkdir, mkdtemp, readdir, readFile, rm, unlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { BLOCK_OP, BlockRequest, submitAndWait } from '../../src/core/block-device.js';
import { realClock } from '../../src/core/clock-real.js';
import { type ErrorCode, StorageError } from '../../src/core/errors.js';
import { silentLogger } from '../../src/core/log.js';
import { KIB, MIB } from '../../src/core/units.js';
import { createNativeDisk, createSlab, type NativeDisk } from '../../src/disk/native-disk.js';
import { ABANDON_AFTER_MS, EnginePresence } from '../../src/replica/engine-presence.js';
import { expandError } from '../../src/replica/error-map.js';
import { Replica } from '../../src/replica/replica.js';
import type { ReplicaOptions } from '../../src/replica/replica-shapes.js';
import { ManualClock } from '../support/manual-clock.js';

const SIZE_BYTES = 4 * MIB;
const OPEN = { isUpgrade: false, expectedBytes: 0, engineGeneration: 0 };

const disk: NativeDisk = createNativeDisk({ slab: createSlab(MIB), log: silentLogger });
t.teardown(() => disk.shutdown());

async function newDirectory(t: Test): Promise<string> {
  const parent = await mkdtemp(join(tmpdir(), 'replica-'));
  t.teardown(() => rm(parent, { recursive: true }));
  return join(parent, 'r1');
}

function replicaAt(
  t: Test,
  directory: string,
  options: Partial<ReplicaOptions> = {},
): Promise<Replica> {
  const replica = Replica.at({
    hostBootId: 'boot-1',
    newId: randomUUID,
    disk,
    directory,
    clock: realClock,
    log: silentLogger,
    revisionCounter: false,
    encrypted: false,
    unmapMarkDiskChainRemoved: false,
    snapshotMaxCount: 250,
    snapshotMaxBytes: 0,
    ...options,
  });
  t.teardown(async () => (await replica).close().catch(() => undefined));
  return replica;
}

async function openReplica(t: Test, options: Partial<ReplicaOptions> = {}): Promise<Replica> {
  const replica = await replicaAt(t, await newDirectory(t), options);
  await replica.create(SIZE_BYTES);
  await replica.open(OPEN);
  return replica;
}

async function stateOf(replica: Replica): Promise<string> {
  return (await replica.status()).state;
}

async function write(replica: Replica, offsetBytes: number, byte: number): Promise<void> {
  const bufferOffset = disk.slab.allocate(4 * KIB);
  disk.slab.bytes.fill(byte, bufferOffset, bufferOffset + 4 * KIB);
  try {
    const op = BLOCK_OP.write;
    await submitAndWait(replica, { op, offsetBytes, lengthBytes: 4 * KIB, bufferOffset });
  } finally {
    disk.slab.release(bufferOffset);
  }
}

async function readByte(replica: Replica, offsetBytes: number): Promise<number | undefined> {
  const bufferOffset = disk.slab.allocate(4 * KIB);
  try {
    const op = BLOCK_OP.read;
    await submitAndWait(replica, { op, offsetBytes, lengthBytes: 4 * KIB, bufferOffset });
    return disk.slab.bytes[bufferOffset];
  } finally {
    disk.slab.release(bufferOffset);
  }
}

function snapshot(replica: Replica, name: string): Promise<void> {
  const created = '2026-01-01T00:00:00Z';
  return replica.snapshot({ name, userCreated: true, created, labels: {} });
}

async function codeOf(promise: Promise<unknown>): Promise<ErrorCode | null> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof StorageError) return error.code;
    throw error;
  }
  return null;
}

t.test('the states of a life: initial, closed, open, dirty, rebuilding, closed', async (t) => {
  const directory = await newDirectory(t);
  const replica = await replicaAt(t, directory);
  t.equal(await stateOf(replica), 'initial');
  t.equal(replica.ping()?.message, 'ping failure: replica state initial');
  await replica.create(SIZE_BYTES);
  t.equal(await stateOf(replica), 'closed');
  t.match(replica.ping(), { code: 'NOT_OPEN', message: 'ping failure: replica state closed' });
  t.equal(replica.sizeBytes, 0);

  await replica.open(OPEN);
  t.equal(await stateOf(replica), 'open');
  t.equal(replica.ping(), null);
  t.equal(replica.sizeBytes, SIZE_BYTES);
  await write(replica, 0, 1);
  t.equal(await stateOf(replica), 'dirty');
  await replica.setRebuilding(true);
  t.equal(await stateOf(replica), 'rebuilding');
  t.equal(replica.ping(), null);
  await replica.close();
  await replica.close();
  t.equal(await stateOf(replica), 'closed');

  const again = await replicaAt(t, directory);
  t.equal((await again.status()).info.rebuilding, true, 'rebuilding outlives the process');
  await again.open(OPEN);
  t.equal(await stateOf(again), 'rebuilding');
  await again.setRebuilding(false);
  t.equal(await stateOf(again), 'open');
});

t.test('a replica that was not closed is dirty when it opens again', async (t) => {
  const replica = await openReplica(t);
  await write(replica, 0, 7);
  const successor = await replicaAt(t, replica.directory);
  await successor.open(OPEN);
  t.equal(await stateOf(successor), 'dirty');
  t.equal(await readByte(successor, 0), 7);
});

t.test('opening or closing what was never created writes nothing', async (t) => {
  const directory = await newDirectory(t);
  const replica = await replicaAt(t, directory);
  t.equal(await codeOf(replica.open(OPEN)), 'NOT_FOUND');
  await replica.close();
  await replica.delete();
  await t.rejects(readdir(directory), { code: 'ENOENT' });
  for (const sizeBytes of [0, -4096, 512]) {
    t.equal(await codeOf(replica.create(sizeBytes)), 'INVALID_ARGUMENT', `size ${sizeBytes}`);
  }
  t.equal(await codeOf(replica.create(1000)), 'NOT_ALIGNED');
  await t.rejects(readdir(directory), { code: 'ENOENT' });
});

t.test('unreadable metadata is the state error, and stays as it is', async (t) => {
  const directory = await newDirectory(t);
  await mkdir(directory);
  await writeFile(join(directory, 'volume.meta'), '{"Size":4096,');
  const replica = await replicaAt(t, directory);
  t.match(await replica.status(), { state: 'error', info: { sizeBytes: 0, head: '' }, open: null });
  t.equal(replica.ping()?.message, 'ping failure: replica state error');
  t.equal(await codeOf(replica.open(OPEN)), 'BAD_METADATA');
  await replica.create(SIZE_BYTES);
  t.equal(await readFile(join(directory, 'volume.meta'), 'utf8'), '{"Size":4096,');
});

t.test('while closed data is refused and operations do nothing, as in Longhorn', async (t) => {
  const replica = await openReplica(t);
  await replica.close();
  await t.rejects(write(replica, 0, 1), { code: 'NOT_OPEN', message: 'replica no longer exist' });
  await snapshot(replica, 's');
  await replica.expand(2 * SIZE_BYTES);
  await replica.reload();
  t.same(await replica.prepareRemove('s'), []);
  t.equal(await codeOf(replica.setRebuilding(true)), 'INVALID_STATE');
  t.equal(await codeOf(replica.coalesce('a', 'b')), 'NOT_OPEN');
  t.equal((await replica.status()).info.sizeBytes, SIZE_BYTES);
});

t.test('writes in flight when the replica closes are finished and kept', async (t) => {
  const replica = await openReplica(t);
  const outcomes: (ErrorCode | null)[] = [];
  const count = 64;
  for (let i = 0; i < count; i++) {
    const request = new BlockRequest();
    request.op = BLOCK_OP.write;
    request.offsetBytes = i * 4 * KIB;
    request.lengthBytes = 4 * KIB;
    request.bufferOffset = disk.slab.allocate(4 * KIB);
    disk.slab.bytes.fill(i + 1, request.bufferOffset, request.bufferOffset + 4 * KIB);
    request.owner = {
      blockRequestDone: (done, error) => {
        disk.slab.release(done.bufferOffset);
        outcomes.push(error?.code ?? null);
      },
    };
    replica.submit(request);
  }
  const closed = replica.close();
  await closed;
  t.same(outcomes, new Array(count).fill(null), 'each was answered before close() returned');
  await replica.open(OPEN);
  for (let i = 0; i < count; i++) {
    if ((await readByte(replica, i * 4 * KIB)) !== i + 1) t.fail(`write ${i} is lost`);
  }
  t.equal(await stateOf(replica), 'open', 'it was closed cleanly');
});

t.test('operations sent together run in the order they were sent', async (t) => {
  const replica = await openReplica(t);
  await Promise.all([
    write(replica, 0, 1),
    snapshot(replica, 'a'),
    snapshot(replica, 'b'),
    replica.markRemoved('a'),
    replica.expand(2 * SIZE_BYTES),
    snapshot(replica, 'c'),
    replica.close(),
    replica.open(OPEN),
  ]);
  const { open, info } = await replica.status();
  t.equal(info.sizeBytes, 2 * SIZE_BYTES);
  t.same(
    open?.liveChain.slice(1),
    ['c', `expand-${2 * SIZE_BYTES}`, 'b'].map((name) => `volume-snap-${name}.img`),
  );
});

t.test('settings made while closed hold for the next open', async (t) => {
  const replica = await openReplica(t);
  await replica.close();
  await replica.setSnapshotMaxCount(3);
  await replica.open(OPEN);
  await snapshot(replica, 'a');
  t.equal(replica.snapshotMaxCount, 3);
  t.equal((await replica.status()).open?.usage.snapshotMaxCount, 3);
  await replica.setSnapshotMaxCount(1);
  t.equal(await codeOf(snapshot(replica, 'b')), 'TOO_MANY_SNAPSHOTS');
});

t.test(
  'a disk that cannot be looked at makes the replica faulty until it is opened again',
  async (t) => {
    const replica = await openReplica(t);
    await snapshot(replica, 'a');
    const path = join(replica.directory, 'volume-snap-a.img');
    const content = await readFile(path);
    await unlink(path);
    t.equal(await codeOf(replica.status()), 'NOT_FOUND');
    t.match(replica.ping()?.message, /^ping failure due to .*volume-snap-a\.img/);
    await writeFile(path, content);
    t.equal(await stateOf(replica), 'error', 'it may have answered wrongly meanwhile');
    await replica.close();
    await replica.open(OPEN);
    t.equal(replica.ping(), null);
  },
);

t.test('revert and removal take disk names only; unknown ones are refused', async (t) => {
  const replica = await openReplica(t);
  await snapshot(replica, 'a');
  await snapshot(replica, 'b');
  const created = '2026-01-01T00:00:09Z';
  t.equal(await codeOf(replica.revert('a', created)), 'NOT_FOUND');
  t.equal(await codeOf(replica.removeDisk('a', true)), 'NOT_FOUND');
  t.equal(await codeOf(replica.removeDisk('volume.meta', true)), 'NOT_FOUND');
  t.equal(await codeOf(replica.replaceDisk('volume-snap-b.img', 'a')), 'NOT_FOUND');
  t.equal(await codeOf(replica.replaceDisk('volume-snap-x.img', 'volume-snap-a.img')), 'NOT_FOUND');
  t.equal((await replica.status()).open?.disks.length, 3);
});

t.test('an engine older than one seen cannot open the replica', async (t) => {
  const replica = await openReplica(t);
  const openBy = async (engineGeneration: number): Promise<ErrorCode | null> => {
    await replica.close();
    return codeOf(replica.open({ ...OPEN, engineGeneration }));
  };
  t.equal(await openBy(5), null);
  t.equal(await openBy(4), 'FENCED');
  t.equal(await openBy(5), null);
  t.equal(await openBy(0), null, 'a Longhorn engine does not say');
});

t.test('an encrypted volume grows by its header when the engine expects so', async (t) => {
  const replica = await openReplica(t, { encrypted: true });
  await replica.close();
  const expectedBytes = SIZE_BYTES + 16 * MIB;
  await replica.open({ ...OPEN, expectedBytes, isUpgrade: true });
  t.equal(replica.sizeBytes, SIZE_BYTES, 'not during an upgrade');
  await replica.close();
  await replica.open({ ...OPEN, expectedBytes: expectedBytes + 4096 });
  t.equal(replica.sizeBytes, SIZE_BYTES, 'not by another size');
  await replica.close();
  await replica.open({ ...OPEN, expectedBytes });
  t.equal(replica.sizeBytes, expectedBytes);
});

t.test('deleting leaves an empty directory that can be created again', async (t) => {
  const replica = await openReplica(t);
  await snapshot(replica, 'a');
  await replica.delete();
  t.same(await readdir(replica.directory), []);
  t.equal(await stateOf(replica), 'initial');
  await replica.create(SIZE_BYTES);
  await replica.open(OPEN);
  t.equal(await readByte(replica, 0), 0);
});

t.test('closing ends a merge that runs, and the merge can be done later', async (t) => {
  const replica = await openReplica(t);
  await write(replica, 0, 1);
  await snapshot(replica, 'a');
  for (let i = 0; i < 64; i++) await write(replica, i * 64 * KIB, 2);
  await snapshot(replica, 'b');
  await replica.markRemoved('a');
  const names = ['volume-snap-a.img', 'volume-snap-b.img'] as const;
  let isMerging = true;
  let closed: Promise<boolean> | null = null;
  const onProgress = (): void => {
    closed ??= replica.close().then(() => isMerging);
  };
  const code = await codeOf(replica.coalesce(...names, { onProgress }));
  isMerging = false;
  t.ok(code === 'CANCELLED' || code === null, String(code));
  t.equal(await closed, false, 'nothing changes the directory of a closed replica');
  await replica.open(OPEN);
  await replica.coalesce(...names);
  await replica.replaceDisk('volume-snap-b.img', 'volume-snap-a.img');
  t.equal(await readByte(replica, 0), 2);
  t.same((await replica.status()).open?.liveChain.slice(1), ['volume-snap-b.img']);
});

t.test("a failed expansion is told in Longhorn's JSON, with whether it was undone", (t) => {
  const told = (rollback?: string): unknown => {
    const details = rollback === undefined ? {} : { rollback };
    const error = expandError(new StorageError('NO_SPACE', 'full', details));
    t.match(error, { status: 13, code: 'NO_SPACE' });
    return JSON.parse(error.message);
  };
  const rest = { message: 'full', rollbackMessage: '' };
  t.same(told(), { code: 'FunctionFailedWithoutRollback', ...rest });
  t.same(told('succeeded'), { code: 'FunctionFailedRollbackSucceeded', ...rest });
  t.same(told('failed'), { code: 'FunctionFailedRollbackFailed', ...rest });
  t.end();
});

t.test('a replica whose engine vanished is let go after a second, and stays dirty', async (t) => {
  const directory = await newDirectory(t);
  const replica = await replicaAt(t, directory);
  await replica.create(SIZE_BYTES);
  await replica.open(OPEN);
  const clock = new ManualClock();
  let letGo: Promise<void> | null = null;
  const openNow = (): number => replica.openSerial || replica.nextSerial;
  const presence = new EnginePresence(clock, openNow, (open) => {
    letGo = replica.abandon(open);
  });
  presence.connected();
  presence.connected();
  presence.disconnected();
  clock.advance(10_000);
  t.equal(letGo, null, 'one connection is left');
  presence.disconnected();
  clock.advance(ABANDON_AFTER_MS - 1);
  presence.connected();
  clock.advance(10_000);
  t.equal(letGo, null, 'a new connection came in time');
  presence.disconnected();
  clock.advance(ABANDON_AFTER_MS);
  await letGo;
  t.equal((await replica.status()).state, 'closed');
  t.match(JSON.parse(await readFile(join(directory, 'volume.meta'), 'utf8')), { Dirty: true });
  await replica.open(OPEN);
  t.equal((await replica.status()).state, 'dirty');
  await replica.close();
});

t.test('the end of an engine does not close what the next one opened meanwhile', async (t) => {
  const replica = await openReplica(t);
  const clock = new ManualClock();
  let letGo: Promise<void> | null = null;
  const openNow = (): number => replica.openSerial || replica.nextSerial;
  const presence = new EnginePresence(clock, openNow, (open) => {
    letGo = replica.abandon(open);
  });
  presence.connected();
  presence.disconnected();
  await replica.close();
  await replica.open(OPEN);
  clock.advance(ABANDON_AFTER_MS);
  await letGo;
  t.equal(await stateOf(replica), 'open');
});

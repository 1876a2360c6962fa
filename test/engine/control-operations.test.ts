// What becomes of replicas when control operations fail on some, on all, or beside each other: start,
// snapshot, expand, rebuild. Numbers refer to upstream scenarios (control_test, test_controller).

import { randomUUID } from 'node:crypto';
import t from 'tap';
import { StorageError } from '../../src/core/errors.js';
import { silentLogger } from '../../src/core/log.js';
import { Slab, SLAB_BYTES } from '../../src/core/slab.js';
import { KIB, MIB } from '../../src/core/units.js';
import { Engine } from '../../src/engine/engine.js';
import { defaultSettings } from '../../src/engine/settings.js';
import {
  VOLUME_BYTES,
  modes,
  replicaOf,
  settle,
  startEngine,
  write,
} from '../support/engine-bed.js';
import { ManualClock } from '../support/manual-clock.js';
import { memoryConnector, MemoryReplica } from '../support/memory-replica.js';

t.test(
  'the write barrier of a snapshot waits for writes in flight and holds later ones',
  async (t) => {
    const bed = await startEngine(2);
    for (const replica of bed.replicas) replica.device.isHolding = true;
    const before = write(bed, 0, 4 * KIB, 1);
    const snapshot = bed.engine.snapshot('s1', { app: 'db' });
    // Two flushes go ahead of the barrier, next to the write.
    for (let flush = 1; flush <= 2; flush++) {
      await settle();
      for (const replica of bed.replicas) replica.device.release(1);
    }
    await settle();
    t.equal(bed.replicas[0]?.snapshots.length, 0, 'a write is in flight');
    const after = write(bed, 4 * KIB, 4 * KIB, 2);
    t.equal(bed.replicas[0]?.device.held.length, 1, 'the later write waits at the gate');
    for (const replica of bed.replicas) replica.device.isHolding = false;
    for (const replica of bed.replicas) replica.device.release();
    await Promise.all([before, snapshot, after]);
    const [record] = bed.replicas[0]?.snapshots ?? [];
    t.match(record, { name: 's1', userCreated: true, labels: { app: 'db' } });
    t.match(record?.created, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
    t.same(bed.replicas[1]?.snapshots, bed.replicas[0]?.snapshots, 'alike on every replica');
  },
);

t.test('a replica that fails a snapshot leaves; the snapshot stands on the rest', async (t) => {
  const bed = await startEngine(2);
  const error = new StorageError('NO_SPACE', 'no space left on device');
  replicaOf(bed, 0).controlFailure = { call: 'snapshot', error };
  t.equal(await bed.engine.snapshot('s1', {}), 's1');
  t.same(modes(bed), ['ERR', 'RW']);
});

t.test('a snapshot name that exists fails the request and nobody leaves', async (t) => {
  const bed = await startEngine(2);
  const error = new StorageError('ALREADY_EXISTS', 'snapshot s1 is already existing');
  for (const replica of bed.replicas) replica.controlFailure = { call: 'snapshot', error };
  await t.rejects(bed.engine.snapshot('s1', {}), { code: 'ALREADY_EXISTS' });
  t.same(modes(bed), ['RW', 'RW']);
});

t.test('a snapshot name that is none is refused before any replica is asked', async (t) => {
  const bed = await startEngine(2);
  for (const name of ['a/b', '..', 'x'.repeat(226)]) {
    await t.rejects(bed.engine.snapshot(name, {}), { code: 'INVALID_NAME' });
  }
  t.same(modes(bed), ['RW', 'RW']);
  t.notOk(replicaOf(bed, 0).calls.includes('snapshot'));
});

t.test('an expansion that every replica refuses costs none of them', async (t) => {
  const failed = 'FunctionFailedRollbackFailed: no space left on device';
  for (const [text, mode] of [
    ['no space left on device', 'RW'],
    [failed, 'ERR'],
  ] as const) {
    const bed = await startEngine(2);
    for (const replica of bed.replicas) {
      replica.controlFailure = { call: 'expand', error: new StorageError('NO_SPACE', text) };
    }
    bed.engine.expand(2 * VOLUME_BYTES);
    await bed.engine.shutdownFrontend();
    t.same(modes(bed), [mode, mode]);
    t.equal(bed.engine.volume.sizeBytes, VOLUME_BYTES);
  }
});

t.test('an expansion that only the replica being rebuilt did costs that one alone', async (t) => {
  const bed = await startEngine(1, 1);
  await bed.engine.addReplica('tcp://r1:9502', true, 'WO');
  const error = new StorageError('NO_SPACE', 'full', { rollback: 'succeeded' });
  replicaOf(bed, 0).controlFailure = { call: 'expand', error };
  bed.engine.expand(2 * VOLUME_BYTES);
  await bed.engine.shutdownFrontend();
  t.same(modes(bed), ['RW', 'ERR']);
  t.equal(bed.engine.volume.sizeBytes, VOLUME_BYTES);
  t.match(bed.engine.expansion.lastError, 'failed since all replica expansion failed');
});

t.test('an expansion waits for the control operation before it', async (t) => {
  const bed = await startEngine(1);
  const replica = replicaOf(bed, 0);
  let finish: () => void = () => undefined;
  replica.control.snapshot = () => new Promise((resolve) => (finish = resolve));
  const taken = bed.engine.snapshot('s1', {});
  await settle();
  bed.engine.expand(2 * VOLUME_BYTES);
  t.throws(() => bed.engine.expand(2 * VOLUME_BYTES), { code: 'BUSY' });
  await settle();
  t.notOk(replica.calls.includes('expand'), 'replicas see changes in one order');
  replica.control.snapshot = () => Promise.resolve();
  finish();
  await taken;
  await bed.engine.shutdownFrontend();
  t.ok(replica.calls.includes('expand'), 'and what comes later waits for it');
  t.equal(bed.engine.volume.sizeBytes, 2 * VOLUME_BYTES);
});

t.test('what every replica refuses or takes back costs none of them', async (t) => {
  const codes = ['TOO_MANY_SNAPSHOTS', 'NO_SPACE', 'INVALID_NAME', 'BUSY'] as const;
  for (const code of codes) {
    const bed = await startEngine(2);
    for (const replica of bed.replicas) {
      replica.controlFailure = { call: 'snapshot', error: new StorageError(code, 'refused') };
    }
    await t.rejects(bed.engine.snapshot('s1', {}), { code });
    t.same(modes(bed), ['RW', 'RW'], code);
    t.equal(await bed.engine.snapshot('s1', {}), 's1', 'and the next snapshot succeeds');
  }
});

t.test('a snapshot that only the replica being rebuilt took costs that one alone', async (t) => {
  const bed = await startEngine(1, 1);
  await bed.engine.addReplica('tcp://r1:9502', true, 'WO');
  const error = new StorageError('NO_SPACE', 'no space left on device');
  replicaOf(bed, 0).controlFailure = { call: 'snapshot', error };
  await t.rejects(bed.engine.snapshot('s1', {}), { code: 'NO_SPACE' });
  t.same(modes(bed), ['RW', 'ERR'], 'it has a layer that the others lack');
});

t.test('a replica whose state after a failed snapshot is unknown leaves', async (t) => {
  const bed = await startEngine(2);
  const [refusing, broken] = [replicaOf(bed, 0), replicaOf(bed, 1)];
  const error = new StorageError('NO_SPACE', 'no space left on device');
  refusing.controlFailure = { call: 'snapshot', error };
  const ioError = new StorageError('IO_ERROR', 'input/output error');
  broken.controlFailure = { call: 'snapshot', error: ioError };
  await t.rejects(bed.engine.snapshot('s1', {}), { code: 'NO_SPACE' });
  t.same(modes(bed), ['RW', 'ERR']);
});

t.test('a rebuilt replica whose chain differs becomes ERR, never RW', async (t) => {
  const bed = await startEngine(1, 1);
  await bed.engine.addReplica('tcp://r1:9502', true, 'WO');
  const disk = {
    name: 'x',
    parent: '',
    children: {},
    removed: false,
    userCreated: true,
    created: '',
    size: '0',
    labels: {},
  };
  replicaOf(bed, 0).info.disks = { 'volume-snap-a.img': disk };
  await t.rejects(bed.engine.verifyRebuild('tcp://r1:9502'), { code: 'CHAIN_BROKEN' });
  t.same(modes(bed), ['RW', 'ERR']);
});

t.test('a replica that is lost while it is verified becomes ERR, and nothing else', async (t) => {
  const bed = await startEngine(1, 1);
  await bed.engine.addReplica('tcp://r1:9502', true, 'WO');
  const rebuilt = replicaOf(bed, 1);
  rebuilt.control.get = async () => {
    rebuilt.lose(new StorageError('CONNECTION_LOST', 'EOF'));
    return rebuilt.info;
  };
  await t.rejects(bed.engine.verifyRebuild('tcp://r1:9502'), { code: 'INVALID_STATE' });
  t.same(modes(bed), ['RW', 'ERR']);
});

t.test('#53 ERR is for good, and only removing and adding a replica leaves it', async (t) => {
  const bed = await startEngine(2);
  await bed.engine.setReplicaMode('tcp://r1:9502', 'ERR');
  await bed.engine.setReplicaMode('tcp://r1:9502', 'RW');
  t.same(modes(bed), ['RW', 'ERR']);
  await t.rejects(bed.engine.setReplicaMode('tcp://nobody:1', 'ERR'), { code: 'NOT_FOUND' });
  await bed.engine.removeReplica('tcp://r1:9502');
  await bed.engine.removeReplica('tcp://r1:9502');
  t.same(modes(bed), ['RW']);
});

t.test('a start that finds no usable replica closes what it opened', async (t) => {
  const slab = new Slab(new ArrayBuffer(SLAB_BYTES + MIB));
  const replica = new MemoryReplica('tcp://r0:9502', slab, VOLUME_BYTES);
  const other = new MemoryReplica('tcp://r1:9502', slab, VOLUME_BYTES);
  for (const one of [replica, other])
    one.info = { ...one.info, state: 'rebuilding', rebuilding: true };
  const engine = new Engine({
    newId: randomUUID,
    random: () => 0.5,
    settings: { ...defaultSettings('vol'), revisionCounterDisabled: true },
    connector: memoryConnector([replica, other]),
    slab,
    clock: new ManualClock(),
    log: silentLogger,
  });
  const addresses = [replica.address, other.address];
  const request = { addresses, sizeBytes: VOLUME_BYTES, currentSizeBytes: VOLUME_BYTES };
  await t.rejects(engine.start(request), {
    code: 'NO_BACKEND',
    message: /no available backend due to replica error from the addresses/,
  });
  t.ok(replica.isClosed && other.isClosed);
  await t.rejects(engine.start({ ...request, addresses: ['tcp://gone:1'] }), {
    message: /service unavailable/,
  });
  await t.rejects(engine.start({ ...request, addresses: [replica.address, replica.address] }), {
    code: 'INVALID_ARGUMENT',
  });
});

t.test('a single rebuilding replica is started and its flag cleared', async (t) => {
  const slab = new Slab(new ArrayBuffer(SLAB_BYTES + MIB));
  const replica = new MemoryReplica('tcp://r0:9502', slab, VOLUME_BYTES);
  replica.info = { ...replica.info, state: 'rebuilding', rebuilding: true };
  const engine = new Engine({
    newId: randomUUID,
    random: () => 0.5,
    settings: { ...defaultSettings('vol'), revisionCounterDisabled: true },
    connector: memoryConnector([replica]),
    slab,
    clock: new ManualClock(),
    log: silentLogger,
  });
  const addresses = [replica.address];
  await engine.start({ addresses, sizeBytes: VOLUME_BYTES, currentSizeBytes: VOLUME_BYTES });
  t.equal(engine.replicas[0]?.mode, 'RW');
  t.same(replica.calls.includes('setRebuilding'), true);
});

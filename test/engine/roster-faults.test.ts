// The roster under unlucky timing: what is recorded while something else goes wrong must never make a
// later start trust a stale or half-copied replica, or make one come back without what it missed.

import { randomUUID } from 'node:crypto';
import t from 'tap';
import { StorageError } from '../../src/core/errors.js';
import { silentLogger } from '../../src/core/log.js';
import type { Roster } from '../../src/core/roster.js';
import { Slab, SLAB_BYTES } from '../../src/core/slab.js';
import { KIB, MIB } from '../../src/core/units.js';
import { CHECKPOINT_PERIOD_MS } from '../../src/engine/checkpoints.js';
import { Engine } from '../../src/engine/engine.js';
import type { ReplicaConnector } from '../../src/engine/ports.js';
import { defaultSettings } from '../../src/engine/settings.js';
import {
  type Bed,
  modes,
  replicaOf,
  settle,
  startEngine,
  VOLUME_BYTES,
  write,
} from '../support/engine-bed.js';
import { ManualClock } from '../support/manual-clock.js';
import { memoryConnector, MemoryReplica } from '../support/memory-replica.js';

const ID = (index: number): string => `id-of-tcp://r${index}:9502`;
const ADDRESS = (index: number): string => `tcp://r${index}:9502`;
const FENCED = new StorageError('FENCED', 'engine generation 1 is superseded by 2');
const SNAPSHOT = {
  ...{ name: 'volume-snap-s.img', parent: '', children: {}, removed: false, userCreated: true },
  ...{ created: '', size: '0', labels: {} },
};
const LOST = new StorageError('CONNECTION_LOST', 'cut');

/** Three replicas that know each other as members, with an engine that is not started. */
function unstarted(wrap: (connector: ReplicaConnector) => ReplicaConnector = (c) => c): {
  replicas: MemoryReplica[];
  engine: Engine;
  start: () => Promise<void>;
} {
  const slab = new Slab(new ArrayBuffer(SLAB_BYTES + MIB));
  const replicas = [0, 1, 2].map((i) => new MemoryReplica(ADDRESS(i), slab, VOLUME_BYTES));
  const members = [ID(0), ID(1), ID(2)];
  const roster: Roster = { generation: 5, number: 1, members, absent: [], isClean: false };
  for (const replica of replicas) replica.roster = roster;
  const engine = new Engine({
    settings: { ...defaultSettings('vol'), revisionCounterDisabled: true },
    connector: wrap(memoryConnector(replicas)),
    slab,
    clock: new ManualClock(),
    log: silentLogger,
    newId: randomUUID,
    random: () => 0.5,
  });
  const addresses = [0, 1, 2].map(ADDRESS);
  const request = { addresses, sizeBytes: VOLUME_BYTES, currentSizeBytes: VOLUME_BYTES };
  return { replicas, engine, start: () => engine.start(request) };
}

function failNext(bed: Bed, index: number, call: string, error: StorageError): void {
  replicaOf(bed, index).controlFailure = { call, error };
}

t.test('P6: a fenced engine tells none of its other replicas that some are stale', async (t) => {
  const bed = await startEngine(3);
  const before = bed.replicas.map(({ roster }) => roster);
  replicaOf(bed, 0).lose(FENCED);
  await settle();
  t.same(modes(bed), ['ERR', 'ERR', 'ERR']);
  t.same(
    bed.replicas.map(({ roster }) => roster),
    before,
    'the newer engine finds all three to be members',
  );
});

t.test('P6: a write that waits for a roster when its engine is fenced fails', async (t) => {
  const bed = await startEngine(3);
  replicaOf(bed, 0).holding.add('setRoster');
  replicaOf(bed, 2).lose(LOST);
  const written = write(bed, 0, 4 * KIB, 1);
  await settle();
  replicaOf(bed, 1).lose(FENCED);
  await t.rejects(written, { code: 'FENCED' });
});

t.test('P6: a start is refused when one replica serves a newer engine', async (t) => {
  const { engine, replicas, start } = unstarted((connector) => ({
    probe: (address) => connector.probe(address),
    connect: (address, options) =>
      address === ADDRESS(2) ? Promise.reject(FENCED) : connector.connect(address, options),
  }));
  await t.rejects(start(), { code: 'FENCED' });
  t.same(engine.replicas, []);
  t.ok(replicas[0]?.isClosed && replicas[1]?.isClosed);
});

t.test('intents are not forgotten before it is stored that a fork failed', async (t) => {
  const bed = await startEngine(3);
  for (const index of [0, 1])
    failNext(bed, index, 'snapshot', new StorageError('NO_SPACE', 'full'));
  replicaOf(bed, 2).lose(LOST);
  await settle();
  await write(bed, 0, 4 * KIB, 1);
  bed.clock.advance(CHECKPOINT_PERIOD_MS);
  await settle();
  t.same(modes(bed), ['RW', 'RW', 'ERR']);
  t.ok(replicaOf(bed, 0).calls.includes('endCheckpoint'));
  // An entry without a fork would be completed from the intents at the next start.
  t.same(replicaOf(bed, 0).roster?.absent, []);
  t.same(replicaOf(bed, 1).roster?.absent, []);
});

t.test(
  'a replica that joins knows that it is no member before anything of it changes',
  async (t) => {
    const bed = await startEngine(2);
    replicaOf(bed, 1).lose(LOST);
    await settle();
    t.same(replicaOf(bed, 1).roster?.members, [ID(0), ID(1)], 'it was not there to be told');
    await bed.engine.removeReplica(ADDRESS(1));
    const returned = new MemoryReplica(ADDRESS(1), bed.slab, VOLUME_BYTES);
    returned.roster = replicaOf(bed, 1).roster;
    bed.replicas[1] = returned;
    await bed.engine.addReplica(ADDRESS(1), true, 'WO');
    t.same(returned.roster?.members, [ID(0)]);
    t.ok(returned.calls.indexOf('setRoster') < returned.calls.indexOf('snapshot'));
  },
);

t.test('a replica that cannot store that it is no member does not join', async (t) => {
  const bed = await startEngine(2, 1);
  failNext(bed, 2, 'setRoster', new StorageError('IO_ERROR', 'eio'));
  await t.rejects(bed.engine.addReplica(ADDRESS(2), true, 'WO'), { code: 'IO_ERROR' });
  t.same(modes(bed), ['RW', 'RW']);
  t.ok(replicaOf(bed, 2).isClosed);
});

t.test('two copies with one id are not used together: one of them may be stale', async (t) => {
  const { replicas, start } = unstarted();
  Object.assign(replicas[2] as MemoryReplica, { replicaId: ID(1) });
  await t.rejects(start(), { code: 'INVALID_STATE', message: /r1:9502.*r2:9502/ });
  const bed = await startEngine(2, 1);
  Object.assign(replicaOf(bed, 2), { replicaId: ID(1) });
  await t.rejects(bed.engine.addReplica(ADDRESS(2), true, 'WO'), { code: 'INVALID_STATE' });
  t.same(modes(bed), ['RW', 'RW']);
});

t.test('after an unclean stop nothing in doubt counts as flushed', async (t) => {
  const { engine, replicas, start } = unstarted();
  // Also what convergence leaves out as zeroes: a trim may not be durable either.
  for (const replica of replicas) replica.intents = null;
  await start();
  t.same(engine.volume.missing().unflushed, [{ beginOffset: 0, endOffset: VOLUME_BYTES }]);
});

t.test(
  'a member that takes too long to store a roster leaves like one whose data hangs',
  async (t) => {
    const bed = await startEngine(3);
    replicaOf(bed, 1).holding.add('setRoster');
    replicaOf(bed, 2).lose(LOST);
    const written = write(bed, 0, 4 * KIB, 1);
    await settle();
    bed.clock.advance(bed.engine.settings.replicaTimeoutMs + 1);
    await written;
    t.same(modes(bed), ['RW', 'ERR', 'ERR']);
    t.same(replicaOf(bed, 0).roster?.members, [ID(0)]);
  },
);

t.test('on full disks who is in step is stored without what the absent one missed', async (t) => {
  const bed = await startEngine(3);
  const full = new StorageError('NO_SPACE', 'no space left on device');
  for (const index of [0, 1]) failNext(bed, index, 'setRoster', full);
  replicaOf(bed, 2).lose(LOST);
  await write(bed, 0, 4 * KIB, 1);
  t.same(modes(bed), ['RW', 'RW', 'ERR']);
  t.match(replicaOf(bed, 0).roster, { members: [ID(0), ID(1)], absent: [] });
});

t.test('a WO replica that alone cut a snapshot leaves', async (t) => {
  const bed = await startEngine(2, 1);
  await bed.engine.addReplica(ADDRESS(2), true, 'WO');
  const existing = new StorageError('ALREADY_EXISTS', 'snapshot s1 is already existing');
  // It does not have its older layers yet, the others have one of this name among them.
  for (const index of [0, 1]) failNext(bed, index, 'snapshot', existing);
  await t.rejects(bed.engine.snapshot('s1', {}), { code: 'ALREADY_EXISTS' });
  t.same(modes(bed), ['RW', 'RW', 'ERR']);
});

t.test('a roster that some members cannot keep does not outrank revision counters', async (t) => {
  const { engine, replicas, start } = unstarted();
  Object.assign(engine.settings, { revisionCounterDisabled: false });
  for (const [index, replica] of replicas.entries()) {
    const revisionCounter = index === 0 ? 7 : 9;
    replica.info = { ...replica.info, revisionCounterDisabled: false, revisionCounter };
  }
  // The first one left while only this one was there, which could not be told.
  Object.assign(replicas[1] as MemoryReplica, { keepsRoster: false });
  await start();
  t.same(
    engine.replicas.map(({ mode }) => mode),
    ['ERR', 'RW', 'RW'],
  );
});

t.test('a volume that lost its last member tells nobody that it has none', async (t) => {
  const bed = await startEngine(1, 1);
  replicaOf(bed, 0).lose(LOST);
  await settle();
  await bed.engine.addReplica(ADDRESS(1), false, 'WO').catch(() => undefined);
  await settle();
  const { roster } = replicaOf(bed, 1);
  t.not(roster?.members.length, 0, 'or the last member would be taken for stale for ever');
});

t.test('what replicas did that were lost meanwhile was not done', async (t) => {
  const bed = await startEngine(2);
  for (const replica of bed.replicas) replica.holding.add('revert');
  replicaOf(bed, 0).info.disks['volume-snap-s.img'] = SNAPSHOT;
  const reverted = bed.engine.revert('s').then(
    () => 'done',
    (error: StorageError) => error.code,
  );
  await settle();
  for (const replica of bed.replicas) replica.lose(LOST);
  for (const replica of bed.replicas) replica.releaseCalls();
  t.equal(await reverted, 'NO_BACKEND', 'though each of them answered that it was');
});

t.test('a revert that nobody was left to do was not done', async (t) => {
  const bed = await startEngine(2);
  replicaOf(bed, 0).info.disks['volume-snap-s.img'] = SNAPSHOT;
  for (const { device } of bed.replicas) device.isHolding = true;
  const pending = write(bed, 0, 4 * KIB, 1).catch(() => undefined);
  const reverted = bed.engine.revert('s').then(
    () => 'done',
    (error: StorageError) => error.code,
  );
  await settle();
  for (const replica of bed.replicas) replica.lose(LOST);
  await pending;
  t.equal(await reverted, 'NO_BACKEND');
});

// Who is in step: what is stored where before a write is acknowledged (P3), whom a start trusts, and
// what is remembered of a replica that left (docs/adr/0007-roster.md).

import { randomUUID } from 'node:crypto';
import fc from 'fast-check';
import t from 'tap';
import { BLOCK_OP, submitAndWait } from '../../src/core/block-device.js';
import { StorageError } from '../../src/core/errors.js';
import { silentLogger } from '../../src/core/log.js';
import { compareRosters, type Roster } from '../../src/core/roster.js';
import { Slab, SLAB_BYTES } from '../../src/core/slab.js';
import { KIB, MIB } from '../../src/core/units.js';
import { CHECKPOINT_PERIOD_MS } from '../../src/engine/checkpoints.js';
import { Engine } from '../../src/engine/engine.js';
import { nextGeneration } from '../../src/engine/generation.js';
import { defaultSettings } from '../../src/engine/settings.js';
import { WrittenRanges } from '../../src/engine/written-ranges.js';
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
const BROKEN = new StorageError('PEER_ERROR', 'broken');

/** Every write on the replica fails from now on. */
function breakWrites(bed: Bed, index: number): void {
  replicaOf(bed, index).device.failWith = ({ op }) => (op === BLOCK_OP.write ? BROKEN : null);
}

/** Tells whether the promise is settled by now. */
function watch(promise: Promise<unknown>): { isDone: boolean; error: unknown } {
  const state = { isDone: false, error: null as unknown };
  promise.then(
    () => {
      state.isDone = true;
    },
    (error: unknown) => {
      state.isDone = true;
      state.error = error;
    },
  );
  return state;
}

async function flush(bed: Bed): Promise<void> {
  await submitAndWait(bed.engine.volume, { op: BLOCK_OP.flush });
}

t.test('a started volume has stored its members on each of them', async (t) => {
  const bed = await startEngine(3);
  for (const { roster } of bed.replicas) {
    t.match(roster, { number: 1, members: [ID(0), ID(1), ID(2)], absent: [], isClean: false });
  }
});

t.test('P3: a write that a replica missed is acknowledged only when the others know', async (t) => {
  const bed = await startEngine(3);
  breakWrites(bed, 2);
  replicaOf(bed, 1).holding.add('setRoster');
  const missed = watch(write(bed, 0, 4 * KIB, 1));
  await settle();
  t.same(modes(bed), ['RW', 'RW', 'ERR']);
  t.same(replicaOf(bed, 0).roster?.members, [ID(0), ID(1)]);
  t.notOk(missed.isDone, 'one of the survivors does not know yet');
  const later = watch(write(bed, 64 * KIB, 4 * KIB, 2));
  const flushed = watch(flush(bed));
  await settle();
  t.notOk(later.isDone, 'the failed replica missed this one as well');
  t.notOk(flushed.isDone, 'nor may a flush be acknowledged');
  replicaOf(bed, 1).releaseCalls();
  await settle();
  t.ok(missed.isDone && later.isDone && flushed.isDone);
  t.same([missed.error, later.error, flushed.error], [null, null, null]);
  t.same(replicaOf(bed, 1).roster?.members, [ID(0), ID(1)]);
});

t.test('P3: it does not matter what made the replica leave', async (t) => {
  const bed = await startEngine(2);
  replicaOf(bed, 0).holding.add('setRoster');
  replicaOf(bed, 1).lose(new StorageError('CONNECTION_LOST', 'cut'));
  const written = watch(write(bed, 0, 4 * KIB, 1));
  await settle();
  t.notOk(written.isDone);
  replicaOf(bed, 0).releaseCalls();
  await settle();
  t.ok(written.isDone);
});

t.test('a member that cannot store the roster leaves, and the rest store that', async (t) => {
  const bed = await startEngine(3);
  breakWrites(bed, 2);
  replicaOf(bed, 1).controlFailure = {
    call: 'setRoster',
    error: new StorageError('IO_ERROR', 'eio'),
  };
  await write(bed, 0, 4 * KIB, 1);
  t.same(modes(bed), ['RW', 'ERR', 'ERR']);
  t.same(replicaOf(bed, 0).roster?.members, [ID(0)]);
});

t.test('a member lost while it stores the roster is not waited for', async (t) => {
  const bed = await startEngine(3);
  breakWrites(bed, 2);
  replicaOf(bed, 1).holding.add('setRoster');
  const written = watch(write(bed, 0, 4 * KIB, 1));
  await settle();
  t.notOk(written.isDone);
  replicaOf(bed, 1).lose(new StorageError('TIMEOUT', 'silent'));
  await settle();
  t.ok(written.isDone);
  t.same(replicaOf(bed, 0).roster?.members, [ID(0)]);
});

t.test('without anybody left who could store it the write fails', async (t) => {
  const bed = await startEngine(2);
  breakWrites(bed, 1);
  replicaOf(bed, 0).controlFailure = {
    call: 'setRoster',
    error: new StorageError('IO_ERROR', 'eio'),
  };
  await t.rejects(write(bed, 0, 4 * KIB, 1), { code: 'NO_BACKEND' });
  t.same(modes(bed), ['ERR', 'ERR']);
});

t.test('rosters of one engine only grow', async (t) => {
  const bed = await startEngine(3);
  const seen: Roster[] = [replicaOf(bed, 0).roster as Roster];
  breakWrites(bed, 2);
  await write(bed, 0, 4 * KIB, 1);
  seen.push(replicaOf(bed, 0).roster as Roster);
  breakWrites(bed, 1);
  await write(bed, 0, 4 * KIB, 1);
  seen.push(replicaOf(bed, 0).roster as Roster);
  const [first, second, third] = seen as [Roster, Roster, Roster];
  t.ok(compareRosters(first, second) < 0 && compareRosters(second, third) < 0);
});

t.test(
  'the entry of an absent replica has what was in flight and what was not flushed',
  async (t) => {
    const bed = await startEngine(2);
    await write(bed, 0, 4 * KIB, 1);
    await flush(bed);
    await write(bed, 128 * KIB, 4 * KIB, 2);
    replicaOf(bed, 0).holding.add('snapshot');
    for (const { device } of bed.replicas) device.isHolding = true;
    const pending = write(bed, 256 * KIB, 8 * KIB, 3);
    replicaOf(bed, 1).lose(new StorageError('CONNECTION_LOST', 'cut'));
    replicaOf(bed, 0).device.isHolding = false;
    replicaOf(bed, 0).device.release();
    await pending;
    const [entry] = replicaOf(bed, 0).roster?.absent ?? [];
    t.match(entry, { replicaId: ID(1), forkDisk: '', hostBootId: 'boot', isExact: true });
    t.equal(entry?.memberCountBefore, 2);
    t.same(entry?.inFlight, [{ beginOffset: 256 * KIB, endOffset: 264 * KIB }]);
    t.same(entry?.unflushed, [
      { beginOffset: 128 * KIB, endOffset: 132 * KIB },
      { beginOffset: 256 * KIB, endOffset: 264 * KIB },
    ]);
    await settle();
    t.equal(replicaOf(bed, 0).calls.at(-1), 'snapshot', 'a fork is being cut');
    replicaOf(bed, 0).releaseCalls();
    await settle();
    const forked = replicaOf(bed, 0).roster?.absent[0];
    t.match(replicaOf(bed, 0).snapshots[0], { userCreated: false });
    t.equal(forked?.forkDisk, `volume-snap-${replicaOf(bed, 0).snapshots[0]?.name}.img`);
  },
);

t.test('what is written between the leaving and the fork counts as in flight', async (t) => {
  const bed = await startEngine(3);
  // A client's snapshot keeps the fork waiting: control operations take turns.
  replicaOf(bed, 0).holding.add('snapshot');
  const snapshot = bed.engine.snapshot('mine', {});
  await settle();
  replicaOf(bed, 2).lose(new StorageError('CONNECTION_LOST', 'cut'));
  const written = write(bed, 512 * KIB, 4 * KIB, 5);
  replicaOf(bed, 0).releaseCalls();
  await Promise.all([snapshot, written]);
  await settle();
  const [entry] = replicaOf(bed, 0).roster?.absent ?? [];
  t.match(entry?.forkDisk, /replica-left/);
  t.same(entry?.inFlight, [{ beginOffset: 512 * KIB, endOffset: 516 * KIB }]);
});

t.test(
  'a replica that lies, or was set to ERR by hand, is to be compared as a whole',
  async (t) => {
    const bed = await startEngine(3);
    await bed.engine.setReplicaMode('tcp://r2:9502', 'ERR');
    await settle();
    t.same(replicaOf(bed, 0).roster?.members, [ID(0), ID(1)]);
    t.same(replicaOf(bed, 0).roster?.absent, []);
    t.same(replicaOf(bed, 0).snapshots, [], 'and no fork is cut for it');
  },
);

t.test('a flush forgets what it covered, and nothing that came meanwhile', async (t) => {
  const bed = await startEngine(1);
  const { volume } = bed.engine;
  await write(bed, 0, 4 * KIB, 1);
  replicaOf(bed, 0).device.isHolding = true;
  const inFlight = write(bed, 64 * KIB, 4 * KIB, 1);
  const flushing = flush(bed);
  const after = write(bed, 128 * KIB, 4 * KIB, 1);
  replicaOf(bed, 0).device.isHolding = false;
  replicaOf(bed, 0).device.release();
  await Promise.all([inFlight, flushing, after]);
  t.same(volume.missing().unflushed, [
    { beginOffset: 64 * KIB, endOffset: 68 * KIB },
    { beginOffset: 128 * KIB, endOffset: 132 * KIB },
  ]);
});

t.test('written ranges are exactly what was noted since the covering flush', (t) => {
  const sectors = 70_000;
  const step = fc.oneof(
    fc.record({ at: fc.nat(sectors - 1), count: fc.integer({ min: 1, max: 300 }) }),
    fc.constantFrom('rotate' as const, 'forget' as const),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      const written = new WrittenRanges();
      let [previous, current] = [new Set<number>(), new Set<number>()];
      for (const taken of steps) {
        if (taken === 'rotate') {
          written.rotate();
          for (const sector of current) previous.add(sector);
          current = new Set();
        } else if (taken === 'forget') {
          written.forgetPrevious();
          previous = new Set();
        } else {
          written.note(taken.at * 4096 + 1, taken.count * 4096 - 1);
          for (let i = 0; i < taken.count; i++) current.add(taken.at + i);
        }
      }
      const noted = new Set<number>();
      let lastEnd = -1;
      for (const { beginOffset, endOffset } of written.ranges()) {
        if (beginOffset <= lastEnd) return false;
        lastEnd = endOffset;
        for (let at = beginOffset; at < endOffset; at += 4096) noted.add(at / 4096);
      }
      const expected = new Set([...previous, ...current]);
      return noted.size === expected.size && [...noted].every((sector) => expected.has(sector));
    }),
    { numRuns: 300 },
  );
  t.end();
});

t.test('a new generation is larger than every one seen, and grows with time', (t) => {
  const now = 1_700_000_000_000;
  t.ok(nextGeneration([], now, 0) < nextGeneration([], now + 1, 0));
  t.ok(
    nextGeneration([nextGeneration([], now + 5000, 0.9)], now, 0) >
      nextGeneration([], now + 5000, 0.9),
  );
  t.ok(Number.isSafeInteger(nextGeneration([], now * 2, 0.999)));
  t.end();
});

t.test('P6: an engine that is fenced serves nobody and stores nothing any more', async (t) => {
  const bed = await startEngine(2);
  const before = replicaOf(bed, 1).roster;
  const fenced = new StorageError('FENCED', 'engine generation 1 is superseded by 2');
  replicaOf(bed, 0).device.failWith = () => fenced;
  await t.rejects(write(bed, 0, 4 * KIB, 1));
  t.same(modes(bed), ['ERR', 'ERR']);
  t.ok(bed.engine.isFenced);
  await t.rejects(write(bed, 0, 4 * KIB, 1), { code: 'FENCED' });
  t.same(replicaOf(bed, 1).roster, before, 'the other replica is not told that the first is stale');
});

t.test('an orderly shutdown flushes and says that all are alike', async (t) => {
  const bed = await startEngine(2);
  await write(bed, 0, 4 * KIB, 1);
  await bed.engine.shutdown();
  for (const { roster, device } of bed.replicas) {
    t.equal(device.countOf(BLOCK_OP.flush), 1);
    t.match(roster, { members: [ID(0), ID(1)], isClean: true });
  }
});

t.test(
  'a checkpoint flushes between its begin and its end, and waits for what was in flight',
  async (t) => {
    const bed = await startEngine(2);
    const clock = bed.clock;
    for (const { device } of bed.replicas) device.isHolding = true;
    const pending = write(bed, 0, 4 * KIB, 1);
    clock.advance(CHECKPOINT_PERIOD_MS);
    await settle();
    const { calls, device } = replicaOf(bed, 0);
    t.equal(calls.at(-1), 'beginCheckpoint');
    t.equal(device.countOf(BLOCK_OP.flush), 0, 'the write is still in flight');
    for (const replica of bed.replicas) replica.device.release();
    await pending;
    await settle();
    t.equal(device.countOf(BLOCK_OP.flush), 1);
    t.equal(calls.at(-1), 'beginCheckpoint', 'the flush is not done');
    for (const replica of bed.replicas) replica.device.isHolding = false;
    for (const replica of bed.replicas) replica.device.release();
    await settle();
    t.equal(calls.at(-1), 'endCheckpoint');
    clock.advance(CHECKPOINT_PERIOD_MS);
    await settle();
    t.equal(
      calls.filter((call) => call === 'beginCheckpoint').length,
      1,
      'nothing was written since',
    );
  },
);

t.test('a checkpoint during which a replica left does not forget the intents', async (t) => {
  const bed = await startEngine(3);
  await write(bed, 0, 4 * KIB, 1);
  replicaOf(bed, 0).device.isHolding = true;
  bed.clock.advance(CHECKPOINT_PERIOD_MS);
  await settle();
  replicaOf(bed, 2).lose(new StorageError('CONNECTION_LOST', 'cut'));
  replicaOf(bed, 0).device.isHolding = false;
  replicaOf(bed, 0).device.release();
  await settle();
  t.notOk(replicaOf(bed, 0).calls.includes('endCheckpoint'));
});

// --- start ------------------------------------------------------------------------------------

function roster(fields: Partial<Roster>): Roster {
  return { generation: 5, number: 1, members: [], absent: [], isClean: true, ...fields };
}

async function startWith(replicas: readonly MemoryReplica[], slab: Slab): Promise<Engine> {
  const engine = new Engine({
    settings: { ...defaultSettings('vol'), revisionCounterDisabled: true, salvageRequested: true },
    connector: memoryConnector(replicas),
    slab,
    clock: new ManualClock(),
    log: silentLogger,
    newId: randomUUID,
    random: () => 0,
  });
  await engine.start({
    addresses: ['tcp://r0:9502', 'tcp://r1:9502', 'tcp://r2:9502'],
    sizeBytes: VOLUME_BYTES,
    currentSizeBytes: VOLUME_BYTES,
  });
  return engine;
}

function threeReplicas(): { slab: Slab; replicas: [MemoryReplica, MemoryReplica, MemoryReplica] } {
  const slab = new Slab(new ArrayBuffer(SLAB_BYTES + MIB));
  const make = (index: number): MemoryReplica =>
    new MemoryReplica(`tcp://r${index}:9502`, slab, VOLUME_BYTES);
  return { slab, replicas: [make(0), make(1), make(2)] };
}

const modesOf = (engine: Engine): string[] => engine.replicas.map(({ mode }) => mode);

t.test(
  'a start trusts the members of the newest roster and nobody else, salvage included',
  async (t) => {
    const { slab, replicas } = threeReplicas();
    const [first, second, third] = replicas;
    first.roster = roster({ members: [ID(0), ID(1), ID(2)] });
    second.roster = roster({ number: 2, members: [ID(1)] });
    third.roster = null;
    // What Longhorn's salvage would choose.
    first.info = { ...first.info, lastModifyTime: '9000000000000', headFileSize: 1_000_000 };
    const engine = await startWith(replicas, slab);
    t.same(modesOf(engine), ['ERR', 'RW', 'ERR']);
    t.match(engine.replicas[0]?.failure?.message, /stale/);
    await settle();
    t.same(
      first.roster?.members,
      [ID(1)],
      'a stale one learns it: started alone it is refused later',
    );
    t.ok(first.isClosed && third.isClosed, 'and is closed again');
    t.match(second.roster, { members: [ID(1)], isClean: false });
  },
);

t.test('when only stale replicas answer the start is refused and says why', async (t) => {
  const { slab, replicas } = threeReplicas();
  replicas[0].roster = roster({ members: ['somebody-else'] });
  replicas[1].roster = roster({ members: [ID(1)], generation: 4 });
  await t.rejects(startWith(replicas, slab), { code: 'NO_BACKEND' });
  t.ok(
    replicas.every((replica) => replica.isClosed),
    'nothing stays open',
  );
});

t.test('P3: a member that answers but cannot be opened still tells who is stale', async (t) => {
  // Found by the simulator: the only replica in step had a full disk when the volume was started.
  const { slab, replicas } = threeReplicas();
  const [first, second] = replicas;
  first.roster = roster({ members: [ID(0), ID(1)] });
  second.roster = roster({ number: 2, members: [ID(1)] });
  second.openFailure = new StorageError('NO_SPACE', 'no space left on device');
  await t.rejects(startWith(replicas.slice(0, 2), slab), { code: 'NO_BACKEND' });
  t.ok(first.isClosed);
});

t.test('a member that does not answer is absent and gets a fork at once', async (t) => {
  const { slab, replicas } = threeReplicas();
  const members = [ID(0), ID(1), ID(2)];
  for (const replica of replicas) replica.roster = roster({ members, isClean: false });
  replicas[0].intents = [{ beginOffset: 0, endOffset: 64 * KIB }];
  replicas[1].intents = [{ beginOffset: 128 * KIB, endOffset: 256 * KIB }];
  await startWith(replicas.slice(0, 2), slab);
  await settle();
  const [entry] = replicas[0].roster?.absent ?? [];
  t.match(entry, { replicaId: ID(2), isExact: false, memberCountBefore: 3 });
  t.match(entry?.forkDisk, /^volume-snap-replica-left-/);
  t.same(entry?.inFlight, [
    { beginOffset: 0, endOffset: 64 * KIB },
    { beginOffset: 128 * KIB, endOffset: 256 * KIB },
  ]);
});

t.test('after an orderly end a missing member lacks nothing but what comes', async (t) => {
  const { slab, replicas } = threeReplicas();
  const members = [ID(0), ID(1), ID(2)];
  for (const replica of replicas) replica.roster = roster({ members });
  replicas[0].intents = null;
  await startWith(replicas.slice(0, 2), slab);
  await settle();
  const [entry] = replicas[0].roster?.absent ?? [];
  t.match(entry, { replicaId: ID(2), isExact: true, inFlight: [], unflushed: [] });
});

t.test('what another engine wrote to some of the replicas only is not guessed at', async (t) => {
  const { slab, replicas } = threeReplicas();
  replicas[0].roster = roster({ members: [ID(0), ID(1), ID(2)] });
  replicas[1].info = { ...replicas[1].info, engineGeneration: 5, rosterVoid: true };
  await t.rejects(startWith(replicas, slab), { code: 'INVALID_STATE', message: /r1:9502/ });
});

t.test(
  'who lost power with the engine is not the one that the others are made equal to',
  async (t) => {
    const { slab, replicas } = threeReplicas();
    const members = [ID(0), ID(1), ID(2)];
    for (const replica of replicas) replica.roster = roster({ members, isClean: false });
    replicas[0].info = { ...replicas[0].info, lacksUnflushed: true };
    for (const replica of replicas) replica.intents = [{ beginOffset: 0, endOffset: 4 * KIB }];
    replicas[1].device.content.fill(7, 0, 4 * KIB);
    replicas[2].device.content.fill(7, 0, 4 * KIB);
    const engine = await startWith(replicas, slab);
    await engine.convergence.whenDone();
    t.equal(replicas[0].device.content[0], 7, 'what was acknowledged, though not flushed, is kept');
  },
);

t.test('P2: no flush is acknowledged before what a power loss took is made good', async (t) => {
  const { slab, replicas } = threeReplicas();
  const members = [ID(0), ID(1), ID(2)];
  for (const replica of replicas) replica.roster = roster({ members, isClean: false });
  replicas[2].info = { ...replicas[2].info, lacksUnflushed: true };
  for (const replica of replicas) replica.intents = [{ beginOffset: 0, endOffset: 4 * KIB }];
  for (const { device } of replicas.slice(0, 2)) device.content.fill(7, 0, 4 * KIB);
  const engine = await startWith(replicas, slab);
  await submitAndWait(engine.volume, { op: BLOCK_OP.flush });
  t.notOk(engine.convergence.isRunning);
  t.equal(replicas[2].device.content[0], 7, 'durable with the rest');
});

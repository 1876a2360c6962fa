// Whom a starting engine trusts: every kind of replica that can stand before it, alone and beside
// others, with and without salvage. The real engine over replicas in memory, which say of themselves
// what the table says. Rules: docs/adr/0007-roster.md, and Longhorn's where no roster is kept.

import { randomUUID } from 'node:crypto';
import t from 'tap';
import { StorageError } from '../../src/core/errors.js';
import { silentLogger } from '../../src/core/log.js';
import { Slab, SLAB_BYTES } from '../../src/core/slab.js';
import { MIB } from '../../src/core/units.js';
import { Engine } from '../../src/engine/engine.js';
import { defaultSettings } from '../../src/engine/settings.js';
import { settle } from '../support/engine-bed.js';
import { ManualClock } from '../support/manual-clock.js';
import { memoryConnector, MemoryReplica } from '../support/memory-replica.js';

/** What a replica is; nothing said: closed in an orderly way, of the volume's size, no roster. */
interface Spec {
  readonly gone?: true;
  readonly sizeBytes?: number;
  readonly dirty?: true;
  readonly rebuilding?: true;
  /** Number of its revision counter; none: it keeps none. */
  readonly counter?: number;
  readonly modifiedS?: number;
  readonly headBytes?: number;
  /** Numbers of the replicas that its roster names; 9 stands for one that is not in the table. */
  readonly members?: readonly number[];
  readonly rosterNumber?: number;
  readonly generation?: number;
  readonly clean?: true;
  /** An engine that keeps no rosters used it since. */
  readonly voided?: true;
}

interface Row {
  readonly claim: string;
  readonly replicas: readonly Spec[];
  readonly salvage?: true;
  readonly counters?: true;
  readonly sizeBytes?: number;
  /** Modes, or the code of the refusal. */
  readonly outcome: string;
  /** Of the replicas that are ERR in turn, or of the refusal. */
  readonly reasons?: readonly RegExp[];
  readonly volumeBytes?: number;
}

const STALE = /stale/;
const COUNTER = /revision counter/;

const TABLE: readonly Row[] = [
  { claim: 'new ones', replicas: [{}, {}, {}], outcome: 'RW RW RW' },
  { claim: 'dirty ones, after a crash', replicas: [{ dirty: true }, {}], outcome: 'RW RW' },
  {
    claim: 'one is missing',
    replicas: [{ gone: true }, {}],
    outcome: 'ERR RW',
    reasons: [/cannot reach/],
  },
  {
    claim: 'all are missing',
    replicas: [{ gone: true }, { gone: true }],
    outcome: 'NO_BACKEND',
    reasons: [/service unavailable.*r0.*r1/],
  },
  {
    claim: 'one is rebuilding',
    replicas: [{}, { rebuilding: true }],
    outcome: 'RW ERR',
    reasons: [/invalid state rebuilding/],
  },
  { claim: 'the only one is rebuilding', replicas: [{ rebuilding: true }], outcome: 'RW' },
  {
    claim: 'all are rebuilding',
    replicas: [{ rebuilding: true }, { rebuilding: true }],
    outcome: 'NO_BACKEND',
    reasons: [/replica error.*r0.*r1/],
  },
  {
    claim: 'a member whose rebuilding flag a crash left',
    replicas: [{ members: [0, 1] }, { members: [0, 1], rebuilding: true }],
    outcome: 'RW RW',
  },
  {
    claim: 'one that was being rebuilt and is no member yet',
    replicas: [{ members: [0] }, { members: [0], rebuilding: true }],
    outcome: 'RW ERR',
    reasons: [/rebuilding|stale/],
  },
  {
    claim: 'a smaller one',
    replicas: [{}, { sizeBytes: MIB / 2 }],
    outcome: 'RW ERR',
    reasons: [/its size 524288 is not the volume's 1048576/],
  },
  {
    claim: 'all were expanded before the crash',
    replicas: [{ sizeBytes: 2 * MIB }, { sizeBytes: 2 * MIB }],
    sizeBytes: 2 * MIB,
    outcome: 'RW RW',
    volumeBytes: 2 * MIB,
  },
  {
    claim: 'one was expanded before the crash',
    replicas: [{}, { sizeBytes: 2 * MIB }],
    sizeBytes: 2 * MIB,
    outcome: 'RW ERR',
    reasons: [/its size 2097152/],
    volumeBytes: MIB,
  },
  {
    claim: 'one counter is behind',
    replicas: [{ counter: 7 }, { counter: 6 }, { counter: 7 }],
    counters: true,
    outcome: 'RW ERR RW',
    reasons: [COUNTER],
  },
  {
    claim: 'one keeps no counter',
    replicas: [{ counter: 7 }, {}],
    counters: true,
    outcome: 'RW ERR',
    reasons: [COUNTER],
  },
  {
    claim: 'members may differ in their counters by what was in flight',
    replicas: [
      { counter: 7, members: [0, 1] },
      { counter: 6, members: [0, 1] },
    ],
    counters: true,
    outcome: 'RW RW',
  },
  {
    claim: 'without counters or rosters all count as alike, as in Longhorn',
    replicas: [{ modifiedS: 100 }, { modifiedS: 900 }],
    outcome: 'RW RW',
  },
  {
    claim: 'salvage takes the largest head of those written last',
    replicas: [
      { modifiedS: 100, headBytes: 9000 },
      { modifiedS: 197, headBytes: 20 },
      { modifiedS: 200, headBytes: 10 },
    ],
    salvage: true,
    outcome: 'ERR RW ERR',
    reasons: [/salvage chose another/, /salvage chose another/],
  },
  {
    claim: 'after a crash of all, all members are trusted, salvage or not',
    replicas: [
      { members: [0, 1], dirty: true, modifiedS: 100 },
      { members: [0, 1], dirty: true, modifiedS: 200 },
    ],
    salvage: true,
    outcome: 'RW RW',
  },
  {
    claim: 'a stale one with the newest counter, time and largest head',
    replicas: [
      { members: [0, 1], counter: 99, modifiedS: 900, headBytes: 9000 },
      { members: [1], rosterNumber: 2, counter: 7, modifiedS: 100, headBytes: 10 },
    ],
    counters: true,
    outcome: 'ERR RW',
    reasons: [STALE],
  },
  {
    claim: 'salvage never takes a stale one',
    replicas: [
      { members: [0, 1], modifiedS: 900, headBytes: 9000 },
      { members: [1], rosterNumber: 2, modifiedS: 100, headBytes: 10 },
    ],
    salvage: true,
    outcome: 'ERR RW',
    reasons: [STALE],
  },
  {
    claim: 'only stale ones answer',
    replicas: [
      { members: [9], rosterNumber: 3 },
      { members: [0, 1, 9] },
      { members: [0, 1, 2], gone: true },
    ],
    salvage: true,
    outcome: 'NO_BACKEND',
    reasons: [/r0.*r1.*r2/, /r0:.*stale/, /r1:.*stale/, /r2:.*cannot reach/],
  },
  {
    claim: 'one that has no roster while others do',
    replicas: [{ members: [0, 2] }, {}, { members: [0, 2] }],
    outcome: 'RW ERR RW',
    reasons: [STALE],
  },
  {
    claim: 'a later engine is believed, however high the other number',
    replicas: [
      { members: [0], generation: 4, rosterNumber: 50 },
      { members: [1], generation: 5 },
    ],
    outcome: 'ERR RW',
    reasons: [STALE],
  },
  {
    claim: 'Longhorn used all of them since: its rules hold',
    replicas: [{ voided: true }, { voided: true }],
    outcome: 'RW RW',
  },
  {
    claim: 'Longhorn used one of two members since, and counters cannot tell',
    replicas: [{ members: [0, 1] }, { voided: true }],
    outcome: 'INVALID_STATE',
    reasons: [/r1:9502 but not to the other replicas/],
  },
  {
    claim: 'Longhorn used one of two members since, and counters tell',
    replicas: [
      { members: [0, 1], counter: 7 },
      { voided: true, counter: 9 },
    ],
    counters: true,
    outcome: 'ERR RW',
    reasons: [COUNTER],
  },
];

const idOf = (index: number): string => `id-of-${addressOf(index)}`;

function addressOf(index: number): string {
  return `tcp://r${index}:9502`;
}

function replicaOf(spec: Spec, index: number, slab: Slab): MemoryReplica {
  const replica = new MemoryReplica(addressOf(index), slab, spec.sizeBytes ?? MIB);
  const state = spec.rebuilding ? 'rebuilding' : spec.dirty ? 'dirty' : 'open';
  const generation = spec.generation ?? 4;
  replica.info = {
    ...replica.info,
    state,
    rebuilding: spec.rebuilding === true,
    revisionCounterDisabled: spec.counter === undefined,
    revisionCounter: spec.counter ?? 0,
    lastModifyTime: String(BigInt(spec.modifiedS ?? 100) * 1_000_000_000n),
    headFileSize: spec.headBytes ?? 0,
    rosterVoid: spec.voided === true,
    engineGeneration: spec.members !== undefined || spec.voided ? generation : 0,
  };
  if (spec.members !== undefined) {
    replica.roster = {
      generation,
      number: spec.rosterNumber ?? 1,
      members: spec.members.map(idOf),
      absent: [],
      isClean: spec.clean === true,
    };
  }
  return replica;
}

for (const row of TABLE) {
  t.test(`start: ${row.claim}: ${row.outcome}`, async (t) => {
    const slab = new Slab(new ArrayBuffer(SLAB_BYTES + MIB));
    const replicas = row.replicas.map((spec, index) => replicaOf(spec, index, slab));
    const engine = new Engine({
      newId: randomUUID,
      random: () => 0.5,
      settings: {
        ...defaultSettings('vol'),
        revisionCounterDisabled: row.counters !== true,
        salvageRequested: row.salvage === true,
      },
      connector: memoryConnector(replicas.filter((_, index) => !row.replicas[index]?.gone)),
      slab,
      clock: new ManualClock(),
      log: silentLogger,
    });
    const addresses = replicas.map(({ address }) => address);
    const request = { addresses, sizeBytes: row.sizeBytes ?? MIB, currentSizeBytes: MIB };
    const refusal = await engine.start(request).then(
      () => null,
      (error: unknown) => error,
    );
    if (refusal !== null) {
      if (!(refusal instanceof StorageError)) throw refusal;
      t.equal(refusal.code, row.outcome);
      const details = (refusal.details['reasons'] ?? []) as readonly string[];
      const text = [refusal.message, ...details].join('\n');
      for (const reason of row.reasons ?? []) t.match(text, reason);
      t.equal(engine.replicas.length, 0);
      const open = replicas.filter(
        (replica, index) => !row.replicas[index]?.gone && !replica.isClosed,
      );
      t.same(open, [], 'nothing stays open');
      return;
    }
    t.equal(engine.replicas.map(({ mode }) => mode).join(' '), row.outcome);
    await settle();
    const failed = engine.replicas.filter(({ mode }) => mode === 'ERR');
    for (const [i, member] of failed.entries()) {
      t.match(member.failure?.message ?? '', row.reasons?.[i] ?? /never/, member.address);
    }
    t.equal(engine.volume.sizeBytes, row.volumeBytes ?? MIB);
    const members = engine.replicas.flatMap(({ mode }, i) => (mode === 'RW' ? [idOf(i)] : []));
    for (const [i, { mode }] of engine.replicas.entries()) {
      if (mode === 'RW') t.same(replicas[i]?.roster?.members, members, 'each knows the members');
      else if (!row.replicas[i]?.gone) t.ok(replicas[i]?.isClosed, 'who is not used is closed');
    }
    await engine.shutdown();
  });
}

// Processes of a volume are killed in a seeded order while a client writes: nothing acknowledged is
// lost, no value that was read once changes back, and in the end every replica alone holds the same.
// LONGHORN_CRASH_ROUNDS and LONGHORN_CRASH_SEED make it longer or another one: scripts/test-crash.

import t from 'tap';
import type { ReplicaSlot } from '../support/process-stack.js';
import { CrashStack } from './crash-stack.js';
import { seededRandom } from './load.js';

const ROUNDS = Number(process.env['LONGHORN_CRASH_ROUNDS'] ?? 2);
const SEED = Number(process.env['LONGHORN_CRASH_SEED'] ?? 1);
const SIZE_MIB = 16;

t.setTimeout(120_000 + ROUNDS * 20_000);

type Slots = readonly [ReplicaSlot, ReplicaSlot, ReplicaSlot];

interface Round {
  readonly what: string;
  run(crash: CrashStack, slots: Slots): Promise<void>;
}

async function writes(crash: CrashStack, count = 150): Promise<void> {
  await (crash.load ?? crash.startLoad()).acknowledges(count);
}

/** A new engine over every replica whose process runs. */
async function newEngine(crash: CrashStack): Promise<void> {
  await crash.startEngine();
  await writes(crash);
}

const ROUND_KINDS: readonly Round[] = [
  {
    what: 'one replica',
    run: async (crash, [a]) => {
      await crash.kill(a);
      await writes(crash);
    },
  },
  {
    what: 'two replicas, one after the other',
    run: async (crash, [a, b]) => {
      await crash.kill(a);
      await writes(crash);
      await crash.kill(b);
      await writes(crash);
    },
  },
  {
    what: 'the engine',
    run: async (crash) => {
      await crash.killEngine();
      await newEngine(crash);
    },
  },
  {
    what: 'the engine and one replica at once',
    run: async (crash, [a]) => {
      await Promise.all([crash.kill(a), crash.killEngine()]);
      await crash.restart(a);
      await newEngine(crash);
    },
  },
  {
    what: 'the engine and one replica, which stays away',
    run: async (crash, [a]) => {
      await Promise.all([crash.kill(a), crash.killEngine()]);
      await newEngine(crash);
    },
  },
  {
    what: 'a replica, then the engine; the stale replica is there again at the start',
    run: async (crash, [a]) => {
      await crash.kill(a);
      await writes(crash);
      await crash.killEngine();
      await crash.restart(a);
      await newEngine(crash);
    },
  },
  {
    what: 'everything at once',
    run: async (crash, [a, b, c]) => {
      await Promise.all([crash.kill(a), crash.kill(b), crash.kill(c), crash.killEngine()]);
      for (const slot of [a, b, c]) await crash.restart(slot);
      await newEngine(crash);
    },
  },
  {
    what: 'the engine twice, without time between',
    run: async (crash) => {
      await crash.killEngine();
      await crash.stack.startEngine();
      await crash.killEngine();
      await newEngine(crash);
    },
  },
  {
    what: 'a replica, then the engine while that replica is rebuilt',
    run: async (crash, [a]) => {
      await crash.kill(a);
      await writes(crash);
      await crash.restart(a);
      const rebuild = crash.heal().catch((error: unknown) => crash.note(String(error)));
      await writes(crash, 20);
      await crash.killEngine();
      await rebuild;
      await newEngine(crash);
    },
  },
  {
    what: 'a replica, then again while it is rebuilt',
    run: async (crash, [a]) => {
      await crash.kill(a);
      await writes(crash);
      await crash.restart(a);
      const rebuild = crash.heal().catch((error: unknown) => crash.note(String(error)));
      await writes(crash, 20);
      await crash.kill(a);
      await rebuild;
      await writes(crash);
    },
  },
  {
    what: 'a replica, then the engine, a little later everything else',
    run: async (crash, [a, b, c]) => {
      await crash.kill(a);
      await writes(crash, 20);
      await Promise.all([crash.killEngine(), crash.kill(b), crash.kill(c)]);
      for (const slot of [a, b, c]) await crash.restart(slot);
      await newEngine(crash);
    },
  },
];

function shuffled<T>(list: readonly T[], random: () => number): T[] {
  return list
    .map((item) => ({ item, key: random() }))
    .sort((x, y) => x.key - y.key)
    .map(({ item }) => item);
}

t.test(`kill -9, ${ROUNDS} rounds, seed ${SEED}: nothing acknowledged is lost`, async (t) => {
  const random = seededRandom(SEED);
  const crash = await CrashStack.create({ sizeMib: SIZE_MIB, random: seededRandom(SEED + 1) });
  t.teardown(() => crash.end());
  await crash.stack.startReplicas(3);
  await crash.startEngine();
  let kinds: Round[] = [];
  try {
    for (let round = 1; round <= ROUNDS; round++) {
      if (kinds.length === 0) kinds = shuffled(ROUND_KINDS, random);
      const kind = kinds.pop() as Round;
      crash.note(`round ${round}: ${kind.what}`);
      const slots = shuffled(crash.slots, random) as unknown as Slots;
      await writes(crash);
      await kind.run(crash, slots);
      await crash.heal();
      await writes(crash);
      if (crash.complaints.length > 0) break;
    }
    await crash.finish();
  } catch (error) {
    crash.complaints.push(String(error));
  }
  t.strictSame(crash.complaints, [], `seed ${SEED}`);
  if (!t.passing()) t.comment(crash.report());
});

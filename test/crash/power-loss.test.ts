// The power fails at many moments of a replica's life; each time its disk is mounted again and the
// chain opened. Everything that was promised by then must be there: flushed writes (P2), snapshots,
// revert and expansion (P7), and the roster that says who missed a write (P3).
// LONGHORN_CRASH_POINTS and LONGHORN_CRASH_SEED make it longer or another one: scripts/test-crash.

import { randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { realClock } from '../../src/core/clock-real.js';
import { silentLogger } from '../../src/core/log.js';
import { compareRosters, type Roster } from '../../src/core/roster.js';
import { MIB } from '../../src/core/units.js';
import { createChannel, createClient } from '../../src/rpc/client.js';
import { ReplicaServiceDefinition } from '../../src/api/generated/replica.js';
import { rosterOf } from '../../src/api/roster-message.js';
import { createNativeDisk, createSlab } from '../../src/disk/native-disk.js';
import { ImageChain } from '../../src/image/chain.js';
import { openForEngine } from '../../src/replica/opening.js';
import type { ReplicaOptions } from '../../src/replica/replica-shapes.js';
import type { RosterRecord } from '../../src/replica/roster-record.js';
import { RosterStore } from '../../src/replica/roster-store.js';
import { readAll } from '../support/image-chains.js';
import type { ReplicaSlot } from '../support/process-stack.js';
import { waitUntil } from '../support/replica-state.js';
import { CrashStack, readDirectory } from './crash-stack.js';
import { BLOCK_BYTES, contentOf, NEVER, type Value, valueAt } from './ledger.js';
import { seededRandom } from './load.js';
import { LoggedDisk, loggedDiskRefusal, Replay, withMounted } from './logged-disk.js';

const POINTS = Number(process.env['LONGHORN_CRASH_POINTS'] ?? 10);
const SEED = Number(process.env['LONGHORN_CRASH_SEED'] ?? 1);
const WITHOUT_SYNC = fileURLToPath(new URL('./without-sync.js', import.meta.url));
const SIZE_MIB = 8;
const GROWN_MIB = 12;
const DISK_MIB = 96;
const DEPTH = 8;

const skip = loggedDiskRefusal();
t.setTimeout(120_000 + POINTS * 2_000);

/** Something that must hold when the power fails between two positions of the log. */
interface Promised {
  readonly what: string;
  readonly from: number;
  until: number;
  check(found: Found): string | null | Promise<string | null>;
}

/** What the checker found on the disk. */
interface Found {
  readonly directory: string;
  readonly snapshots: readonly string[];
  readonly sizeBytes: number;
  readonly roster: Roster | null;
}

class PowerTest {
  readonly crash: CrashStack;
  readonly disk: LoggedDisk;
  readonly promises: Promised[] = [];
  /** From here on the directory must hold a chain that opens. */
  bornAt = NEVER;
  private readonly parent: string;

  private constructor(parent: string, disk: LoggedDisk, crash: CrashStack) {
    this.parent = parent;
    this.disk = disk;
    this.crash = crash;
  }

  /** Two replicas, the first on the logged disk; `flags` are Node's, for that replica's process. */
  static async start(t: Test, seed: number, flags = ''): Promise<PowerTest> {
    const parent = await mkdtemp(join(tmpdir(), 'longhorn-power-'));
    t.teardown(() => rm(parent, { recursive: true, force: true }));
    const disk = await LoggedDisk.create(parent, DISK_MIB);
    const crash = await CrashStack.create({
      sizeMib: SIZE_MIB,
      random: seededRandom(seed),
      position: () => disk.position(),
    });
    const test = new PowerTest(parent, disk, crash);
    t.teardown(async () => {
      await crash.end();
      await test.unmount();
    });
    const first = await crash.stack.addSlot(join(disk.mount, 'r1'));
    const second = await crash.stack.addSlot();
    const before = process.env['NODE_OPTIONS'];
    if (flags !== '') process.env['NODE_OPTIONS'] = flags;
    const starting = crash.stack.startReplica(first);
    if (before === undefined) delete process.env['NODE_OPTIONS'];
    else process.env['NODE_OPTIONS'] = before;
    await starting;
    await crash.stack.startReplica(second);
    await crash.startEngine();
    test.bornAt = disk.position();
    return test;
  }

  private isMounted = true;

  async unmount(): Promise<void> {
    if (!this.isMounted) return;
    this.isMounted = false;
    await this.disk.end();
  }

  promise(what: string, check: Promised['check']): Promised {
    const promised = { what, from: this.disk.position(), until: NEVER, check };
    this.promises.push(promised);
    return promised;
  }

  async writes(count: number): Promise<void> {
    await this.crash.startLoad(DEPTH).acknowledges(count);
    await this.crash.stopLoad();
  }

  /** While no client writes, so that its content is known. */
  async snapshot(name: string): Promise<{ promised: Promised; values: Value[] }> {
    await this.crash.command('snapshots', 'create', name);
    const values = this.crash.knownValues();
    const promised = this.promise(`snapshot ${name}`, async (found) => {
      if (!found.snapshots.includes(name)) return `it is not among ${found.snapshots.join(' ')}`;
      const content = await readDirectory(found.directory, name);
      return firstWrong(values, content);
    });
    return { promised, values };
  }

  /** Ends everything; what was on the disk by then is known from its log alone. */
  async stop(): Promise<void> {
    await this.crash.stopLoad();
    await this.crash.stack.kill();
    await this.unmount();
  }

  /** Fails the power at so many moments, the first and last included. @returns complaints. */
  async replay(points: number, random: () => number): Promise<string[]> {
    const replay = await Replay.load(this.disk);
    const complaints: string[] = [];
    const { entries } = replay;
    const counts = Array.from({ length: points }, () => Math.ceil(random() * entries.length));
    counts.push(entries.length);
    for (const count of counts.sort((a, b) => a - b)) {
      const position = entries[count - 1]?.endPosition ?? 0;
      const image = replay.imageAfter(count, random);
      const found = await withMounted(image, this.parent, (mount) =>
        this.judge(join(mount, 'r1'), position),
      ).catch((error: unknown) => [String(error)]);
      complaints.push(...found.map((text) => `entry ${count} of ${entries.length}: ${text}`));
    }
    return complaints;
  }

  private async judge(directory: string, position: number): Promise<string[]> {
    if (position < this.bornAt) return [];
    const { found, content } = await look(directory);
    const complaints: string[] = [];
    const { ledger } = this.crash;
    for (let block = 0; block < ledger.blockCount; block++) {
      const value = valueAt(
        block,
        content.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES),
      );
      const allowed = ledger.allowedAtPowerLoss(block, position);
      const complaint = ledger.judge(block, value, allowed);
      if (complaint === null) continue;
      complaints.push(complaint);
    }
    for (const { what, from, until, check } of this.promises) {
      if (position < from || position >= until) continue;
      const complaint = await check(found);
      if (complaint !== null) complaints.push(`${what}: ${complaint}`);
    }
    return complaints;
  }
}

function firstWrong(values: readonly Value[], content: Buffer): string | null {
  for (const [block, value] of values.entries()) {
    const at = block * BLOCK_BYTES;
    const found = valueAt(block, content.subarray(at, at + BLOCK_BYTES));
    if (found !== value) return `block ${block} holds ${found}, not ${value}`;
  }
  return null;
}

/** Opens the directory as a replica does, for writing. */
async function look(directory: string): Promise<{ found: Found; content: Buffer }> {
  const disk = createNativeDisk({ slab: createSlab(MIB), log: silentLogger });
  const options = { clock: realClock, log: silentLogger };
  try {
    const record = await RosterStore.look({
      ...options,
      disk,
      directory,
      newId: randomUUID,
    });
    const wasDirty = (await ImageChain.probe(disk, directory))?.dirty ?? false;
    const { chain, intents } = await openAfterCrash(
      { ...options, disk, directory },
      record,
      wasDirty,
    );
    const content = await readAll(disk, chain);
    const snapshots = (await chain.disks())
      .filter(({ removed }) => !removed)
      .map(({ name }) => name.replace(/^volume-snap-|\.img$/g, ''));
    const { sizeBytes } = chain;
    await intents?.close();
    await chain.close();
    return { found: { directory, snapshots, sizeBytes, roster: record?.roster ?? null }, content };
  } finally {
    await disk.shutdown();
  }
}

function openAfterCrash(
  parts: Pick<ReplicaOptions, 'clock' | 'log' | 'disk' | 'directory'>,
  record: RosterRecord | null,
  wasDirty: boolean,
): ReturnType<typeof openForEngine> {
  if (record === null) throw new Error('there is no roster');
  const settings = { unmapMarkDiskChainRemoved: false, snapshotMaxCount: 250, snapshotMaxBytes: 0 };
  const options = {
    ...parts,
    ...settings,
    revisionCounter: false,
    encrypted: false,
    newId: randomUUID,
    hostBootId: '',
  };
  const engineGeneration = record.engineGeneration + 1;
  return openForEngine({ options, settings, standing: record, wasDirty }, new Set(), {
    isUpgrade: false,
    expectedBytes: 0,
    engineGeneration,
  });
}

/** The replica's own word on its roster. */
async function askForRoster(port: number): Promise<{ id: string; roster: Roster | null }> {
  const channel = createChannel({ host: '127.0.0.1', port }, { clock: realClock });
  try {
    const { replica } = await createClient(ReplicaServiceDefinition, channel).replicaGet({});
    return { id: replica?.replicaId ?? '', roster: rosterOf(replica?.roster) };
  } finally {
    channel.close();
  }
}

/** What the replica says it has stored must be there after a power failure, or something newer. */
async function promiseRoster(test: PowerTest): Promise<void> {
  const [first] = test.crash.slots as [ReplicaSlot];
  const { roster } = await askForRoster(first.port);
  if (roster !== null) {
    const { generation, number } = roster;
    test.promise(`roster ${generation}/${number}`, (found) =>
      found.roster !== null && compareRosters(found.roster, roster) >= 0
        ? null
        : `found ${found.roster?.generation}/${found.roster?.number}`,
    );
  }
}

/** The other replica dies; from the first write that it missed the roster must know it. */
async function loseSecond(test: PowerTest): Promise<Promised> {
  const { crash } = test;
  const [, second] = crash.slots as [ReplicaSlot, ReplicaSlot];
  const { id } = await askForRoster(second.port);
  await crash.kill(second);
  const { ledger } = crash;
  const change = ledger.send(0, [ledger.nextValue()]);
  await crash.attached.write(0, contentOf(0, change.values), false);
  ledger.acknowledge(change, false);
  return test.promise('P3: who missed a write is no member', ({ roster }) =>
    roster === null || roster.members.includes(id) ? `members ${roster?.members.join(' ')}` : null,
  );
}

async function revert(test: PowerTest, name: string, values: readonly Value[]): Promise<void> {
  const { crash } = test;
  const { ledger } = crash;
  await crash.command('frontend', 'shutdown');
  const change = ledger.send(0, values);
  await crash.command('snapshots', 'revert', name);
  ledger.acknowledge(change, true);
  await crash.command('frontend', 'start', 'nbd');
  await crash.attach();
}

async function purged(crash: CrashStack): Promise<void> {
  await crash.command('snapshots', 'purge');
  await waitUntil('the purge is done', async () => {
    const { stdout } = await crash.command('snapshots', 'purge-status');
    return !/"isPurging": ?true/.test(stdout);
  });
}

/** Everything that changes a replica's directory, one after the other, under writes. */
async function live(test: PowerTest): Promise<void> {
  const { crash } = test;
  const writes = POINTS > 50 ? 120 : 30;
  await test.writes(writes);
  await promiseRoster(test);
  const first = await test.snapshot('s1');
  await test.writes(writes);
  const isOut = await loseSecond(test);
  await promiseRoster(test);
  await test.writes(writes);
  isOut.until = test.disk.position();
  await crash.heal();
  await promiseRoster(test);
  await test.writes(writes);
  const second = await test.snapshot('s2');
  await crash.command('expand', '--size', `${GROWN_MIB}m`);
  await waitUntil('the volume has grown', async () => {
    const { stdout } = await crash.command('info');
    return (JSON.parse(stdout) as { size: number }).size === GROWN_MIB * MIB;
  });
  test.promise('expansion', ({ sizeBytes }) =>
    sizeBytes === GROWN_MIB * MIB ? null : `${sizeBytes} bytes`,
  );
  await test.writes(writes);
  first.promised.until = test.disk.position();
  await crash.command('snapshots', 'rm', 's1');
  const load = crash.startLoad(DEPTH);
  await purged(crash);
  await load.acknowledges(writes);
  await crash.stopLoad();
  await revert(test, 's2', second.values);
  await test.writes(writes);
  const flushed = crash.ledger.flushing();
  await crash.attached.flush();
  flushed();
}

t.test(
  `power loss at ${POINTS} moments of a replica's life, seed ${SEED}: nothing promised is lost`,
  { skip },
  async (t) => {
    const test = await PowerTest.start(t, SEED);
    await live(test).catch((error: unknown) => {
      t.fail(String(error));
      t.comment(test.crash.report());
    });
    await test.stop();
    const complaints = await test.replay(POINTS, seededRandom(SEED + 1));
    t.strictSame([...test.crash.complaints, ...complaints.slice(0, 20)], [], `seed ${SEED}`);
  },
);

t.test('and the checker does find what a replica loses that never syncs', { skip }, async (t) => {
  const test = await PowerTest.start(t, SEED, `--import=${WITHOUT_SYNC}`);
  await test.writes(200);
  await test.stop();
  const complaints = await test.replay(4, seededRandom(SEED + 1));
  t.match(complaints, [/block \d+ holds .*, allowed: /], 'acknowledged and flushed, yet lost');
});

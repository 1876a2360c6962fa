// Promise P6 and the roster's storage, on a real replica behind the real data server: two engines, one
// replica; what the older one still sends never lands. The roster on a disk that tears and loses power.

import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { realClock } from '../../src/core/clock-real.js';
import { type ErrorCode, StorageError } from '../../src/core/errors.js';
import { silentLogger } from '../../src/core/log.js';
import type { Roster } from '../../src/core/roster.js';
import { MIB } from '../../src/core/units.js';
import { createNativeDisk, createSlab, type NativeDisk } from '../../src/disk/native-disk.js';
import type { FrameServer } from '../../src/frame-server/server.js';
import { replicaHandlers } from '../../src/replica/control-service.js';
import { startDataServer } from '../../src/replica/data-server.js';
import { Replica } from '../../src/replica/replica.js';
import type { ReplicaOptions } from '../../src/replica/replica-shapes.js';
import { decodeSlot } from '../../src/replica/roster-record.js';
import { ROSTER_FILE, ROSTER_SLOT_BYTES, RosterStore } from '../../src/replica/roster-store.js';
import type { RpcCall } from '../../src/rpc/server-call.js';
import {
  createNativeTransport,
  nativeTransportBytes,
} from '../../src/transport/native-transport.js';
import { errorFromText } from '../../src/wire/replica/error-text.js';
import { type Frame, frame, FrameClient, TYPE } from '../support/frame-client.js';
import { EVERYTHING_SURVIVES, MemoryDisk, NOTHING_SURVIVES } from '../support/memory-disk.js';

const HELLO = 0x4c05;
const SIZE_BYTES = 4 * MIB;

function openBy(engineGeneration: number) {
  return { isUpgrade: false, expectedBytes: 0, engineGeneration };
}

function rosterOf(generation: number, number: number, fields: Partial<Roster> = {}): Roster {
  return { generation, number, members: ['a'], absent: [], isClean: false, ...fields };
}

function absentAt(forkDisk: string) {
  return {
    replicaId: 'gone',
    forkDisk,
    inFlight: [],
    unflushed: [],
    hostBootId: 'boot',
    isExact: true,
    memberCountBefore: 2,
  };
}

async function codeOf(action: Promise<unknown>): Promise<ErrorCode | null> {
  try {
    await action;
    return null;
  } catch (error) {
    if (error instanceof StorageError) return error.code;
    throw error;
  }
}

function codeOfFrame({ type, data }: Frame): ErrorCode | null {
  return type === TYPE.error ? errorFromText(data.toString(), type).code : null;
}

const slab = createSlab(nativeTransportBytes() + 4 * MIB);
const nativeDisk: NativeDisk = createNativeDisk({ slab, log: silentLogger });
const transport = createNativeTransport({ slab, clock: realClock });
t.teardown(async () => {
  await transport.shutdown();
  await nativeDisk.shutdown();
});

let idCount = 0;

function replicaAt(directory: string, fields: Partial<ReplicaOptions> = {}): Promise<Replica> {
  return Replica.at({
    newId: () => `id-${++idCount}`,
    hostBootId: 'boot-1',
    disk: nativeDisk,
    directory,
    clock: realClock,
    log: silentLogger,
    revisionCounter: false,
    encrypted: false,
    unmapMarkDiskChainRemoved: false,
    snapshotMaxCount: 250,
    snapshotMaxBytes: 0,
    ...fields,
  });
}

interface Stand {
  readonly replica: Replica;
  readonly directory: string;
  connect(generation?: number): Promise<FrameClient>;
}

/** A created, closed replica on real files with a data server. */
async function stand(t: Test, endsSuperseded = true): Promise<Stand> {
  const parent = await mkdtemp(join(tmpdir(), 'fencing-'));
  const servers: FrameServer[] = [];
  const directory = join(parent, 'r1');
  await mkdir(directory);
  const replica = await replicaAt(directory, {
    takenOver: () => {
      for (const server of servers) if (endsSuperseded) server.endSuperseded();
    },
  });
  await replica.create(SIZE_BYTES);
  const path = join(parent, 'data.sock');
  const endpoint = { kind: 'unix', path } as const;
  const log = silentLogger;
  servers.push(await startDataServer({ transport, endpoint, replica, clock: realClock, log }));
  const clients: FrameClient[] = [];
  t.teardown(async () => {
    for (const client of clients) client.destroy();
    for (const server of servers) await server.close();
    await replica.close();
    await rm(parent, { recursive: true });
  });
  const connect = async (generation?: number): Promise<FrameClient> => {
    const client = await FrameClient.connect({ path });
    clients.push(client);
    if (generation !== undefined) client.write(frame({ seq: 0, type: HELLO, offset: generation }));
    return client;
  };
  return { replica, directory, connect };
}

function write(client: FrameClient, seq: number, byte: number): Promise<Frame> {
  return client.request({ seq, type: TYPE.write, offset: 0, data: Buffer.alloc(4096, byte) });
}

async function firstByte(client: FrameClient, seq: number): Promise<number | undefined> {
  return (await client.request({ seq, type: TYPE.read, offset: 0, size: 4096 })).data[0];
}

/** Sends a read and, in the same bytes, half of a write; both are at the replica when it answers. */
async function sendHalf(client: FrameClient): Promise<Buffer> {
  const late = frame({ seq: 9, type: TYPE.write, offset: 0, data: Buffer.alloc(4096, 0xbb) });
  const read = frame({ seq: 8, type: TYPE.read, offset: 0, size: 4096 });
  client.write(Buffer.concat([read, late.subarray(0, 2000)]));
  await client.answer(8);
  return late.subarray(2000);
}

t.test('a write that was on its way when a newer engine opened does not land', async (t) => {
  const { replica, connect } = await stand(t, false);
  await replica.open(openBy(5));
  const older = await connect(5);
  t.equal(codeOfFrame(await write(older, 1, 0xaa)), null);
  const rest = await sendHalf(older);
  await replica.open(openBy(6));
  older.write(rest);
  t.equal(codeOfFrame(await older.answer(9)), 'FENCED');
  t.equal(codeOfFrame(await write(older, 10, 0xcc)), 'FENCED');
  const read = await older.request({ seq: 11, type: TYPE.read, offset: 0, size: 4096 });
  t.equal(codeOfFrame(read), 'FENCED', 'nor is it read');
  t.equal(codeOfFrame(await older.request({ seq: 0, type: TYPE.ping })), 'FENCED');
  const newer = await connect(6);
  t.equal(await firstByte(newer, 1), 0xaa);
  t.equal(codeOfFrame(await write(newer, 2, 0xdd)), null);
});

t.test(
  'the connections of the older engine end, saying why; that of the newer lives',
  async (t) => {
    const { replica, connect } = await stand(t);
    await replica.open(openBy(5));
    const older = await connect(5);
    t.equal(codeOfFrame(await write(older, 1, 0xaa)), null);
    // As the connector does: the data connection first, its hello after the open.
    const newer = await connect();
    await replica.open(openBy(6));
    newer.write(frame({ seq: 0, type: HELLO, offset: 6 }));
    t.equal(codeOfFrame(await older.answer(0)), 'FENCED');
    await older.ended;
    t.equal(await firstByte(newer, 1), 0xaa);
  },
);

t.test(
  'a connection that said nothing is good for one open of an engine that says nothing',
  async (t) => {
    const { replica, connect } = await stand(t);
    const early = await connect();
    await early.request({ seq: 0, type: TYPE.ping });
    await replica.open(openBy(0));
    t.equal(codeOfFrame(await write(early, 1, 0xaa)), null, 'Longhorn connects before it opens');
    await replica.abandon();
    await replica.open(openBy(0));
    t.not(codeOfFrame(await write(early, 2, 0xbb)), null);
    const waiting = await connect();
    await waiting.request({ seq: 0, type: TYPE.ping });
    await replica.close();
    await replica.open(openBy(7));
    t.equal(codeOfFrame(await write(waiting, 3, 0xcc)), 'FENCED');
    t.equal(await firstByte(await connect(7), 1), 0xaa);
  },
);

t.test(
  'what a removed replica had on its way does not land when its engine adds it again',
  async (t) => {
    const { replica, connect } = await stand(t);
    await replica.open(openBy(5));
    const before = await connect(5);
    t.equal(codeOfFrame(await write(before, 1, 0xaa)), null);
    const rest = await sendHalf(before);
    await replica.close();
    await replica.open(openBy(5));
    before.write(rest);
    t.not(codeOfFrame(await before.answer(9)), null);
    t.equal(await firstByte(await connect(5), 1), 0xaa);
  },
);

t.test('control calls of an older engine are refused; a stale close closes nothing', async (t) => {
  const { replica } = await stand(t);
  const handlers = replicaHandlers(replica, { hostBootId: '', localDataPath: '' });
  const by = (generation?: number): RpcCall => ({
    metadata: () => (generation === undefined ? undefined : String(generation)),
    signal: new AbortController().signal,
  });
  const close = async (generation?: number): Promise<ErrorCode | null> =>
    codeOf((async () => handlers.replicaClose?.({}, by(generation)))());
  await replica.open(openBy(5));
  const opening = replica.open(openBy(6));
  t.equal(await close(5), 'FENCED', 'also while the newer one is opening');
  await opening;
  t.equal(await close(5), 'FENCED');
  t.equal(replica.openGeneration, 6);
  t.equal(await codeOf(replica.setRoster(rosterOf(5, 9))), 'FENCED');
  t.equal(await close(), null, 'who does not say its generation is let in');
  t.equal(replica.openSerial, 0);
});

t.test('older engines stay refused after a restart; equal ones while it is open', async (t) => {
  const { replica, directory } = await stand(t);
  await replica.open(openBy(5));
  t.equal(await codeOf(replica.open(openBy(5))), 'INVALID_STATE');
  t.equal(await codeOf(replica.open(openBy(0))), 'INVALID_STATE');
  const { replicaId } = (await replica.status()).standing;
  await replica.close();
  const again = await replicaAt(directory);
  t.equal((await again.status()).standing.replicaId, replicaId, 'its id is for life');
  t.equal(await codeOf(again.open(openBy(4))), 'FENCED');
  await again.open(openBy(5));
  await again.delete();
  t.equal((await again.status()).standing.replicaId, '', 'until it is deleted');
});

t.test('an engine without generations, or another program, makes the roster void', async (t) => {
  const { replica, directory } = await stand(t);
  const rosterAfter = async (change: () => Promise<void>): Promise<Roster | null> => {
    await replica.open(openBy(5));
    await replica.setRoster(rosterOf(5, 1));
    await change();
    return (await replica.status()).standing.roster;
  };
  t.not(await rosterAfter(() => replica.close()), null, 'an orderly close keeps it');
  t.not(await rosterAfter(() => replica.abandon()), null, 'the death of the engine too');
  const foreign = async (): Promise<void> => {
    await replica.close();
    await nativeDisk.writeFile(
      join(directory, 'volume.meta'),
      await nativeDisk.readFile(join(directory, 'volume.meta'), MIB),
    );
    await replica.open(openBy(5));
  };
  t.equal(await rosterAfter(foreign), null);
  t.ok((await replica.status()).standing.isVoid);
  await replica.close();
  const byLonghorn = async (): Promise<void> => {
    await replica.close();
    await replica.open(openBy(0));
    await replica.close();
  };
  t.equal(await rosterAfter(byLonghorn), null);
});

t.test(
  'a fork is pinned while its entry lasts, and only what changed since is named',
  async (t) => {
    const { replica } = await stand(t);
    await replica.open(openBy(5));
    const options = { userCreated: true, created: '2026-01-01T00:00:00Z', labels: {} };
    const disk = (name: string): string => `volume-snap-${name}.img`;
    for (const name of ['old', 'fork']) await replica.snapshot({ name, ...options });
    const absent = [absentAt(disk('fork'))];
    await replica.setRoster(rosterOf(5, 1, { absent }));
    await replica.snapshot({ name: 'later', ...options });
    const known = await replica.absence('gone');
    t.match(known?.unchangedDisks, { [disk('fork')]: disk('old'), [disk('old')]: '' });
    t.equal(await replica.absence('stranger'), null);
    for (const name of ['fork', 'old']) {
      await replica.markRemoved(disk(name));
      t.same(await replica.prepareRemove(disk(name)), [], `${name} stays`);
    }
    t.not(await codeOf(replica.removeDisk(disk('fork'), false)), null);
    await replica.setRoster(rosterOf(5, 2));
    t.not((await replica.prepareRemove(disk('fork'))).length, 0, 'free again');
    t.equal(await replica.absence('gone'), null);
  },
);

t.test(
  'a replica whose machine lost power while it was open says so until a checkpoint',
  async (t) => {
    const directory = await mkdtemp(join(tmpdir(), 'longhorn-boot-'));
    t.teardown(() => rm(directory, { recursive: true }));
    const openOn = async (hostBootId: string, generation: number): Promise<Replica> => {
      const replica = await replicaAt(directory, { hostBootId });
      await replica.create(MIB);
      await replica.open(openBy(generation));
      return replica;
    };
    const lacks = async (replica: Replica): Promise<boolean> =>
      (await replica.status()).standing.lacksUnflushed;
    const first = await openOn('boot-1', 1);
    t.notOk(await lacks(first), 'a new one lacks nothing');
    await first.abandon();
    const restarted = await openOn('boot-1', 2);
    t.notOk(await lacks(restarted), 'the kernel lived on, and its caches');
    await restarted.close();
    const moved = await openOn('boot-2', 3);
    t.notOk(await lacks(moved), 'it was closed in order before');
    await moved.abandon();
    const rebooted = await openOn('boot-3', 4);
    t.ok(await lacks(rebooted));
    await rebooted.abandon();
    const again = await openOn('boot-3', 5);
    t.ok(await lacks(again), 'a start that came to nothing changes nothing');
    await again.beginCheckpoint();
    await again.endCheckpoint();
    t.notOk(await lacks(again));
    await again.close();
  },
);

const STORE = { directory: '/r', log: silentLogger, newId: (): string => 'me' };

async function newMemoryDisk(): Promise<MemoryDisk> {
  const disk = new MemoryDisk();
  await disk.makeDirectory('/r');
  await disk.syncDirectory('/');
  return disk;
}

function numberOn(disk: MemoryDisk): Promise<number | undefined> {
  return RosterStore.look({ ...STORE, disk }).then((record) => record?.roster?.number);
}

t.test(
  'a roster is durable when stored; a crash leaves the one before or the new one',
  async (t) => {
    for (const survivors of [NOTHING_SURVIVES, EVERYTHING_SURVIVES]) {
      for (let cut = 0; ; cut++) {
        const disk = await newMemoryDisk();
        const store = await RosterStore.open({ ...STORE, disk });
        for (const number of [1, 2]) await store.update(() => ({ roster: rosterOf(1, number) }));
        disk.crashAfter(cut);
        const isStored = await store
          .update(() => ({ roster: rosterOf(1, 3) }))
          .then(
            () => true,
            () => false,
          );
        disk.restart(survivors);
        const number = await numberOn(disk);
        t.ok(number === 3 || (number === 2 && !isStored), `${number} after ${cut} changes`);
        if (isStored && cut > 2) break;
      }
    }
  },
);

t.test('a slot torn at any byte leaves the one before; both torn are void', async (t) => {
  const disk = await newMemoryDisk();
  const store = await RosterStore.open({ ...STORE, disk });
  for (const number of [1, 2]) await store.update(() => ({ roster: rosterOf(1, number) }));
  const path = `/r/${ROSTER_FILE}`;
  const whole = await disk.readFile(path, 2 * ROSTER_SLOT_BYTES);
  const at = (decodeSlot(whole.subarray(0, ROSTER_SLOT_BYTES))?.record.roster?.number ?? 0) === 2;
  const begin = at ? 0 : ROSTER_SLOT_BYTES;
  const end = begin + 32 + whole.readUInt32LE(begin + 12);
  for (let byte = begin; byte < end; byte++) {
    const torn = Buffer.from(whole.subarray(begin, begin + ROSTER_SLOT_BYTES));
    torn[byte - begin] = (torn[byte - begin] as number) ^ 0x10;
    if (decodeSlot(torn) !== null) t.fail(`byte ${byte} is not covered`);
  }
  const broken = Buffer.from(whole);
  broken[begin + 40] = 0;
  await disk.writeFile(path, broken);
  t.equal(await numberOn(disk), 1);
  broken[ROSTER_SLOT_BYTES - begin + 40] = 0;
  await disk.writeFile(path, broken);
  t.equal(await numberOn(disk), undefined);
  t.ok((await RosterStore.open({ ...STORE, disk })).record.isVoid);
});

t.test('what cannot be stored is said, and does not cost the roster before', async (t) => {
  const disk = await newMemoryDisk();
  const store = await RosterStore.open({ ...STORE, disk });
  await store.update(() => ({ roster: rosterOf(1, 1) }));
  for (const kind of ['write', 'sync'] as const) {
    disk.fault = (call) => (call.kind === kind ? 'IO_ERROR' : null);
    t.equal(await codeOf(store.update(() => ({ roster: rosterOf(1, 2) }))), 'IO_ERROR');
    t.equal(store.record.roster?.number, 1);
  }
  disk.fault = null;
  await store.update(() => ({ roster: rosterOf(1, 3) }));
  t.equal(await numberOn(disk), 3);
});

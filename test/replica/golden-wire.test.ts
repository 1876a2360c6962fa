// Conversations recorded from Longhorn's own replica and controller, replayed against ours: every
// answer equal byte for byte. What the volume held before a recording is derived from its answers.
// Where Longhorn's process crashes, ours must refuse the request and live.

import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { BLOCK_OP } from '../../src/core/block-device.js';
import { realClock } from '../../src/core/clock-real.js';
import { StorageError } from '../../src/core/errors.js';
import { silentLogger } from '../../src/core/log.js';
import { MIB, SECTOR_BYTES } from '../../src/core/units.js';
import { createSlab } from '../../src/disk/native-disk.js';
import { Engine } from '../../src/engine/engine.js';
import { startSocketFrontend } from '../../src/frontend/socket/server.js';
import {
  createNativeTransport,
  nativeTransportBytes,
} from '../../src/transport/native-transport.js';
import { FIXTURES_MISSING, fixturesDir } from '../support/fixtures.js';
import { FrameClient, frame, TYPE } from '../support/frame-client.js';
import { MemoryReplica, memoryConnector } from '../support/memory-replica.js';
import { ProcessStack } from '../support/process-stack.js';
import { ServedReplica } from '../support/served-replica.js';

interface Message {
  readonly dir: 'c2s' | 's2c';
  readonly start: number;
  readonly length: number;
  readonly seq: number;
  readonly type: number;
  readonly offset: number;
  readonly size: number;
  readonly event?: string;
  readonly note?: string;
}

interface Recording {
  readonly label: string;
  readonly c2s: string;
  readonly s2c: string;
  readonly messages: readonly Message[];
  readonly 'chunks[tSeconds,dir,offset,length]'?: readonly (readonly [
    number,
    string,
    number,
    number,
  ])[];
}

/** One message with its bytes and the connection it belongs to. */
interface Step extends Message {
  readonly connection: number;
  readonly bytes: Buffer;
}

const fixtures = fixturesDir();
const skip = fixtures === null && FIXTURES_MISSING;
const VOLUME_BYTES = 16 * MIB;
const HEADER_BYTES = 26;

function load(name: string): Recording[] {
  const text = readFileSync(join(fixtures ?? '', 'wire', `${name}.json`), 'utf8');
  return (JSON.parse(text) as { connections: Recording[] }).connections;
}

function bytesOf(file: string): Buffer {
  return readFileSync(join(fixtures ?? '', 'wire', file));
}

/** Requests and answers without ends of connections and Close frames, which are a race. */
function stepsOf(recording: Recording, connection = 0): Step[] {
  const streams = { c2s: bytesOf(recording.c2s), s2c: bytesOf(recording.s2c) };
  return recording.messages
    .filter((message) => message.event === undefined && message.type !== TYPE.close)
    .map((message) => ({
      ...message,
      connection,
      bytes: streams[message.dir].subarray(message.start, message.start + message.length),
    }));
}

/** Steps of several connections in the order in which their bytes were seen. */
function interleavedSteps(recordings: readonly Recording[]): Step[] {
  const timed = recordings.flatMap((recording, connection) => {
    const chunks = recording['chunks[tSeconds,dir,offset,length]'] ?? [];
    return stepsOf(recording, connection).map((step) => {
      const last = step.start + step.length - 1;
      const chunk = chunks.find(
        ([, dir, offset, length]) => dir === step.dir && offset <= last && last < offset + length,
      );
      return { step, seconds: chunk?.[0] ?? Number.NaN };
    });
  });
  return timed.sort((a, b) => a.seconds - b.seconds).map(({ step }) => step);
}

interface Content {
  readonly bytes: Buffer;
  /** Sectors that the recording's volume had allocated. */
  readonly sectors: Set<number>;
}

/** What the volume must have held: what was read before it was changed, and what trims released. */
function derivedContent(steps: readonly Step[], sizeBytes: number): Content {
  const bytes = Buffer.alloc(sizeBytes);
  const sectors = new Set<number>();
  const changed = new Uint8Array(sizeBytes);
  const requests = new Map<number, Step>();
  for (const step of steps) {
    if (step.dir === 'c2s') {
      requests.set(step.seq, step);
      continue;
    }
    const request = requests.get(step.seq);
    if (request === undefined || step.type !== TYPE.response) continue;
    const { offset, size } = request;
    const end = Math.min(offset + size, sizeBytes);
    if (request.type === TYPE.read) {
      for (let at = offset; at < end; at++) {
        const value = step.bytes[HEADER_BYTES + at - offset] as number;
        if (changed[at] === 1 || value === 0) continue;
        bytes[at] = value;
        sectors.add(Math.floor(at / SECTOR_BYTES));
      }
    } else if (request.type === TYPE.write) {
      changed.fill(1, offset, end);
    } else if (request.type === TYPE.unmap) {
      const first = Math.ceil(offset / SECTOR_BYTES);
      const last = Math.floor(end / SECTOR_BYTES);
      for (let sector = first; sector < last; sector++) {
        const isOld = changed[sector * SECTOR_BYTES] === 0;
        if (isOld && step.size === (last - first) * SECTOR_BYTES) sectors.add(sector);
      }
      changed.fill(1, first * SECTOR_BYTES, Math.max(first, last) * SECTOR_BYTES);
    }
  }
  return { bytes, sectors };
}

async function fill(served: ServedReplica, { bytes, sectors }: Content): Promise<void> {
  for (const sector of sectors) {
    const begin = sector * SECTOR_BYTES;
    await served.fill(begin, bytes.subarray(begin, begin + SECTOR_BYTES));
  }
}

interface Replay {
  readonly clients: readonly FrameClient[];
  /** Runs before a request is sent. */
  readonly before?: (step: Step) => Promise<void>;
}

/** Sends the requests and waits for each answer where the recording has it. */
async function replay(t: Test, steps: readonly Step[], { clients, before }: Replay): Promise<void> {
  for (const step of steps) {
    const client = clients[step.connection] as FrameClient;
    if (step.dir === 'c2s') {
      await before?.(step);
      client.write(step.bytes);
      continue;
    }
    const { bytes } = await client.answer(step.seq);
    const isEqual = step.bytes.equals(bytes);
    const difference = { expected: head(step.bytes), actual: head(bytes) };
    t.ok(isEqual, `the answer to ${step.seq} is Longhorn's`, isEqual ? {} : difference);
  }
}

function head(bytes: Buffer): string {
  return `${bytes.subarray(0, HEADER_BYTES).toString('hex')} ${bytes.subarray(HEADER_BYTES, 200).toString('latin1')}`;
}

async function serve(t: Test, steps: readonly Step[]): Promise<ServedReplica> {
  const served = await ServedReplica.start(VOLUME_BYTES);
  t.teardown(() => served.end());
  await fill(served, derivedContent(steps, VOLUME_BYTES));
  return served;
}

async function connect(t: Test, path: string): Promise<FrameClient> {
  const client = await FrameClient.connect({ path });
  t.teardown(() => client.destroy());
  return client;
}

function answersIn(steps: readonly Step[]): number {
  return steps.filter(({ dir }) => dir === 's2c').length;
}

t.test('a replica answers as Longhorn does', { skip }, async (t) => {
  const names = [
    'ping',
    'write',
    'read',
    'read-hole',
    'unaligned',
    'unmap',
    'read-beyond-end',
    'write-far-beyond-end',
    'zero-length',
    'unknown-type',
    'pipelined',
  ];
  for (const name of names) {
    await t.test(name, async (t) => {
      const steps = stepsOf(load(`replica-${name}`)[0] as Recording);
      const served = await serve(t, steps);
      const client = await connect(t, served.socketPath);
      await replay(t, steps, { clients: [client] });
      client.socket.end();
      await client.ended;
      const answers = client.frames.filter(({ type }) => type !== TYPE.close);
      t.equal(answers.length, answersIn(steps), 'and sends nothing else');
    });
  }
});

t.test('a closed replica answers as Longhorn does', { skip }, async (t) => {
  const steps = stepsOf(load('replica-not-open')[0] as Recording);
  const served = await serve(t, []);
  await served.replica.close();
  const client = await connect(t, served.socketPath);
  await replay(t, steps, { clients: [client] });
});

t.test(
  'a replica that is closed and stopped ends its connections as Longhorn does',
  { skip },
  async (t) => {
    const steps = stepsOf(load('replica-process-stop')[0] as Recording);
    const served = await serve(t, steps);
    const client = await connect(t, served.socketPath);
    await replay(t, steps, {
      clients: [client],
      before: async (step) => {
        if (step.note?.includes('ReplicaClose') === true) await served.replica.close();
      },
    });
    await served.server.close();
    await client.ended;
    t.equal(client.frames.length, answersIn(steps), 'nothing but answers was sent');
  },
);

t.test('a wrong magic ends the connection without an answer', { skip }, async (t) => {
  const steps = stepsOf(load('replica-wrong-magic')[0] as Recording);
  const served = await serve(t, steps);
  const [client, other] = [
    await connect(t, served.socketPath),
    await connect(t, served.socketPath),
  ];
  await replay(t, steps, { clients: [client] });
  await client.ended;
  t.equal(client.frames.length, answersIn(steps));
  const ping = await other.request({ seq: 9, type: TYPE.ping });
  t.equal(ping.type, TYPE.response, 'other connections live on');
});

t.test(
  'a write past the end, which crashes Longhorn, is refused and changes nothing',
  { skip },
  async (t) => {
    for (const name of ['write-beyond-end', 'write-straddle-end']) {
      const steps = stepsOf(load(`replica-${name}`)[0] as Recording);
      const served = await serve(t, steps);
      const client = await connect(t, served.socketPath);
      await replay(t, steps, { clients: [client] });
      const refused = await client.answer(2);
      t.equal(refused.type, TYPE.error, name);
      t.equal(
        refused.data.toString(),
        'unexpected EOF',
        'with the text of other ranges past the end',
      );
      const ping = await client.request({ seq: 3, type: TYPE.ping });
      t.equal(ping.type, TYPE.response, 'the replica lives');
      const end = {
        seq: 4,
        type: TYPE.read,
        offset: VOLUME_BYTES - SECTOR_BYTES,
        size: SECTOR_BYTES,
      };
      const last = await client.request(end);
      t.ok(last.data.equals(Buffer.alloc(SECTOR_BYTES)), 'the last sector is as it was');
    }
  },
);

t.test(
  'what a Longhorn controller sends over two connections is answered alike',
  { skip },
  async (t) => {
    const steps = interleavedSteps(load('go-controller-to-replica'));
    const served = await serve(t, steps);
    const clients = [await connect(t, served.socketPath), await connect(t, served.socketPath)];
    await replay(t, steps, {
      clients,
      before: async (step) => {
        // The recording's snapshot, taken over gRPC after the trim.
        if (step.seq !== 9) return;
        await served.replica.snapshot({
          name: 'recorded',
          userCreated: true,
          created: '2026-11-22T10:00:00Z',
          labels: {},
        });
      },
    });
  },
);

t.test('an engine answers on its socket as Longhorn does', { skip }, async (t) => {
  const steps = stepsOf(load('frontend-socket')[0] as Recording);
  const stack = await ProcessStack.create({ size: '16m' });
  t.teardown(() => stack.stop());
  await stack.startReplicas(2);
  await stack.startEngine(stack.replicas, ['--frontend', 'socket']);
  const client = await connect(t, join(stack.directory, 'longhorn-vol.sock'));
  const { bytes, sectors } = derivedContent(steps, VOLUME_BYTES);
  for (const sector of sectors) {
    const offset = sector * SECTOR_BYTES;
    const data = bytes.subarray(offset, offset + SECTOR_BYTES);
    const written = await client.request({ seq: 1000 + sector, type: TYPE.write, offset, data });
    t.equal(written.type, TYPE.response);
  }
  await replay(t, steps, { clients: [client] });

  const shutdown = stepsOf(load('frontend-shutdown')[0] as Recording);
  const other = await connect(t, join(stack.directory, 'longhorn-vol.sock'));
  await replay(t, shutdown, { clients: [other] });
  const ending = await stack.engine?.end();
  await other.ended;
  t.equal(other.frames.length, answersIn(shutdown), 'a stopping engine just ends connections');
  t.match(ending, { code: 0 });
});

t.test('an engine whose only replica was killed answers as Longhorn does', { skip }, async (t) => {
  const steps = stepsOf(load('frontend-no-backend')[0] as Recording);
  const stack = await ProcessStack.create({ size: '16m' });
  t.teardown(() => stack.stop());
  await stack.startReplicas(1);
  const engine = await stack.startEngine(stack.replicas, ['--frontend', 'socket']);
  const client = await connect(t, join(stack.directory, 'longhorn-vol.sock'));
  // Longhorn's controller had not noticed the death yet and answered write 2 with its connection's
  // end. Ours is waited for, so it has: the text of what follows.
  const text = 'no backend available';
  const late = frame({ seq: 2, type: TYPE.error, data: Buffer.from(text) });
  await replay(t, replaceAnswer(steps, 2, late), {
    clients: [client],
    before: async (step) => {
      if (step.note?.includes('SIGKILL') !== true) return;
      await stack.replicas[0]?.daemon?.end('SIGKILL');
      await engine.event('replica.mode.changed');
    },
  });
});

function replaceAnswer(steps: readonly Step[], seq: number, bytes: Buffer): Step[] {
  return steps.map((step) => (step.dir === 's2c' && step.seq === seq ? { ...step, bytes } : step));
}

t.test('an engine tells of a full disk as Longhorn does, and goes on', { skip }, async (t) => {
  const steps = stepsOf(load('frontend-enospc')[0] as Recording);
  const sizeBytes = 32 * MIB;
  const slab = createSlab(nativeTransportBytes());
  const transport = createNativeTransport({ slab, clock: realClock });
  t.teardown(() => transport.shutdown());
  const replica = new MemoryReplica('tcp://127.0.0.1:10000', slab, sizeBytes);
  replica.device.content.set(derivedContent(steps, sizeBytes).bytes);
  replica.device.failWith = ({ op }) =>
    op === BLOCK_OP.write ? new StorageError('NO_SPACE', 'write x: no space left on device') : null;
  const engine = new Engine({
    newId: randomUUID,
    random: () => 0.5,
    settings: ENGINE_SETTINGS,
    connector: memoryConnector([replica]),
    slab,
    clock: realClock,
    log: silentLogger,
  });
  const { address } = replica;
  await engine.start({ addresses: [address], sizeBytes, currentSizeBytes: sizeBytes });
  const directory = await mkdtemp(join(tmpdir(), 'longhorn-socket-'));
  const path = join(directory, 'volume.sock');
  const { volume } = engine;
  const server = await startSocketFrontend({
    transport,
    path,
    device: volume,
    clock: realClock,
    log: silentLogger,
  });
  t.teardown(async () => {
    await server.close();
    await rm(directory, { recursive: true });
  });
  await replay(t, steps, { clients: [await connect(t, path)] });
});

const ENGINE_SETTINGS = {
  volumeName: 'vol',
  frontendName: '',
  isUpgrade: false,
  revisionCounterDisabled: true,
  salvageRequested: false,
  replicaTimeoutMs: 8000,
  unmapMarkSnapChainRemoved: false,
  snapshotMaxCount: 250,
  snapshotMaxBytes: 0,
  rebuildConcurrentSyncLimit: 1,
};

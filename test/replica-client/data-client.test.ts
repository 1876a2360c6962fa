// The engine's end of the data protocol: against the real frame server over native sockets where
// the peer behaves, over a connection in memory where the test must decide what arrives when.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import {
  BLOCK_OP,
  type BlockDevice,
  BlockRequest,
  submitAndWait,
} from '../../src/core/block-device.js';
import { realClock } from '../../src/core/clock-real.js';
import type { StorageError } from '../../src/core/errors.js';
import { StorageError as Failure } from '../../src/core/errors.js';
import { silentLogger } from '../../src/core/log.js';
import { NO_BUFFER, type Slab } from '../../src/core/slab.js';
import { KIB, MIB } from '../../src/core/units.js';
import { createSlab } from '../../src/disk/native-disk.js';
import type { FrameServerPolicy } from '../../src/frame-server/policy.js';
import { startFrameServer } from '../../src/frame-server/server.js';
import { DataClient } from '../../src/replica-client/data-client.js';
import { reserveZeroRegion, type ZeroRegion } from '../../src/replica-client/zeroes-as-data.js';
import type { Connection } from '../../src/transport/connection.js';
import {
  createNativeTransport,
  nativeTransportBytes,
} from '../../src/transport/native-transport.js';
import { ALL_CAPABILITIES } from '../../src/wire/replica/constants.js';
import { type Frame, frame, parseFrames, TYPE } from '../support/frame-client.js';
import { ManualClock } from '../support/manual-clock.js';
import { createTestSlab, MemoryConnection } from '../support/memory-connection.js';
import { MemoryDevice } from '../support/memory-device.js';

const ADDRESS = 'tcp://replica:1';
const DEVICE_BYTES = 8 * MIB;
const NO_CAPABILITIES: readonly string[] = [];
const EXTENSION_FIRST = 0x4c00;

interface RigOptions {
  readonly engineGeneration?: number;
  readonly capabilities?: readonly string[];
  readonly silenceMaxMs?: () => number;
}

/** A client, what its owner was told, and the end of every request. */
class Rig {
  readonly clock = new ManualClock();
  readonly failures: StorageError[] = [];
  readonly client: DataClient;
  readonly slab: Slab;
  private readonly buffer: number;

  constructor(connection: Connection, zeroRegion: ZeroRegion, options: RigOptions = {}) {
    this.slab = connection.slab;
    this.buffer = this.slab.allocate(MIB);
    this.client = new DataClient({
      connection,
      address: ADDRESS,
      sizeBytes: DEVICE_BYTES,
      capabilities: options.capabilities ?? ALL_CAPABILITIES,
      clock: this.clock,
      zeroRegion,
      engineGeneration: options.engineGeneration ?? 0,
      silenceMaxMs: options.silenceMaxMs ?? (() => 8000),
      failed: (error) => this.failures.push(error),
    });
  }

  /** Rejects with the request's error. Every request uses the same buffer. */
  run(fields: Partial<BlockRequest>): Promise<BlockRequest> {
    const request = { offsetBytes: 0, lengthBytes: 4096, bufferOffset: this.buffer, ...fields };
    const done = submitAndWait(this.client, request);
    done.catch(() => undefined);
    return done;
  }

  fill(value: number): void {
    this.slab.bytes.fill(value, this.buffer, this.buffer + MIB);
  }

  filled(lengthBytes: number): Uint8Array {
    return this.slab.bytes.subarray(this.buffer, this.buffer + lengthBytes);
  }
}

const testSlab = createTestSlab(40);
const testZeroes = { offset: testSlab.allocate(64 * KIB), lengthBytes: 64 * KIB };

class MemoryRig extends Rig {
  readonly connection: MemoryConnection;

  constructor(options: RigOptions = {}) {
    const connection = new MemoryConnection(testSlab);
    super(connection, testZeroes, options);
    this.connection = connection;
  }

  sent(): Frame[] {
    return parseFrames(Buffer.from(this.connection.take())).frames;
  }
}

interface Served extends Rig {
  readonly device: MemoryDevice;
  readonly serverClock: ManualClock;
  /** Resolves with the next ping that the server sees. */
  nextPing(): Promise<void>;
  endServer(): Promise<void>;
}

async function servedRig(t: Test, options: RigOptions = {}): Promise<Served> {
  const slab = createSlab(nativeTransportBytes() + MIB);
  const transport = createNativeTransport({ slab, clock: realClock });
  const directory = await mkdtemp(join(tmpdir(), 'longhorn-client-'));
  const endpoint = { kind: 'unix', path: join(directory, 'data.sock') } as const;
  const device = new MemoryDevice({ slab, sizeBytes: DEVICE_BYTES });
  let pinged: () => void = () => undefined;
  const policy: FrameServerPolicy = {
    ping: () => {
      pinged();
      return null;
    },
    errorType: () => TYPE.error,
    errorText: (error) => error.message,
    clipsUnmap: true,
    extensions: (options.capabilities ?? ALL_CAPABILITIES).length > 0,
  };
  const log = silentLogger;
  const clock = new ManualClock();
  const server = await startFrameServer({ transport, endpoint, device, policy, clock, log });
  const connection = await transport.connect(endpoint, 5000);
  const rig = new Rig(connection, reserveZeroRegion(slab), options);
  t.teardown(async () => {
    rig.client.disconnect();
    device.release();
    await server.close();
    await transport.shutdown();
    await rm(directory, { recursive: true });
  });
  return Object.assign(rig, {
    device,
    serverClock: clock,
    nextPing: () => new Promise<void>((resolve) => (pinged = resolve)),
    endServer: () => server.close(),
  });
}

t.test('every operation works against the real server', async (t) => {
  const rig = await servedRig(t);
  rig.fill(7);
  await rig.run({ op: BLOCK_OP.write, lengthBytes: MIB });
  await rig.run({ op: BLOCK_OP.write, offsetBytes: 4 * MIB, lengthBytes: 512, fua: true });
  t.equal(rig.device.fuaCount, 1);
  await rig.run({ op: BLOCK_OP.flush, lengthBytes: 0 });
  t.equal(rig.device.countOf(BLOCK_OP.flush), 1);
  await rig.run({ op: BLOCK_OP.unmap, lengthBytes: 8192 });
  await rig.run({ op: BLOCK_OP.writeZeroes, offsetBytes: 8192, lengthBytes: 4096 });
  await rig.run({ op: BLOCK_OP.read, lengthBytes: 16384 });
  t.ok(Buffer.alloc(12288).equals(rig.filled(12288)));
  t.ok(Buffer.alloc(4096, 7).equals(rig.filled(16384).subarray(12288)));
  const { resultBytes } = await rig.run({ op: BLOCK_OP.extents, lengthBytes: 65536 });
  t.equal(resultBytes, 16, 'a hole and data');
  t.equal(rig.client.inFlightCount, 0);
});

t.test('an error of the replica fails the request alone, with a code by its text', async (t) => {
  const rig = await servedRig(t);
  rig.device.failWith = () => new Failure('NO_SPACE', 'write x: no space left on device');
  await t.rejects(rig.run({ op: BLOCK_OP.write }), { code: 'NO_SPACE' });
  rig.device.failWith = () => new Failure('IO_ERROR', 'read x: input/output error');
  await t.rejects(rig.run({ op: BLOCK_OP.read }), {
    code: 'PEER_ERROR',
    message: 'read x: input/output error',
  });
  rig.device.failWith = null;
  await rig.run({ op: BLOCK_OP.read });
  t.strictSame(rig.failures, []);
});

t.test('a replica is pinged 2 s after it answered', async (t) => {
  const rig = await servedRig(t);
  for (let i = 0; i < 3; i++) {
    const ping = rig.nextPing();
    rig.clock.advance(2000);
    await ping;
    // An answer after the ping's own: the ping is over.
    await rig.run({ op: BLOCK_OP.read });
  }
  const quiet = new MemoryRig();
  quiet.clock.advance(1999);
  t.equal(quiet.sent().length, 0);
  quiet.clock.advance(1);
  t.match(quiet.sent(), [{ seq: 0, type: TYPE.ping, size: 0 }]);
  quiet.clock.advance(2000);
  quiet.clock.advance(2000);
  t.equal(quiet.sent().length, 0, 'one ping at a time');
  quiet.connection.push(frame({ seq: 0, type: TYPE.response }));
  quiet.clock.advance(2000);
  t.equal(quiet.sent().length, 1);
  quiet.client.disconnect();
});

t.test('a replica that answers no ping is lost after the time-out', async (t) => {
  const rig = new MemoryRig();
  for (let ms = 0; ms < 2000 + 8000; ms += 500) rig.clock.advance(500);
  t.strictSame(rig.failures, []);
  for (let ms = 0; ms < 2000; ms += 500) rig.clock.advance(500);
  t.match(rig.failures, [{ code: 'TIMEOUT', message: `${ADDRESS}: ping timeout` }]);
  t.equal(rig.clock.pendingCount, 0, 'no timer is left');
});

/** Lets time pass while the replica answers every ping and nothing else. */
function passPinged(rig: MemoryRig, totalMs: number): void {
  for (let ms = 0; ms < totalMs && rig.failures.length === 0; ms += 500) {
    rig.clock.advance(500);
    const pings = rig.sent().filter(({ type }) => type === TYPE.ping);
    for (const { seq } of pings) rig.connection.push(frame({ seq, type: TYPE.response }));
  }
}

t.test('a replica whose disk hangs is lost although it answers pings', async (t) => {
  for (const silenceMaxMs of [8000, 16_000]) {
    const rig = new MemoryRig({ silenceMaxMs: () => silenceMaxMs });
    passPinged(rig, 60_000);
    t.strictSame(rig.failures, [], 'without requests it may be silent');
    const write = rig.run({ op: BLOCK_OP.write });
    passPinged(rig, silenceMaxMs);
    t.strictSame(rig.failures, [], `${silenceMaxMs} ms are not too long`);
    passPinged(rig, 2000);
    t.match(rig.failures, [{ code: 'TIMEOUT', message: `${ADDRESS}: r/w timeout` }]);
    await t.rejects(write, { code: 'TIMEOUT' });
    t.equal(rig.client.inFlightCount, 0);
    t.equal(rig.clock.pendingCount, 0);
  }
});

t.test('any answer to a request is a sign of life', async (t) => {
  const rig = new MemoryRig();
  const first = rig.run({ op: BLOCK_OP.write });
  const second = rig.run({ op: BLOCK_OP.write });
  passPinged(rig, 7000);
  rig.connection.push(frame({ seq: 1, type: TYPE.response, size: 4096 }));
  await first;
  passPinged(rig, 7000);
  rig.connection.push(frame({ seq: 2, type: TYPE.response, size: 4096 }));
  await second;
  t.strictSame(rig.failures, []);
  rig.client.disconnect();
});

t.test('a connection cut with requests in flight fails each of them once', async (t) => {
  const rig = await servedRig(t);
  rig.device.isHolding = true;
  const endings = new Map<number, number>();
  const requests = Array.from({ length: 40 }, (_, tag) => {
    const request = new BlockRequest();
    const op = tag % 2 === 0 ? BLOCK_OP.read : BLOCK_OP.write;
    Object.assign(request, { op, offsetBytes: 0, lengthBytes: 4096, bufferOffset: 0, tag });
    request.bufferOffset = rig.slab.allocate(4096);
    return request;
  });
  const allDone = new Promise<void>((resolve) => {
    let left = requests.length;
    for (const request of requests) {
      request.owner = {
        blockRequestDone: ({ tag }, error) => {
          endings.set(tag, (endings.get(tag) ?? 0) + 1);
          if (error === null) t.fail('nothing was answered');
          if (--left === 0) resolve();
        },
      };
    }
  });
  const arrived = rig.nextPing();
  for (const request of requests) rig.client.submit(request);
  rig.clock.advance(2000);
  await arrived;
  t.equal(rig.device.held.length, requests.length);
  void rig.endServer();
  rig.device.failWith = () => new Failure('IO_ERROR', 'too late');
  rig.client.disconnect();
  await allDone;
  t.ok([...endings.values()].every((count) => count === 1));
  await t.rejects(rig.run({ op: BLOCK_OP.read }), { code: 'CLOSED' }, 'and what comes later too');
});

t.test('the end of the peer is told to the owner once, before the requests fail', async (t) => {
  const rig = new MemoryRig();
  let toldFirst = false;
  const read = rig.run({ op: BLOCK_OP.read });
  read.catch(() => (toldFirst = rig.failures.length === 1));
  rig.connection.vanish();
  await t.rejects(read, { code: 'CONNECTION_LOST', message: `${ADDRESS}: EOF` });
  t.ok(toldFirst);
  rig.client.disconnect();
  t.equal(rig.failures.length, 1);
});

t.test('a request is done when it was answered and its payload was sent', async (t) => {
  const rig = new MemoryRig();
  let isDone = false;
  const write = rig.run({ op: BLOCK_OP.write }).then(() => (isDone = true));
  rig.connection.push(frame({ seq: 1, type: TYPE.response, size: 4096 }));
  await Promise.resolve();
  t.equal(rig.client.inFlightCount, 1);
  t.notOk(isDone, 'the kernel may still read the payload');
  rig.sent();
  await write;
  t.equal(rig.client.inFlightCount, 0);
  rig.client.disconnect();
});

t.test('an EOF frame and unknown answers fail or disturb nothing else', async (t) => {
  const rig = new MemoryRig();
  const read = rig.run({ op: BLOCK_OP.read });
  const other = rig.run({ op: BLOCK_OP.write });
  rig.sent();
  rig.connection.push(frame({ seq: 1, type: TYPE.eof, data: Buffer.alloc(100) }));
  await t.rejects(read, { code: 'PEER_ERROR' });
  rig.connection.push(frame({ seq: 1, type: TYPE.response, data: Buffer.alloc(4096) }));
  rig.connection.push(frame({ seq: 700, type: TYPE.error, data: Buffer.from('nobody asked') }));
  rig.connection.push(frame({ seq: 2, type: TYPE.response, size: 4096 }));
  await other;
  t.strictSame(rig.failures, []);
  rig.client.disconnect();
});

t.test('requests beyond the header memory wait and leave in order', async (t) => {
  const rig = new MemoryRig();
  const count = 3000;
  const done = Array.from({ length: count }, (_, i) =>
    rig.run({ op: BLOCK_OP.unmap, offsetBytes: i * 512, lengthBytes: 512 }),
  );
  t.equal(rig.client.inFlightCount, count);
  const sent = rig.sent();
  t.strictSame(
    sent.map(({ offset }) => Number(offset)),
    done.map((_, i) => i * 512),
  );
  for (const { seq } of sent) rig.connection.push(frame({ seq, type: TYPE.response }));
  await Promise.all(done);
  t.equal(rig.client.inFlightCount, 0);
  rig.client.disconnect();
});

t.test('a durable write to a replica that only flushes is a write and a flush', async (t) => {
  for (const op of [BLOCK_OP.write, BLOCK_OP.unmap]) {
    const rig = new MemoryRig({ capabilities: ['flush'] });
    const write = rig.run({ op, fua: true });
    const [first] = rig.sent();
    t.equal(first?.type, op === BLOCK_OP.write ? TYPE.write : TYPE.unmap);
    rig.connection.push(frame({ seq: first?.seq ?? 0, type: TYPE.response, size: 4096 }));
    const [flush] = rig.sent();
    t.equal(flush?.type, EXTENSION_FIRST + 2, 'the flush follows the answer');
    rig.connection.push(frame({ seq: flush?.seq ?? 0, type: TYPE.response }));
    await write;
    rig.client.disconnect();
  }
});

t.test('fua on a request that changes nothing brings no flush', async (t) => {
  const rig = await servedRig(t);
  for (const op of [BLOCK_OP.read, BLOCK_OP.extents]) await rig.run({ op, fua: true });
  t.equal(rig.device.countOf(BLOCK_OP.flush), 0);
  t.strictSame(rig.failures, [], 'nor an answer that breaks the connection');
});

t.test('the flush after a durable request waits for header memory like any frame', async (t) => {
  const rig = new MemoryRig();
  const unmap = rig.run({ op: BLOCK_OP.unmap, fua: true });
  rig.sent();
  const others = Array.from({ length: 1500 }, () => rig.run({ op: BLOCK_OP.unmap }));
  rig.connection.push(frame({ seq: 1, type: TYPE.response }));
  t.strictSame(rig.failures, [], 'a busy replica is not a broken one');
  const sent = rig.sent();
  t.equal(sent.filter(({ type }) => type === EXTENSION_FIRST + 2).length, 1);
  for (const { seq } of sent) rig.connection.push(frame({ seq, type: TYPE.response }));
  await Promise.all([unmap, ...others]);
  rig.client.disconnect();
});

t.test('a replica without extensions never sees one', async (t) => {
  const rig = new MemoryRig({ capabilities: NO_CAPABILITIES });
  await rig.run({ op: BLOCK_OP.flush, lengthBytes: 0 });
  await t.rejects(rig.run({ op: BLOCK_OP.extents }), { code: 'UNSUPPORTED' });
  const pending = [
    rig.run({ op: BLOCK_OP.write, fua: true }),
    rig.run({ op: BLOCK_OP.unmap, fua: true }),
    rig.run({ op: BLOCK_OP.writeZeroes, lengthBytes: 2 * MIB + 4096, fua: true }),
  ];
  const types: number[] = [];
  const zeroes: Buffer[] = [];
  for (let sent = rig.sent(); sent.length > 0; sent = rig.sent()) {
    for (const { seq, type, size, offset, data } of sent) {
      types.push(type);
      if (type === TYPE.write && offset + BigInt(size) > 4096n) zeroes.push(data);
      rig.connection.push(frame({ seq, type: TYPE.response, size }));
    }
  }
  await Promise.all(pending);
  t.ok(types.every((type) => type < EXTENSION_FIRST));
  t.strictSame(
    zeroes.map(({ byteLength }) => byteLength),
    [MIB, MIB, 4096],
  );
  t.ok(zeroes.every((data) => data.every((byte) => byte === 0)));
  rig.client.disconnect();
});

t.test('zeros go as data to a replica that is being rebuilt', async (t) => {
  const rig = await servedRig(t);
  rig.client.zeroesAsData = true;
  rig.fill(9);
  await rig.run({ op: BLOCK_OP.write, lengthBytes: MIB });
  await rig.run({ op: BLOCK_OP.writeZeroes, offsetBytes: 4096, lengthBytes: 3 * MIB });
  t.equal(rig.device.countOf(BLOCK_OP.writeZeroes), 0);
  await rig.run({ op: BLOCK_OP.read, lengthBytes: 8192 });
  t.ok(Buffer.alloc(4096, 9).equals(rig.filled(4096)));
  t.ok(Buffer.alloc(4096).equals(rig.filled(8192).subarray(4096)));
  t.equal(rig.device.allocated[3 * 256], 1, 'they are data there');
  const device: BlockDevice = rig.client;
  t.equal(device.sizeBytes, DEVICE_BYTES);
});

t.test('a request that hangs keeps its server from closing for ten seconds only', async (t) => {
  const rig = await servedRig(t);
  rig.device.isHolding = true;
  const hanging = t.rejects(rig.run({ op: BLOCK_OP.read, lengthBytes: 512 }), {
    code: 'CONNECTION_LOST',
  });
  while (rig.device.held.length === 0) await new Promise((resolve) => setImmediate(resolve));
  const closed = rig.endServer();
  let isClosed = false;
  void closed.then(() => {
    isClosed = true;
  });
  await new Promise((resolve) => setImmediate(resolve));
  rig.serverClock.advance(9_999);
  await new Promise((resolve) => setImmediate(resolve));
  t.equal(isClosed, false);
  while (!isClosed) {
    rig.serverClock.advance(1);
    await new Promise((resolve) => setImmediate(resolve));
  }
  await hanging;
});

t.test(
  'a connection that was lost before the client greets the replica fails like any other',
  (t) => {
    // Found by the simulator (seed 1437): the engine's process ended.
    const slab = createTestSlab();
    const connection = new MemoryConnection(slab);
    connection.header = () => NO_BUFFER;
    connection.vanish();
    const rig = new Rig(connection, { offset: 0, lengthBytes: 4096 }, { engineGeneration: 1 });
    rig.client.closed(null);
    t.match(rig.failures, [{ code: 'CONNECTION_LOST' }]);
    t.end();
  },
);

// The transmission phase under pressure: bounds on requests and memory, the order of replies, and
// what happens to requests when a client or the server goes away.

import t from 'tap';
import { BLOCK_OP } from '../../src/core/block-device.js';
import { StorageError } from '../../src/core/errors.js';
import {
  CONNECTION_REQUESTS_MAX,
  NBD_CONNECTION_PAYLOAD_BYTES_MAX,
  NBD_PARTS_MAX,
} from '../../src/core/limits.js';
import { KIB, MIB } from '../../src/core/units.js';
import { CMD, FLAG, request } from '../support/nbd-client.js';
import { ERRNO, TestClient, checkClean, createWorld, pattern } from '../support/nbd-harness.js';

t.test('512 pipelined requests are in flight together, and no more', async (t) => {
  const world = createWorld({ sizeBytes: 4 * MIB });
  const { device } = world;
  const client = TestClient.open(world);
  device.isHolding = true;
  const total = CONNECTION_REQUESTS_MAX + 100;
  const requests: Buffer[] = [];
  for (let i = 0; i < total; i++) {
    const fields =
      i % 2 === 0
        ? { command: CMD.write, cookie: i, offset: i * 4096, payload: pattern(4096, i) }
        : { command: CMD.read, cookie: i, offset: (i - 1) * 4096, length: 4096 };
    client.expect(fields);
    requests.push(request(fields));
  }
  client.connection.push(Buffer.concat(requests));
  t.equal(device.held.length, CONNECTION_REQUESTS_MAX);
  t.ok(client.connection.isPaused);
  device.isHolding = false;
  device.release();
  const replies = client.replies();
  t.equal(replies.length, total);
  t.ok(replies.every(({ error }) => error === 0));
  t.ok(replies.find(({ cookie }) => cookie === 611)?.data?.equals(pattern(4096, 610)));
  t.ok(client.connection.headerBytesMax <= 64 * KIB);
  checkClean(t, world, client);
});

t.test('replies go out in the order in which the device finishes', async (t) => {
  const world = createWorld();
  const client = TestClient.open(world);
  world.device.isHolding = true;
  for (const cookie of [1, 2, 3]) client.send({ command: CMD.flush, cookie });
  world.device.release(2);
  world.device.release(0);
  t.same(
    client.replies().map(({ cookie }) => cookie),
    [3, 1],
  );
  world.device.release();
  t.same(
    client.replies().map(({ cookie }) => cookie),
    [2],
  );
  checkClean(t, world, client);
});

t.test('a client that sends and never reads is bounded, and others are served', async (t) => {
  const world = createWorld({ sizeBytes: 64 * MIB });
  const greedy = TestClient.open(world);
  const requests: Buffer[] = [];
  for (let i = 0; i < 300; i++) {
    const length = i % 50 === 49 ? 3 * MIB : (i % 40) * 8 * KIB + 1;
    const fields = { command: CMD.read, cookie: i, offset: 0, length };
    greedy.expect(fields);
    requests.push(request(fields));
  }
  greedy.connection.push(Buffer.concat(requests));
  t.ok(greedy.connection.isPaused);
  t.ok(greedy.connection.queuedBytes() <= NBD_CONNECTION_PAYLOAD_BYTES_MAX + 64 * KIB);
  const other = TestClient.open(world);
  const read = other.call({ command: CMD.read, cookie: 1, offset: 0, length: 9 * MIB });
  t.equal(read.data?.byteLength, 9 * MIB);
  t.equal(greedy.replies().length, 300, 'when it reads, it gets everything');
  checkClean(t, world, greedy, other);
});

t.test('a request waits for a buffer when the slab has none', async (t) => {
  const world = createWorld({ sizeBytes: 16 * MIB });
  const clients = [true, false].map((structured) => TestClient.open(world, structured));
  const taken: number[] = [];
  for (;;) {
    const buffer = world.slab.allocate(1);
    if (buffer < 0) break;
    taken.push(buffer);
  }
  for (const client of clients) {
    client.send({ command: CMD.read, cookie: 1, offset: 0, length: 5 * MIB });
    client.send({ command: CMD.write, cookie: 2, offset: 0, payload: pattern(5 * MIB) });
    client.send({ command: CMD.zeroes, flags: FLAG.noHole, cookie: 3, length: 5 * MIB });
    client.send({ command: CMD.write, cookie: 4, offset: 0, payload: pattern(4096) });
    t.equal(client.replies().length, 0);
  }
  for (const buffer of taken.reverse()) world.slab.release(buffer);
  for (const client of clients) {
    const replies = client.replies();
    t.same(new Set(replies.map(({ cookie, error }) => `${cookie}:${error}`)).size, 4);
  }
  t.ok(clients.every(({ connection }) => !connection.isPaused));
  checkClean(t, world, ...clients);
});

t.test('large requests hold a bounded number of buffers', async (t) => {
  const world = createWorld({ sizeBytes: 64 * MIB });
  const client = TestClient.open(world);
  world.device.isHolding = true;
  client.send({ command: CMD.read, cookie: 1, offset: 0, length: 32 * MIB });
  t.equal(world.device.held.length, NBD_PARTS_MAX);
  world.device.release(3); // parts finish in any order
  world.device.release(1);
  t.equal(world.device.held.length, NBD_PARTS_MAX - 2, 'unsent parts count');
  client.connection.flush();
  t.equal(world.device.held.length, NBD_PARTS_MAX);
  world.device.isHolding = false;
  world.device.release();
  const first = client.replies();
  t.equal(first.length, 1);
  t.match(first[0], { error: 0, chunks: 32 });

  world.device.isHolding = true;
  client.send({ command: CMD.write, cookie: 2, offset: 0, payload: pattern(32 * MIB) });
  t.equal(world.device.held.length, NBD_CONNECTION_PAYLOAD_BYTES_MAX / MIB);
  world.device.isHolding = false;
  world.device.release();
  t.match(client.replies(), [{ error: 0, cookie: 2 }]);
  t.ok(pattern(32 * MIB).equals(world.device.content.subarray(0, 32 * MIB)));
  checkClean(t, world, client);
});

t.test('a write reaches the device only when its payload is complete', async (t) => {
  const world = createWorld();
  const payload = pattern(64 * KIB);
  const bytes = request({ command: CMD.write, cookie: 1, offset: 0, payload });
  for (const length of [10, 28, 29, 5000, 20_000, bytes.byteLength - 1]) {
    const client = TestClient.open(world);
    client.connection.push(bytes.subarray(0, length));
    checkClean(t, world, client);
  }
  t.equal(world.device.countOf(BLOCK_OP.write), 0);
});

t.test('what was submitted runs to its end after the client vanished', async (t) => {
  const world = createWorld({ sizeBytes: 16 * MIB });
  const client = TestClient.open(world);
  world.device.isHolding = true;
  client.send({ command: CMD.write, cookie: 1, offset: 0, payload: pattern(4096) });
  client.send({ command: CMD.read, cookie: 2, offset: 0, length: 4096 });
  client.send({ command: CMD.read, cookie: 3, offset: 0, length: 9 * MIB });
  client.send({ command: CMD.trim, flags: FLAG.fua, cookie: 4, offset: 8192, length: 4096 });
  const large = request({ command: CMD.write, cookie: 5, offset: MIB, payload: pattern(4 * MIB) });
  client.connection.push(large.subarray(0, 2.5 * MIB));
  world.device.release(1);
  client.connection.vanish(new StorageError('CONNECTION_LOST', 'gone'));
  t.equal(client.ended, undefined, 'not before the device is done');
  world.device.release();
  t.match(client.ended, { code: 'CONNECTION_LOST' });
  t.ok(pattern(4096).equals(world.device.content.subarray(0, 4096)));
  t.equal(world.device.held.length, 0, 'nothing new was started');
  t.equal(world.buffersInUse(), 0);
});

t.test('DISC ends the connection once everything before it is answered', async (t) => {
  const world = createWorld();
  const client = TestClient.open(world);
  world.device.isHolding = true;
  client.send({ command: CMD.flush, cookie: 1 });
  client.connection.push(
    Buffer.concat([request({ command: CMD.disc, cookie: 0 }), Buffer.alloc(100, 1)]),
  );
  t.equal(client.connection.isEnding, false);
  world.device.release();
  t.match(client.replies(), [{ cookie: 1, error: 0 }]);
  t.equal(client.ended, null);
  const idle = TestClient.open(world);
  idle.send({ command: CMD.disc, cookie: 0 });
  idle.connection.take();
  t.equal(idle.ended, null);
  t.equal(world.buffersInUse(), 0);
});

t.test('stopping answers what is in flight, refuses what comes, then ends', async (t) => {
  const world = createWorld();
  const idle = TestClient.open(world);
  const busy = TestClient.open(world);
  const early = new TestClient(world);
  world.device.isHolding = true;
  busy.send({ command: CMD.flush, cookie: 1 });
  for (const client of [idle, busy, early]) client.served.stop();
  idle.connection.take();
  t.equal(idle.ended, null);
  t.equal(early.ended, null);
  busy.send({ command: CMD.read, cookie: 2, offset: 0, length: 4096 });
  busy.send({ command: CMD.write, cookie: 3, offset: 0, payload: pattern(40_000) });
  t.match(busy.replies(), [
    { cookie: 2, error: ERRNO.ESHUTDOWN },
    { cookie: 3, error: ERRNO.ESHUTDOWN },
  ]);
  t.equal(busy.ended, undefined);
  world.device.release();
  t.match(busy.replies(), [{ cookie: 1, error: 0 }]);
  t.equal(busy.ended, null);
  t.equal(world.buffersInUse(), 0);
});

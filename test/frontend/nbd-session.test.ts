// The transmission phase over a memory connection: each rule of proto.md, each bound on memory, and
// what happens to requests when a client or the server goes away.

import t, { type Test } from 'tap';
import { BLOCK_OP } from '../../src/core/block-device.js';
import { StorageError } from '../../src/core/errors.js';
import {
  CONNECTION_REQUESTS_MAX,
  NBD_CONNECTION_PAYLOAD_BYTES_MAX,
  NBD_PARTS_MAX,
} from '../../src/core/limits.js';
import { KIB, MIB } from '../../src/core/units.js';
import { CMD, FLAG, request } from '../support/nbd-client.js';
import { TestClient, createWorld, type World } from '../support/nbd-harness.js';

const ERRNO = {
  EPERM: 1,
  EIO: 5,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
};
const BOTH = [true, false];
const nameOf = (structured: boolean): string => (structured ? 'structured' : 'simple');

function pattern(length: number, seed = 1): Buffer {
  const bytes = Buffer.alloc(length);
  for (let i = 0; i < length; i++) bytes[i] = (i * 31 + seed * 17 + (i >> 8)) & 0xff;
  return bytes;
}

/** Ends the client and checks that every buffer came back. */
function checkClean(t: Test, world: World, ...clients: TestClient[]): void {
  for (const client of clients) {
    client.connection.vanish();
    t.not(client.ended, undefined, 'the connection ended');
  }
  t.equal(world.buffersInUse(), 0, 'no buffer leaked');
}

for (const structured of BOTH) {
  t.test(`what was written is read, with ${nameOf(structured)} replies`, async (t) => {
    const world = createWorld({ sizeBytes: 64 * MIB });
    const client = TestClient.open(world, structured);
    const lengths = [1, 511, 4096, 5000, 16 * KIB, 100_000, MIB, MIB + 1, 5 * MIB + 13, 32 * MIB];
    for (const [index, length] of lengths.entries()) {
      const offset = index * 777;
      const payload = pattern(length, index);
      const written = client.call({ command: CMD.write, cookie: 1, offset, payload });
      t.match(written, { cookie: 1, error: 0, chunks: 0 }, `write ${length}`);
      const read = client.call({ command: CMD.read, cookie: 2, offset, length });
      t.equal(read.error, 0);
      t.ok(read.data?.equals(payload), `read ${length}`);
      t.equal(read.chunks, structured ? Math.ceil(length / MIB) : 0);
    }
    checkClean(t, world, client);
  });
}

t.test('replies are the bytes of proto.md', async (t) => {
  const world = createWorld();
  const sent = (client: TestClient, bytes: Buffer): string => {
    client.connection.push(bytes);
    return Buffer.from(client.connection.take()).toString('hex');
  };
  const structured = TestClient.open(world);
  const cookie = 'c0ffee0000000005';
  const payload = Buffer.from('abcd');
  t.equal(
    sent(structured, request({ command: CMD.write, cookie: 5, offset: 8, payload })),
    '67446698' + '00000000' + cookie,
  );
  t.equal(
    sent(structured, request({ command: CMD.read, cookie: 5, offset: 8, length: 4 })),
    '668e33ef' + '0001' + '0001' + cookie + '0000000c' + '0000000000000008' + '61626364',
  );
  t.equal(
    sent(structured, request({ command: CMD.read, cookie: 5, offset: MIB, length: 4 })),
    '668e33ef' + '0001' + '8001' + cookie + '00000006' + '00000016' + '0000',
  );
  t.equal(
    sent(structured, request({ command: CMD.status, cookie: 5, length: 8192 })),
    '668e33ef' +
      ('0001' + '0005' + cookie + '00000014' + '00000001') +
      ('00001000' + '00000000' + '00001000' + '00000003'),
  );
  const simple = TestClient.open(world, false);
  t.equal(
    sent(simple, request({ command: CMD.read, cookie: 5, offset: 8, length: 4 })),
    '67446698' + '00000000' + cookie + '61626364',
  );
  t.equal(
    sent(simple, request({ command: CMD.read, cookie: 5, offset: MIB, length: 4 })),
    '67446698' + '00000016' + cookie,
  );
  checkClean(t, world, structured, simple);
});

t.test('every broken rule has its error, and the connection lives', async (t) => {
  const sizeBytes = 40 * MIB;
  const end = sizeBytes;
  const cases: [string, Parameters<TestClient['call']>[0], number][] = [
    ['unknown command', { command: 9, cookie: 1 }, ERRNO.EINVAL],
    ['unknown command', { command: 0xffff, cookie: 1 }, ERRNO.EINVAL],
    ['unknown flag', { command: CMD.read, flags: 64, cookie: 1, length: 1 }, ERRNO.EINVAL],
    ['payload length flag', { command: CMD.status, flags: 32, cookie: 1, length: 1 }, ERRNO.EINVAL],
    [
      'DF on a write',
      { command: CMD.write, flags: 4, cookie: 1, payload: pattern(9) },
      ERRNO.EINVAL,
    ],
    ['NO_HOLE on a trim', { command: CMD.trim, flags: 2, cookie: 1, length: 1 }, ERRNO.EINVAL],
    ['REQ_ONE on a read', { command: CMD.read, flags: 8, cookie: 1, length: 1 }, ERRNO.EINVAL],
    ['FAST_ZERO on a cache', { command: CMD.cache, flags: 16, cookie: 1, length: 1 }, ERRNO.EINVAL],
    ['flush with a length', { command: CMD.flush, cookie: 1, length: 1 }, ERRNO.EINVAL],
    ['flush with an offset', { command: CMD.flush, cookie: 1, offset: 1n << 40n }, ERRNO.EINVAL],
    ['empty read', { command: CMD.read, cookie: 1, length: 0 }, ERRNO.EINVAL],
    ['empty write', { command: CMD.write, cookie: 1, length: 0 }, ERRNO.EINVAL],
    ['empty trim', { command: CMD.trim, cookie: 1, length: 0 }, ERRNO.EINVAL],
    ['empty status', { command: CMD.status, cookie: 1, length: 0 }, ERRNO.EINVAL],
    [
      'read past the end',
      { command: CMD.read, cookie: 1, offset: end - 1, length: 2 },
      ERRNO.EINVAL,
    ],
    ['cache past the end', { command: CMD.cache, cookie: 1, offset: end, length: 1 }, ERRNO.EINVAL],
    [
      'status past the end',
      { command: CMD.status, cookie: 1, offset: end, length: 1 },
      ERRNO.EINVAL,
    ],
    [
      'write past the end',
      { command: CMD.write, cookie: 1, offset: end - 8, payload: pattern(9) },
      ERRNO.ENOSPC,
    ],
    [
      'large write past the end',
      { command: CMD.write, cookie: 1, offset: end - 8, payload: pattern(3 * MIB) },
      ERRNO.ENOSPC,
    ],
    ['trim past the end', { command: CMD.trim, cookie: 1, offset: end, length: 1 }, ERRNO.ENOSPC],
    [
      'zeroes past the end',
      { command: CMD.zeroes, cookie: 1, offset: end, length: 1 },
      ERRNO.ENOSPC,
    ],
    [
      'an offset beyond 2^53',
      { command: CMD.write, cookie: 1, offset: 0xffff_ffff_ffff_ffffn, payload: pattern(5) },
      ERRNO.ENOSPC,
    ],
    ['read above 32 MiB', { command: CMD.read, cookie: 1, length: 32 * MIB + 1 }, ERRNO.EINVAL],
    [
      'unfragmented read above 1 MiB',
      { command: CMD.read, flags: 4, cookie: 1, length: MIB + 1 },
      ERRNO.EOVERFLOW,
    ],
    [
      'fast zeroes that would not be fast',
      { command: CMD.zeroes, flags: 16, cookie: 1, offset: 1, length: 4096 },
      ERRNO.ENOTSUP,
    ],
    [
      'fast zeroes that must be allocated',
      { command: CMD.zeroes, flags: 18, cookie: 1, offset: 0, length: 4096 },
      ERRNO.ENOTSUP,
    ],
  ];
  const world = createWorld({ sizeBytes, zeroesFast: true });
  const client = TestClient.open(world);
  for (const [name, fields, error] of cases) {
    t.match(client.call({ offset: 0, ...fields }), { cookie: 1, error }, name);
  }
  t.equal(world.device.countOf(BLOCK_OP.write), 0, 'nothing reached the device');
  t.match(client.call({ command: CMD.cache, cookie: 3, length: 4096 }), { error: 0 });
  t.match(client.call({ command: CMD.zeroes, flags: 16, cookie: 3, length: 4096 }), { error: 0 });
  t.match(client.call({ command: CMD.read, flags: 5, cookie: 3, offset: 0, length: MIB }), {
    error: 0,
    chunks: 1,
  });

  const simple = TestClient.open(world, false);
  t.match(simple.call({ command: CMD.status, cookie: 1, length: 1 }), { error: ERRNO.EINVAL });
  t.match(simple.call({ command: CMD.read, flags: 4, cookie: 1, offset: 0, length: 1 }), {
    error: ERRNO.EINVAL,
  });
  checkClean(t, world, client, simple);
});

t.test('a read-only export refuses what alters it with EPERM', async (t) => {
  const world = createWorld({ readOnly: true });
  const client = TestClient.open(world);
  const payload = pattern(10);
  t.match(client.call({ command: CMD.write, cookie: 1, payload }), { error: ERRNO.EPERM });
  t.match(client.call({ command: CMD.trim, cookie: 1, length: 1 }), { error: ERRNO.EPERM });
  t.match(client.call({ command: CMD.zeroes, cookie: 1, length: 1 }), { error: ERRNO.EPERM });
  t.match(client.call({ command: CMD.flush, cookie: 1 }), { error: 0 });
  t.match(client.call({ command: CMD.read, cookie: 1, offset: 0, length: 1 }), { error: 0 });
  checkClean(t, world, client);
});

t.test('failures of the device become NBD errors by their kind', async (t) => {
  const world = createWorld({ sizeBytes: 8 * MIB });
  const client = TestClient.open(world);
  const expected = [
    ['NO_SPACE', ERRNO.ENOSPC],
    ['CONNECTION_LOST', ERRNO.EIO],
    ['NO_BACKEND', ERRNO.EIO],
    ['CHECKSUM_MISMATCH', ERRNO.EIO],
    ['BUSY', ERRNO.EIO],
    ['CLOSED', ERRNO.ESHUTDOWN],
    ['READ_ONLY', ERRNO.EPERM],
    ['NOT_ALIGNED', ERRNO.EINVAL],
    ['OUT_OF_RANGE', ERRNO.ENOSPC],
  ] as const;
  for (const [code, error] of expected) {
    world.device.failWith = () => new StorageError(code, 'injected');
    t.match(
      client.call({ command: CMD.write, cookie: 1, payload: pattern(4096) }),
      { error },
      code,
    );
    t.match(client.call({ command: CMD.write, cookie: 1, payload: pattern(3 * MIB) }), { error });
    t.match(client.call({ command: CMD.trim, cookie: 1, length: 4096 }), { error });
  }
  for (const length of [4096, 6 * MIB]) {
    world.device.failWith = () => new StorageError('IO_ERROR', 'injected');
    const read = { command: CMD.read, cookie: 1, offset: 0, length };
    t.match(client.call(read), { error: ERRNO.EIO });
    t.match(client.call({ command: CMD.flush, cookie: 1 }), { error: ERRNO.EIO });
    t.match(client.call({ command: CMD.status, cookie: 1, length: 4096 }), { error: ERRNO.EIO });
    world.device.failWith = ({ offsetBytes }) =>
      offsetBytes > 0 ? new StorageError('IO_ERROR', 'injected') : null;
    t.match(client.call(read), { error: length > MIB ? ERRNO.EIO : 0 }, 'a later part fails');
  }
  world.device.failWith = null;
  t.match(client.call({ command: CMD.flush, cookie: 1 }), { error: 0 }, 'the connection lives');
  checkClean(t, world, client);
});

t.test('after a part of a large write failed, the rest of it is not written', async (t) => {
  const world = createWorld({ sizeBytes: 16 * MIB });
  const client = TestClient.open(world);
  world.device.failWith = ({ offsetBytes }) =>
    offsetBytes === MIB ? new StorageError('IO_ERROR', 'injected') : null;
  const payload = pattern(8 * MIB);
  t.match(client.call({ command: CMD.write, cookie: 1, offset: 0, payload }), { error: ERRNO.EIO });
  t.equal(world.device.countOf(BLOCK_OP.write), 2);
  t.match(client.call({ command: CMD.flush, cookie: 2 }), { error: 0 }, 'the stream is in step');
  checkClean(t, world, client);
});

t.test('a split simple read whose later part fails breaks the connection', async (t) => {
  const world = createWorld({ sizeBytes: 8 * MIB });
  const client = TestClient.open(world, false);
  world.device.failWith = ({ offsetBytes }) =>
    offsetBytes >= MIB ? new StorageError('IO_ERROR', 'injected') : null;
  client.send({ command: CMD.read, cookie: 1, offset: 0, length: 3 * MIB });
  client.connection.take();
  t.match(client.ended, { code: 'IO_ERROR' });
  t.equal(world.buffersInUse(), 0);
});

t.test('FUA is passed on or followed by a flush', async (t) => {
  const world = createWorld({ sizeBytes: 8 * MIB });
  const { device } = world;
  const client = TestClient.open(world);
  const fua = FLAG.fua;
  client.call({ command: CMD.write, flags: fua, cookie: 1, payload: pattern(4096) });
  t.equal(device.fuaCount, 1);
  t.equal(device.countOf(BLOCK_OP.flush), 0);
  client.call({ command: CMD.write, flags: fua, cookie: 1, payload: pattern(3 * MIB) });
  t.equal(device.countOf(BLOCK_OP.flush), 1);
  client.call({ command: CMD.trim, flags: fua, cookie: 1, length: 4096 });
  t.equal(device.countOf(BLOCK_OP.flush), 2);
  client.call({ command: CMD.zeroes, flags: fua, cookie: 1, length: 4096 });
  t.equal(device.countOf(BLOCK_OP.flush), 3);
  device.failWith = ({ op }) =>
    op === BLOCK_OP.flush ? new StorageError('IO_ERROR', 'injected') : null;
  t.match(client.call({ command: CMD.trim, flags: fua, cookie: 1, length: 4096 }), {
    error: ERRNO.EIO,
  });
  checkClean(t, world, client);
});

t.test('write-zeroes may make holes unless NO_HOLE asks for written zeroes', async (t) => {
  const world = createWorld({ sizeBytes: 16 * MIB });
  const { device } = world;
  const client = TestClient.open(world);
  client.call({ command: CMD.write, cookie: 1, payload: pattern(9 * MIB) });
  const writes = device.countOf(BLOCK_OP.write);
  client.call({ command: CMD.zeroes, cookie: 1, offset: 0, length: 2 * MIB });
  t.equal(device.allocated[0], 0);
  t.equal(device.countOf(BLOCK_OP.write), writes);
  const noHole = { command: CMD.zeroes, flags: FLAG.noHole, cookie: 1 };
  t.match(client.call({ ...noHole, offset: MIB / 2, length: 8 * MIB }), { error: 0 });
  t.ok(device.content.subarray(0, 8.5 * MIB).every((byte) => byte === 0));
  t.not(device.content[8.5 * MIB + 1], 0, 'and not a byte more');
  t.ok(device.allocated.subarray(MIB / 2 / 4096, 8 * 256).every((mark) => mark === 1));
  checkClean(t, world, client);
});

t.test('block status merges, clips and may be limited to one extent', async (t) => {
  const world = createWorld({ sizeBytes: 16 * MIB });
  const client = TestClient.open(world);
  client.call({ command: CMD.write, cookie: 1, offset: MIB, payload: pattern(MIB) });
  const status = { command: CMD.status, cookie: 1, offset: 100, length: 3 * MIB };
  t.same(client.call(status).extents, [
    { length: MIB - 100, flags: 3 },
    { length: MIB, flags: 0 },
    { length: MIB + 100, flags: 3 },
  ]);
  t.same(client.call({ ...status, flags: FLAG.reqOne }).extents, [{ length: MIB - 100, flags: 3 }]);
  for (let at = 0; at < 16 * MIB; at += 8192) world.device.allocated[at / 4096] = 1;
  for (let at = 4096; at < 16 * MIB; at += 8192) world.device.allocated[at / 4096] = 0;
  const fragmented = client.call({ ...status, offset: 0, length: 16 * MIB }).extents ?? [];
  t.equal(fragmented.length, 4096);
  t.equal(new Set(fragmented.map(({ length }) => length)).size, 1);
  checkClean(t, world, client);

  const plain = createWorld({ withoutExtents: true });
  const other = TestClient.open(plain);
  t.same(other.call({ command: CMD.status, cookie: 1, length: 9999 }).extents, [
    { length: 9999, flags: 0 },
  ]);
  checkClean(t, plain, other);
});

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
  const clients = BOTH.map((structured) => TestClient.open(world, structured));
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

t.test('a wrong magic or an oversized write breaks the connection', async (t) => {
  const world = createWorld({ sizeBytes: 64 * MIB });
  const wrong = TestClient.open(world);
  const bytes = request({ command: CMD.flush, cookie: 1 });
  bytes[0] = 0;
  wrong.connection.push(bytes);
  t.match(wrong.ended, { code: 'BAD_MAGIC' });
  const large = TestClient.open(world);
  large.connection.push(request({ command: CMD.write, cookie: 1, length: 32 * MIB + 1 }));
  t.match(large.ended, { code: 'FRAME_TOO_LARGE' });
  t.equal(world.buffersInUse(), 0);
});

t.test('an expanded device is usable on the same connection', async (t) => {
  const world = createWorld({ sizeBytes: 2 * MIB });
  world.device.shrink(MIB);
  const client = TestClient.open(world);
  const write = { command: CMD.write, cookie: 1, offset: MIB, payload: pattern(4096) };
  t.match(client.call(write), { error: ERRNO.ENOSPC });
  world.device.shrink(2 * MIB);
  t.match(client.call(write), { error: 0 });
  checkClean(t, world, client);
});

// The transmission phase over a memory connection: what each command does, the reply to it, and the
// error for each broken rule of proto.md.

import t from 'tap';
import { BLOCK_OP } from '../../src/core/block-device.js';
import { StorageError } from '../../src/core/errors.js';
import { KIB, MIB } from '../../src/core/units.js';
import { CMD, FLAG, request } from '../support/nbd-client.js';
import { ERRNO, TestClient, checkClean, createWorld, pattern } from '../support/nbd-harness.js';

const BOTH = [true, false];
const nameOf = (structured: boolean): string => (structured ? 'structured' : 'simple');

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
    `6744669800000000${cookie}`,
  );
  t.equal(
    sent(structured, request({ command: CMD.read, cookie: 5, offset: 8, length: 4 })),
    `668e33ef00010001${cookie}0000000c000000000000000861626364`,
  );
  t.equal(
    sent(structured, request({ command: CMD.read, cookie: 5, offset: MIB, length: 4 })),
    `668e33ef00018001${cookie}00000006000000160000`,
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
    `6744669800000000${cookie}61626364`,
  );
  t.equal(
    sent(simple, request({ command: CMD.read, cookie: 5, offset: MIB, length: 4 })),
    `6744669800000016${cookie}`,
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

// The data protocol under every input: the codec's limits, and a server's session fed with
// streams that are cut anywhere or changed at random. Whatever comes, it either goes on or drops
// that one connection, and gives all memory back.

import assert from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { StorageError } from '../../src/core/errors.js';
import { CONNECTION_REQUESTS_MAX } from '../../src/core/limits.js';
import { NO_BUFFER } from '../../src/core/slab.js';
import { KIB, MIB } from '../../src/core/units.js';
import type { FrameServerPolicy } from '../../src/frame-server/policy.js';
import { FrameSession } from '../../src/frame-server/session.js';
import { FRAME_PAYLOAD_BYTES_MAX } from '../../src/wire/replica/constants.js';
import { decodeFrameHeader, encodeFrameHeader, FrameHeader } from '../../src/wire/replica/frame.js';
import { type FrameFields, frame, parseFrames, TYPE } from '../support/frame-client.js';
import { createTestSlab, MemoryConnection } from '../support/memory-connection.js';
import { MemoryDevice } from '../support/memory-device.js';
import {
  freeBuffers,
  mutate,
  mutationsOf,
  pieces,
  pushInPieces,
} from '../support/stream-mutation.js';

const SAFE_MAX = Number.MAX_SAFE_INTEGER;
const U32_MAX = 0xffff_ffff;
const DEVICE_BYTES = 20 * MIB;
const slab = createTestSlab(16);

const POLICY: FrameServerPolicy = {
  ping: () => null,
  errorType: () => TYPE.error,
  errorText: (error) => error.message,
  clipsUnmap: true,
  extensions: true,
};

class Peer {
  readonly connection: MemoryConnection;
  readonly session: FrameSession;
  readonly endings: (StorageError | null)[] = [];

  constructor(device: MemoryDevice, policy = POLICY) {
    this.connection = new MemoryConnection(slab);
    this.session = new FrameSession({
      connection: this.connection,
      device,
      policy,
      ended: (error) => this.endings.push(error),
    });
  }

  push(...requests: FrameFields[]): void {
    this.connection.push(Buffer.concat(requests.map(frame)));
  }

  take(): ReturnType<typeof parseFrames>['frames'] {
    return parseFrames(Buffer.from(this.connection.take())).frames;
  }
}

const ALL_FREE = freeBuffers(slab);

function newDevice(): MemoryDevice {
  const device = new MemoryDevice({ slab, sizeBytes: DEVICE_BYTES });
  for (let i = 0; i < 64 * KIB; i++) device.content[i] = i % 251;
  return device;
}

t.test(
  'a header survives encoding and decoding, and is laid out as Longhorn lays it out',
  async () => {
    const header = fc.record({
      seq: fc.nat(U32_MAX),
      type: fc.nat(U32_MAX),
      offset: fc.oneof(
        fc.integer({ min: -SAFE_MAX, max: SAFE_MAX }),
        fc.constantFrom(0, -1, -512, SAFE_MAX, -SAFE_MAX, 2 ** 32, -(2 ** 32), 2 ** 32 - 1),
      ),
      size: fc.nat(U32_MAX),
      dataBytes: fc.nat(FRAME_PAYLOAD_BYTES_MAX),
      at: fc.nat(40),
    });
    fc.assert(
      fc.property(header, ({ seq, type, offset, size, dataBytes, at }) => {
        const view = new DataView(new ArrayBuffer(80));
        encodeFrameHeader(view, at, seq, type, offset, size, dataBytes);
        const bytes = Buffer.from(view.buffer, at, 26);
        assert.equal(bytes.compare(frame({ seq, type, offset, size, dataBytes })), 0);
        const decoded = new FrameHeader();
        decodeFrameHeader(view, at, decoded);
        assert.deepEqual(
          { ...decoded },
          { seq, type, offsetBytes: offset, sizeBytes: size, dataBytes },
        );
      }),
      { numRuns: 300 },
    );
  },
);

t.test('a header beyond the limits is refused by its code', async (t) => {
  const decode = (fields: FrameFields) => (): void => {
    const bytes = frame(fields);
    const view = new DataView(bytes.buffer, bytes.byteOffset, 26);
    decodeFrameHeader(view, 0, new FrameHeader());
  };
  const fields = { seq: 1, type: TYPE.write };
  t.throws(decode({ ...fields, dataBytes: FRAME_PAYLOAD_BYTES_MAX + 1 }), {
    code: 'FRAME_TOO_LARGE',
  });
  t.throws(decode({ ...fields, dataBytes: U32_MAX }), { code: 'FRAME_TOO_LARGE' });
  t.doesNotThrow(decode({ ...fields, dataBytes: FRAME_PAYLOAD_BYTES_MAX }));
  t.throws(decode({ ...fields, offset: 2n ** 53n }), { code: 'UNSAFE_INTEGER' });
  t.throws(decode({ ...fields, offset: -(2n ** 53n) - 1n }), { code: 'UNSAFE_INTEGER' });
  t.throws(decode({ ...fields, offset: -(2n ** 63n) }), { code: 'UNSAFE_INTEGER' });
  t.throws(decode({ ...fields, magic: 0x1b02 }), { code: 'BAD_MAGIC' });
});

const CONVERSATION: FrameFields[] = [
  { seq: 1, type: TYPE.ping },
  { seq: 2, type: TYPE.write, offset: 8192, data: Buffer.alloc(600, 7) },
  { seq: 3, type: TYPE.read, offset: 8000, size: 900 },
  { seq: 4, type: 99, data: Buffer.from('payload of an unknown type, skipped') },
  { seq: 5, type: TYPE.response, data: Buffer.from('a client does not answer') },
  { seq: 6, type: TYPE.unmap, offset: 4096, size: 8192 },
  { seq: 7, type: TYPE.read, offset: 0, size: 0 },
  { seq: 8, type: TYPE.write, offset: 4096, size: 0 },
  { seq: 9, type: TYPE.read, offset: -512, size: 512 },
  { seq: 10, type: TYPE.read, offset: DEVICE_BYTES, size: 512 },
  { seq: 11, type: 0x4c01, offset: 16384, data: Buffer.alloc(300, 9) },
  { seq: 12, type: 0x4c02 },
  { seq: 13, type: 0x4c03, offset: 0, size: 4096 },
  { seq: 14, type: 0x4c04, offset: 0, size: 65536 },
  { seq: 15, type: TYPE.ping, data: Buffer.from('a ping with data') },
  { seq: 16, type: TYPE.read, offset: 0, size: 512, data: Buffer.from('a read with data') },
  { seq: 17, type: TYPE.ping },
];
const STREAM = Buffer.concat(CONVERSATION.map(frame));

t.test('a stream cut at any byte is answered like the whole one', async (t) => {
  const whole = new Peer(newDevice());
  whole.connection.push(STREAM);
  const expected = Buffer.from(whole.connection.take());
  const answered = parseFrames(expected).frames.map(({ seq }) => seq);
  t.strictSame(answered, [1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]);
  whole.connection.vanish();
  let equal = 0;
  for (let cut = 1; cut < STREAM.byteLength; cut++) {
    const peer = new Peer(newDeviceLike());
    peer.connection.push(STREAM.subarray(0, cut));
    peer.connection.push(STREAM.subarray(cut));
    if (expected.equals(peer.connection.take())) equal++;
    peer.connection.vanish();
  }
  t.equal(equal, STREAM.byteLength - 1);
  const slow = new Peer(newDevice());
  for (const byte of STREAM) slow.connection.push(Buffer.of(byte));
  t.ok(expected.equals(slow.connection.take()), 'byte by byte too');
  slow.connection.vanish();
  t.equal(freeBuffers(slab), ALL_FREE);
});

/** One device for many short sessions, back to its first content. */
const reused = newDevice();
function newDeviceLike(): MemoryDevice {
  reused.content.fill(0, 0, 64 * KIB);
  for (let i = 0; i < 64 * KIB; i++) reused.content[i] = i % 251;
  reused.allocated.fill(0);
  return reused;
}

t.test('a client that vanishes at any byte leaves nothing behind', async (t) => {
  const device = newDevice();
  for (let cut = 1; cut <= STREAM.byteLength; cut++) {
    const peer = new Peer(device);
    device.isHolding = cut % 2 === 0;
    peer.connection.push(STREAM.subarray(0, cut));
    peer.connection.vanish();
    device.isHolding = false;
    device.release();
    if (peer.endings.length !== 1) t.fail(`cut at ${cut}: ended ${peer.endings.length} times`);
  }
  t.equal(freeBuffers(slab), ALL_FREE);
});

const mutations = mutationsOf(STREAM);

t.test(
  'a changed stream ends its connection or is answered, and leaves nothing behind',
  async () => {
    const device = newDevice();
    fc.assert(
      fc.property(mutations, pieces, fc.boolean(), (changes, sizes, isHolding) => {
        const peer = new Peer(device);
        const other = new Peer(device);
        device.isHolding = isHolding;
        pushInPieces(peer.connection, mutate(STREAM, changes), sizes);
        device.isHolding = false;
        device.release();
        const { restBytes } = parseFrames(Buffer.from(peer.connection.take()));
        assert.equal(restBytes, 0, 'answers are whole frames');
        other.push({ seq: 1, type: TYPE.ping });
        assert.equal(other.take().length, 1, 'another connection lives on');
        peer.connection.vanish();
        other.connection.vanish();
        assert.equal(peer.endings.length, 1);
        assert.equal(freeBuffers(slab), ALL_FREE);
      }),
      { numRuns: 500 },
    );
  },
);

t.test('a wrong magic ends the connection without an answer', async (t) => {
  const peer = new Peer(newDevice());
  peer.push({ seq: 1, type: TYPE.ping, magic: 0x1b02 });
  t.match(peer.connection.closeError, { code: 'BAD_MAGIC' });
  t.equal(peer.take().length, 0);
  t.equal(peer.endings.length, 1);
});

t.test('an oversized frame is refused before memory is taken for it', async (t) => {
  const write = { seq: 1, type: TYPE.write, dataBytes: FRAME_PAYLOAD_BYTES_MAX + 1 };
  const read = { seq: 1, type: TYPE.read, size: FRAME_PAYLOAD_BYTES_MAX + 1 };
  const unknown = { seq: 1, type: 77, dataBytes: U32_MAX };
  for (const fields of [write, read, unknown]) {
    const peer = new Peer(newDevice());
    const allocate = slab.allocate.bind(slab);
    let allocations = 0;
    slab.allocate = (lengthBytes) => {
      allocations++;
      return allocate(lengthBytes);
    };
    peer.push(fields);
    Reflect.deleteProperty(slab, 'allocate');
    t.equal(allocations, 0);
    t.match(peer.connection.closeError, { code: 'FRAME_TOO_LARGE' });
  }
});

t.test(
  'a payload of the largest size is taken, and an unknown type of that size is skipped',
  async (t) => {
    const device = newDevice();
    const peer = new Peer(device);
    const data = Buffer.alloc(FRAME_PAYLOAD_BYTES_MAX, 5);
    peer.push({ seq: 1, type: 50, data });
    t.equal(freeBuffers(slab), ALL_FREE, 'a skipped payload takes no memory');
    peer.push(
      { seq: 2, type: TYPE.write, data },
      { seq: 3, type: TYPE.read, size: data.byteLength },
    );
    const [written, read] = peer.take();
    t.match(written, { seq: 2, type: TYPE.response, size: data.byteLength });
    t.ok(read?.data.equals(data));
    peer.connection.vanish();
    t.equal(freeBuffers(slab), ALL_FREE);
  },
);

t.test('an unmap past the end is clipped and answered with the offset it came with', async (t) => {
  const peer = new Peer(newDevice());
  peer.push({ seq: 1, type: TYPE.unmap, offset: DEVICE_BYTES + MIB, size: 4096 });
  t.match(peer.take()[0], { type: TYPE.response, offset: BigInt(DEVICE_BYTES + MIB), size: 0 });
  peer.connection.vanish();
});

t.test('a client may not have more requests in flight than the limit', async (t) => {
  const device = newDevice();
  device.isHolding = true;
  const peer = new Peer(device);
  const count = 2 * CONNECTION_REQUESTS_MAX + 10;
  for (let seq = 1; seq <= count; seq++) peer.push({ seq, type: TYPE.read, size: 512 });
  t.equal(device.held.length, CONNECTION_REQUESTS_MAX);
  t.ok(peer.connection.isPaused, 'the connection is not read meanwhile');
  device.isHolding = false;
  device.release();
  t.equal(peer.take().length, count, 'all are answered in the end');
  peer.connection.vanish();
  t.equal(freeBuffers(slab), ALL_FREE);
});

t.test(
  'a client that reads no answers is not read any more, and holds bounded memory',
  async (t) => {
    const peer = new Peer(newDevice());
    for (let seq = 1; seq <= 4000; seq++) peer.push({ seq, type: TYPE.ping });
    t.ok(peer.connection.isPaused);
    t.ok(peer.connection.headerBytesMax <= CONNECTION_REQUESTS_MAX * 64);
    t.equal(peer.take().length, 4000, 'it may still go on');
    peer.connection.vanish();
  },
);

t.test('connections that together want more memory than there is take turns', async (t) => {
  const device = newDevice();
  device.isHolding = true;
  const peers = Array.from({ length: 8 }, () => new Peer(device));
  const size = FRAME_PAYLOAD_BYTES_MAX;
  for (const peer of peers) {
    peer.push({ seq: 1, type: TYPE.read, size }, { seq: 2, type: TYPE.read, size });
  }
  const allocate = slab.allocate.bind(slab);
  let allocations = 0;
  slab.allocate = (lengthBytes) => {
    if (++allocations > 20_000) throw new Error('the connections wake each other for ever');
    return allocate(lengthBytes);
  };
  const answered = peers.map(() => 0);
  while (answered.some((count) => count < 2)) {
    if (device.held.length === 0) throw new Error('nobody has memory');
    device.release(0);
    peers.forEach((peer, index) => {
      answered[index] = (answered[index] as number) + peer.take().length;
    });
  }
  Reflect.deleteProperty(slab, 'allocate');
  t.strictSame(
    answered,
    peers.map(() => 2),
  );
  for (const peer of peers) peer.connection.vanish();
  t.equal(freeBuffers(slab), ALL_FREE);
});

t.test('a failed write is told with its text however little memory is left', async (t) => {
  const device = newDevice();
  device.isHolding = true;
  const peer = new Peer(device);
  peer.push({ seq: 1, type: TYPE.write, data: Buffer.alloc(4096) });
  peer.push({ seq: 2, type: TYPE.unmap, size: 4096 });
  const taken: number[] = [];
  for (const bytes of [MIB, 64 * KIB, 4 * KIB]) {
    for (let at = slab.allocate(bytes); at !== NO_BUFFER; at = slab.allocate(bytes)) taken.push(at);
  }
  device.failWith = () => new StorageError('NO_SPACE', 'write x: no space left on device');
  device.release();
  const [write, unmap] = peer.take();
  t.equal(write?.data.toString(), 'write x: no space left on device');
  t.match(unmap, { seq: 2, type: TYPE.error });
  peer.connection.vanish();
  for (const at of taken) slab.release(at);
  t.equal(freeBuffers(slab), ALL_FREE);
});

t.test(
  'a stopping server waits for what runs and not for a payload that does not come',
  async (t) => {
    const device = newDevice();
    const peer = new Peer(device);
    device.isHolding = true;
    peer.push({ seq: 1, type: TYPE.write, data: Buffer.alloc(4096, 1) });
    const half = frame({ seq: 2, type: TYPE.write, data: Buffer.alloc(4096, 2) }).subarray(0, 2000);
    peer.connection.push(half);
    peer.session.drain();
    t.notOk(peer.connection.isEnding, 'the whole write is still running');
    device.isHolding = false;
    device.release();
    t.match(peer.take(), [{ seq: 1, type: TYPE.response }]);
    t.strictSame(peer.endings, [null]);
    t.equal(freeBuffers(slab), ALL_FREE);

    const idle = new Peer(device);
    idle.connection.push(half);
    idle.session.drain();
    idle.take();
    t.strictSame(idle.endings, [null], 'with nothing running it ends at once');
  },
);

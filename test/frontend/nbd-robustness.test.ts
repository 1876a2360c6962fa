// Cuts and mutations of whole conversations: what a client sends can arrive in any pieces and be
// any bytes, and neither the process nor another client may notice.

import t from 'tap';
import {
  CONNECTION_REQUESTS_MAX,
  NBD_CONNECTION_PAYLOAD_BYTES_MAX,
} from '../../src/core/limits.js';
import { KIB, MIB } from '../../src/core/units.js';
import {
  CMD,
  FLAG,
  OPT,
  clientFlags,
  infoData,
  metaData,
  option,
  request,
  structuredHandshake,
} from '../support/nbd-client.js';
import { TestClient, createWorld, type World } from '../support/nbd-harness.js';

function bytesOf(length: number, seed: number): Buffer {
  return Buffer.from(Uint8Array.from({ length }, (_, i) => (i * 7 + seed * 13) & 0xff));
}

const HANDSHAKE = Buffer.concat([
  clientFlags(),
  option(OPT.list),
  option(OPT.extended),
  option(OPT.structured),
  option(OPT.listMeta, metaData('vol', ['base:'])),
  option(OPT.setMeta, metaData('vol', ['base:allocation', 'x-y:z'])),
  option(OPT.info, infoData('nobody', [0])),
  option(OPT.go, infoData('vol', [1, 2, 3])),
]);

const REQUESTS = [
  request({ command: CMD.write, cookie: 1, offset: 4096, payload: bytesOf(100, 1) }),
  request({ command: CMD.read, cookie: 2, offset: 4090, length: 50 }),
  request({
    command: CMD.write,
    cookie: 3,
    flags: FLAG.fua,
    offset: 0,
    payload: bytesOf(17_000, 3),
  }),
  request({
    command: CMD.write,
    cookie: 4,
    flags: FLAG.noHole,
    offset: 9,
    payload: bytesOf(50, 4),
  }),
  request({ command: CMD.zeroes, cookie: 5, offset: 16, length: 40 }),
  request({ command: CMD.trim, cookie: 6, flags: FLAG.fua, offset: 8192, length: 4096 }),
  request({ command: CMD.status, cookie: 7, offset: 0, length: 32_768 }),
  request({ command: CMD.flush, cookie: 8 }),
  request({ command: CMD.read, cookie: 9, offset: 0, length: 18_000 }),
  request({ command: 77, cookie: 10 }),
  request({ command: CMD.disc, cookie: 0 }),
];
const CONVERSATION = Buffer.concat([HANDSHAKE, ...REQUESTS]);

/** Everything the server says when the conversation arrives in these pieces. */
function converse(world: World, pieces: readonly Uint8Array[]): string {
  const client = new TestClient(world);
  for (const piece of pieces) client.connection.push(piece);
  const said = client.connection.take();
  if (client.ended === undefined) client.connection.vanish();
  return Buffer.from(said).toString('latin1');
}

t.test('a conversation cut at any byte is answered the same', async (t) => {
  const sizeBytes = 64 * KIB;
  const whole = converse(createWorld({ sizeBytes }), [CONVERSATION]);
  t.ok(whole.length > 18_000);
  const world = createWorld({ sizeBytes });
  let differences = 0;
  for (let cut = 1; cut < CONVERSATION.byteLength; cut++) {
    // Device state is part of the answer, so each run begins with an empty one.
    world.device.content.fill(0);
    world.device.allocated.fill(0);
    const said = converse(world, [CONVERSATION.subarray(0, cut), CONVERSATION.subarray(cut)]);
    if (said !== whole) differences++;
  }
  t.equal(differences, 0);
  world.device.content.fill(0);
  world.device.allocated.fill(0);
  const single = Array.from(CONVERSATION, (_, i) => CONVERSATION.subarray(i, i + 1));
  t.equal(converse(world, single), whole, 'byte by byte');
  t.equal(world.buffersInUse(), 0);
});

t.test('a large write cut at many places is written the same', async (t) => {
  const world = createWorld({ sizeBytes: 8 * MIB });
  const payload = bytesOf(3 * MIB + 5, 9);
  const bytes = request({ command: CMD.write, cookie: 1, offset: 3, payload });
  const cuts = [1, 27, 28, 29, 4096, MIB + 27, MIB + 28, MIB + 29, 2 * MIB + 28, 3 * MIB + 32];
  for (const cut of cuts) {
    world.device.content.fill(0);
    const client = TestClient.open(world);
    client.connection.push(bytes.subarray(0, cut));
    client.connection.push(bytes.subarray(cut));
    t.match(client.replies(), [{ cookie: 1, error: 0 }]);
    const written = Buffer.from(world.device.content.buffer, 3, payload.byteLength);
    t.ok(written.equals(payload), `cut at ${cut}`);
    client.connection.vanish();
  }
  t.equal(world.buffersInUse(), 0);
});

t.test('a conversation truncated at any byte leaves nothing behind', async (t) => {
  const world = createWorld();
  for (let length = 1; length < CONVERSATION.byteLength; length += 3) {
    converse(world, [CONVERSATION.subarray(0, length)]);
  }
  t.equal(world.buffersInUse(), 0);
  t.equal(world.clock.pendingCount, 0);
});

/** A small generator with a known seed, so that a failure can be repeated. */
function createRandom(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 0x1_0000_0000) * below);
  };
}

function mutate(bytes: Uint8Array, random: (below: number) => number): Uint8Array {
  const mutated = Uint8Array.from(bytes);
  const changes = 1 + random(8);
  for (let i = 0; i < changes; i++) {
    const at = random(mutated.byteLength);
    const kind = random(4);
    if (kind === 0) mutated[at] = random(256);
    else if (kind === 1) mutated[at] = (mutated[at] as number) ^ (1 << random(8));
    else if (kind === 2) mutated.fill(0xff, at, at + 1 + random(8));
    else mutated.copyWithin(at, random(mutated.byteLength), at + random(64));
  }
  return mutated;
}

t.test('mutated conversations crash nothing, leak nothing and stay within limits', async (t) => {
  const world = createWorld({ connections: 6 });
  const witness = TestClient.open(world);
  let heldMax = 0;
  for (let seed = 1; seed <= 1500; seed++) {
    const random = createRandom(seed);
    // Headers are the interesting part, so payloads are rarely hit.
    const begin = random(3) === 0 ? HANDSHAKE : structuredHandshake('vol');
    const isEarly = random(2) === 0;
    const rest = REQUESTS.map((bytes) => {
      const isHit = random(3) === 0;
      if (isEarly || !isHit) return bytes;
      return Buffer.concat([mutate(bytes.subarray(0, 28), random), bytes.subarray(28)]);
    });
    const bytes = Buffer.concat([isEarly ? mutate(begin, random) : begin, ...rest]);
    const client = new TestClient(world);
    for (let at = 0; at < bytes.byteLength; ) {
      const length = 1 + random(random(2) === 0 ? 40 : 20_000);
      if (!client.connection.isClosed) client.connection.push(bytes.subarray(at, at + length));
      at += length;
      heldMax = Math.max(heldMax, client.connection.queuedBytes());
      if (random(3) === 0) client.connection.flush(random(5));
    }
    client.connection.take();
    if (client.ended === undefined) client.connection.vanish();
    if (client.ended === undefined) t.fail(`seed ${seed} never ended`);
    if (world.buffersInUse() !== 0) t.fail(`seed ${seed} leaks`);
  }
  t.ok(heldMax <= NBD_CONNECTION_PAYLOAD_BYTES_MAX + CONNECTION_REQUESTS_MAX * 64);
  t.match(witness.call({ command: CMD.read, cookie: 1, offset: 0, length: 4096 }), { error: 0 });
  t.equal(world.clock.pendingCount, 0, 'no handshake timer is left');
});

t.test('a long run of random commands on a holding device is answered once each', async (t) => {
  const random = createRandom(42);
  const world = createWorld({ sizeBytes: 8 * MIB });
  const commands = [CMD.read, CMD.write, CMD.flush, CMD.trim, CMD.zeroes, CMD.cache, CMD.status];
  for (const structured of [true, false]) {
    const client = TestClient.open(world, structured);
    world.device.isHolding = true;
    const total = 400;
    for (let cookie = 1; cookie <= total; cookie++) {
      const command = commands[random(commands.length)] as number;
      const length = 1 + random(random(8) === 0 ? 3 * MIB : 64 * KIB);
      const offset = random(4 * MIB);
      const flags = random(4) === 0 ? FLAG.fua : 0;
      if (command === CMD.write) {
        client.send({ command, flags, cookie, offset, payload: Buffer.alloc(length, cookie) });
      } else if (command === CMD.flush) client.send({ command, flags, cookie });
      else client.send({ command, flags, cookie, offset, length });
      while (world.device.held.length > 0 && random(3) > 0) {
        world.device.release(random(world.device.held.length));
      }
    }
    const said: Uint8Array[] = [];
    do {
      world.device.release();
      said.push(client.connection.take());
    } while (world.device.held.length > 0);
    const cookies = client.parse(Buffer.concat(said)).map(({ cookie }) => cookie);
    world.device.isHolding = false;
    t.equal(cookies.length, total);
    t.equal(new Set(cookies).size, total);
    client.connection.vanish();
    t.equal(world.buffersInUse(), 0);
  }
});

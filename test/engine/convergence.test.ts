// Members that differ are made alike while clients work: on a real volume over replicas in memory,
// whose answers and failures the test controls.

import t from 'tap';
import { BLOCK_OP, type BlockRequest, submitAndWait } from '../../src/core/block-device.js';
import type { ByteRange } from '../../src/core/byte-ranges.js';
import { StorageError } from '../../src/core/errors.js';
import { silentLogger } from '../../src/core/log.js';
import { Slab, SLAB_BYTES } from '../../src/core/slab.js';
import { KIB, MIB, SECTOR_BYTES } from '../../src/core/units.js';
import { Convergence, NO_SPACE_RETRY_MS, PIECE_BYTES_MAX } from '../../src/engine/convergence.js';
import { type Member, Membership } from '../../src/engine/membership.js';
import { Volume } from '../../src/engine/volume.js';
import { settle } from '../support/engine-bed.js';
import { ManualClock } from '../support/manual-clock.js';
import { MemoryReplica } from '../support/memory-replica.js';

const PIECE = PIECE_BYTES_MAX;

/** A volume over replicas that are filled with 1, 2, 3…, as if nothing of them agreed. */
function differing(count: number, sizeBytes = MIB) {
  const slab = new Slab(new ArrayBuffer(SLAB_BYTES));
  const clock = new ManualClock();
  const membership = new Membership();
  const replicas: MemoryReplica[] = [];
  for (let i = 0; i < count; i++) {
    const replica = new MemoryReplica(`tcp://r${i}:9502`, slab, sizeBytes);
    replica.device.content.fill(i + 1);
    replica.device.allocated.fill(1);
    replicas.push(replica);
    membership.add(replica.address, 'RW', replica);
  }
  const failMember = (member: Member, error: StorageError): void => {
    membership.fail(member, error);
  };
  const gate = { isSettled: true, wait: () => undefined };
  const volume = new Volume({ membership, clock, gate, failMember });
  volume.resize(sizeBytes);
  const bed = { slab, clock, membership, replicas, volume, doneCount: 0 };
  const log = silentLogger;
  const done = (): void => {
    bed.doneCount++;
  };
  const convergence = new Convergence({ membership, volume, slab, clock, log, failMember, done });
  volume.diverged = (range) => convergence.add([range]);
  return { ...bed, convergence, counts: bed };
}

type Bed = ReturnType<typeof differing>;

function deviceOf(bed: Bed, index: number): MemoryReplica['device'] {
  return (bed.replicas[index] as MemoryReplica).device;
}

function memberOf(bed: Bed, index: number): Member {
  return bed.membership.all[index] as Member;
}

function modes(bed: Bed): string[] {
  return bed.membership.all.map(({ mode }) => mode);
}

async function write(
  bed: Bed,
  offsetBytes: number,
  lengthBytes: number,
  fill: number,
): Promise<void> {
  const bufferOffset = bed.slab.allocate(lengthBytes);
  bed.slab.bytes.fill(fill, bufferOffset, bufferOffset + lengthBytes);
  try {
    const op = BLOCK_OP.write;
    await submitAndWait(bed.volume, { op, offsetBytes, lengthBytes, bufferOffset });
  } finally {
    bed.slab.release(bufferOffset);
  }
}

/** The byte that all of the range has, or -1. */
async function read(bed: Bed, offsetBytes: number, lengthBytes: number): Promise<number> {
  const bufferOffset = bed.slab.allocate(lengthBytes);
  try {
    const op = BLOCK_OP.read;
    await submitAndWait(bed.volume, { op, offsetBytes, lengthBytes, bufferOffset });
    const bytes = bed.slab.bytes.subarray(bufferOffset, bufferOffset + lengthBytes);
    const first = bytes[0] as number;
    return bytes.every((byte) => byte === first) ? first : -1;
  } finally {
    bed.slab.release(bufferOffset);
  }
}

function range(beginOffset: number, endOffset: number): ByteRange {
  return { beginOffset, endOffset };
}

/** What is sent to a replica from now on: [op, offset, length]. */
function watch(bed: Bed, index: number): [number, number, number][] {
  const seen: [number, number, number][] = [];
  deviceOf(bed, index).failWith = ({ op, offsetBytes, lengthBytes }) => {
    seen.push([op, offsetBytes, lengthBytes]);
    return null;
  };
  return seen;
}

function writesOf(seen: readonly [number, number, number][]): [number, number][] {
  return seen.flatMap(([op, at, length]) => (op === BLOCK_OP.write ? [[at, length]] : []));
}

function slabIsWhole(bed: Bed): boolean {
  return bed.slab.freeCounts().every(({ freeCount, count }) => freeCount === count);
}

t.test(
  'listed ranges end equal to the reference, and only sectors that differ are written',
  async (t) => {
    const bed = differing(3);
    const [a, b, c] = [0, 1, 2].map((index) => deviceOf(bed, index));
    if (!a || !b || !c) throw new Error('three replicas');
    b.content.set(a.content);
    c.content.set(a.content);
    b.content.fill(7, 8 * KIB, 8 * KIB + 1);
    b.content.fill(7, 12 * KIB + 5, 12 * KIB + 6);
    b.content.fill(7, 40 * KIB, 44 * KIB);
    c.content.fill(8, 600 * KIB, 604 * KIB);
    c.content.fill(8, 900 * KIB, 904 * KIB);
    const seen = [watch(bed, 0), watch(bed, 1), watch(bed, 2)];
    bed.convergence.add([range(5 * KIB, 60 * KIB), range(500 * KIB, 700 * KIB)]);
    t.equal(bed.convergence.isRunning, true);
    t.same(bed.convergence.progress, { doneBytes: 0, totalBytes: 256 * KIB });
    await bed.convergence.whenDone();
    // On all members, so that their heads hold the same and not only their volumes.
    const written = [
      [8 * KIB, 8 * KIB],
      [40 * KIB, 4 * KIB],
      [600 * KIB, 4 * KIB],
    ];
    t.same(
      seen.map((of) => writesOf(of)),
      [written, written, written],
    );
    t.ok(Buffer.from(b.content).equals(a.content));
    t.equal(c.content[900 * KIB], 8, 'what is not listed is left alone');
    t.equal(bed.convergence.isRunning, false);
    t.equal(bed.volume.converging, null, 'reads are free again');
    t.equal(bed.counts.doneCount, 1);
    t.ok(slabIsWhole(bed));
  },
);

t.test('the preferred reference is taken, and reads go to nobody else meanwhile', async (t) => {
  const bed = differing(3);
  deviceOf(bed, 0).isHolding = true;
  bed.convergence.add(null, memberOf(bed, 1));
  await settle();
  for (let i = 0; i < 6; i++) t.equal(await read(bed, 512 * KIB + i * 4 * KIB, 4 * KIB), 2);
  t.equal(deviceOf(bed, 2).countOf(BLOCK_OP.read), 0, 'not read, but by its piece');
  deviceOf(bed, 0).isHolding = false;
  deviceOf(bed, 0).release();
  await bed.convergence.whenDone();
  for (const replica of bed.replicas) t.ok(replica.device.content.every((byte) => byte === 2));
});

t.test('a client write is not overwritten by what was read before it', async (t) => {
  const bed = differing(2);
  const slow = deviceOf(bed, 1);
  slow.isHolding = true;
  bed.convergence.add([range(0, PIECE)]);
  await settle();
  t.equal(slow.held.length, 1, 'the piece is being read');
  const overlapping = write(bed, 4 * KIB, 4 * KIB, 9);
  const apart = write(bed, PIECE, 4 * KIB, 9);
  t.equal(slow.held.length, 2, 'only what overlaps the piece waits');
  slow.release();
  await apart;
  await settle();
  t.equal(slow.held[0]?.op, BLOCK_OP.write, 'the repair is on its way');
  t.equal(slow.held.length, 1, 'and the client waits for it');
  slow.release();
  await settle();
  slow.isHolding = false;
  slow.release();
  await Promise.all([overlapping, bed.convergence.whenDone()]);
  for (const { device } of bed.replicas) {
    t.equal(device.content[4 * KIB], 9, 'the newer data stays');
    t.equal(device.content[8 * KIB], 1);
  }
});

t.test(
  'when the reference leaves, another takes its place at once and all starts over',
  async (t) => {
    const bed = differing(3);
    let readsOfFirst = 0;
    deviceOf(bed, 0).failWith = ({ op }) => {
      if (op === BLOCK_OP.read) readsOfFirst++;
      return readsOfFirst > 2 ? new StorageError('CONNECTION_LOST', 'EOF') : null;
    };
    const seen = watch(bed, 2);
    bed.convergence.add(null);
    await bed.convergence.whenDone();
    t.same(modes(bed), ['ERR', 'RW', 'RW']);
    const [, second, third] = bed.replicas;
    t.ok(
      Buffer.from(second?.device.content ?? []).equals(third?.device.content ?? Buffer.alloc(0)),
    );
    t.equal(second?.device.content[0], 1, 'the first piece came from the reference that left');
    t.equal(second?.device.content[MIB - 1], 2, 'the last one from its successor');
    const reads = seen.filter(([op, at]) => op === BLOCK_OP.read && at === 0);
    t.equal(reads.length, 2, 'the first piece was compared with both');
  },
);

t.test('a read that fails on the reference is served by its successor', async (t) => {
  const bed = differing(3);
  deviceOf(bed, 2).isHolding = true;
  bed.convergence.add(null, memberOf(bed, 1));
  await settle();
  deviceOf(bed, 1).failWith = () => new StorageError('PEER_ERROR', 'input/output error');
  t.equal(await read(bed, MIB - 4 * KIB, 4 * KIB), 1);
  t.same(modes(bed), ['RW', 'ERR', 'RW']);
  for (let i = 0; i < 3; i++) t.equal(await read(bed, MIB - 4 * KIB, 4 * KIB), 1);
  deviceOf(bed, 2).isHolding = false;
  deviceOf(bed, 2).release();
  await bed.convergence.whenDone();
  t.ok(Buffer.from(deviceOf(bed, 0).content).equals(deviceOf(bed, 2).content));
});

t.test('who cannot be read or repaired leaves, and the last member is done', async (t) => {
  const bed = differing(3);
  const broken = new StorageError('PEER_ERROR', 'input/output error');
  deviceOf(bed, 1).failWith = ({ op }) => (op === BLOCK_OP.read ? broken : null);
  deviceOf(bed, 2).failWith = ({ op }) => (op === BLOCK_OP.write ? broken : null);
  bed.convergence.add(null);
  await bed.convergence.whenDone();
  t.same(modes(bed), ['RW', 'ERR', 'ERR']);
  t.equal(bed.counts.doneCount, 1);
  t.ok(slabIsWhole(bed));
});

t.test('two members with one unreadable sector lose one of them, not both', async (t) => {
  const bed = differing(2);
  const broken = new StorageError('PEER_ERROR', 'input/output error');
  for (const { device } of bed.replicas) device.failWith = () => broken;
  bed.convergence.add(null);
  await bed.convergence.whenDone();
  t.same(modes(bed).sort(), ['ERR', 'RW']);
});

t.test(
  'P5: a write that all refused for want of space is converged before it is heard of',
  async (t) => {
    const bed = differing(2);
    for (const { device } of bed.replicas) device.content.fill(5);
    const full = new StorageError('NO_SPACE', 'no space left on device');
    const first = deviceOf(bed, 0);
    first.failWith = ({ op, offsetBytes }: BlockRequest) => {
      if (op !== BLOCK_OP.write) return null;
      first.content.fill(6, offsetBytes, offsetBytes + SECTOR_BYTES);
      return full;
    };
    deviceOf(bed, 1).failWith = ({ op }) => (op === BLOCK_OP.write ? full : null);
    await t.rejects(write(bed, 16 * KIB, 8 * KIB, 6), { code: 'NO_SPACE' });
    t.equal(bed.convergence.isRunning, true, 'known before the client is');
    t.same(modes(bed), ['RW', 'RW']);
    for (let i = 0; i < 4; i++) t.equal(await read(bed, 16 * KIB, 4 * KIB), 6, 'one answer only');
    await settle();
    t.equal(bed.convergence.isRunning, true, 'the repair has no space, either');
    t.same(modes(bed), ['RW', 'RW'], 'which is no reason to lose a member');
    for (const { device } of bed.replicas) device.failWith = null;
    bed.clock.advance(NO_SPACE_RETRY_MS);
    await bed.convergence.whenDone();
    t.equal(deviceOf(bed, 1).content[16 * KIB], 6);
    t.equal(deviceOf(bed, 1).content[20 * KIB], 5);
  },
);

t.test('a barrier waits for the piece in work, and no piece begins behind it', async (t) => {
  const bed = differing(2);
  const slow = deviceOf(bed, 1);
  slow.isHolding = true;
  bed.convergence.add([range(0, PIECE), range(512 * KIB, 516 * KIB)]);
  await settle();
  let isBehind = false;
  let open = (): void => undefined;
  const barrier = bed.volume.withBarrier(() => {
    isBehind = true;
    return new Promise<void>((resolve) => {
      open = resolve;
    });
  });
  slow.release();
  await settle();
  t.equal(isBehind, false, 'the piece is read, but not written');
  slow.release();
  await settle();
  t.equal(isBehind, true);
  t.equal(slow.content[PIECE - 1], 1);
  t.equal(slow.held.length, 0, 'nothing runs behind the barrier');
  slow.isHolding = false;
  open();
  await Promise.all([barrier, bed.convergence.whenDone()]);
  t.equal(slow.content[512 * KIB], 1);
});

t.test('holes of all members are skipped without being read', async (t) => {
  const bed = differing(2, 600 * MIB);
  for (const { device } of bed.replicas) {
    device.content.fill(0);
    device.allocated.fill(0);
  }
  const at = 300 * MIB;
  deviceOf(bed, 1).content.fill(3, at, at + SECTOR_BYTES);
  deviceOf(bed, 1).allocated[at / SECTOR_BYTES] = 1;
  bed.convergence.add(null);
  await bed.convergence.whenDone();
  t.equal(deviceOf(bed, 1).content[at], 0, 'a hole of the reference is zeroes');
  t.equal(deviceOf(bed, 0).countOf(BLOCK_OP.read), 1);
});

t.test('a replica that does not know its holes is read', async (t) => {
  const bed = differing(2);
  deviceOf(bed, 1).failWith = ({ op }) =>
    op === BLOCK_OP.extents ? new StorageError('UNSUPPORTED', 'no extents here') : null;
  bed.convergence.add(null);
  await bed.convergence.whenDone();
  t.same(modes(bed), ['RW', 'RW']);
  t.ok(deviceOf(bed, 1).content.every((byte) => byte === 1));
});

t.test('what is added while holes are asked for is not taken for a hole', async (t) => {
  const bed = differing(2);
  for (const { device } of bed.replicas) {
    device.content.fill(0);
    device.allocated.fill(0);
  }
  const slow = deviceOf(bed, 1);
  slow.isHolding = true;
  bed.convergence.add(null);
  await settle();
  t.equal(slow.held[0]?.op, BLOCK_OP.extents, 'the first has answered already');
  const full = new StorageError('NO_SPACE', 'no space left on device');
  const first = deviceOf(bed, 0);
  first.failWith = ({ op, offsetBytes }: BlockRequest) => {
    if (op !== BLOCK_OP.write) return null;
    first.content.fill(6, offsetBytes, offsetBytes + SECTOR_BYTES);
    first.allocated[offsetBytes / SECTOR_BYTES] = 1;
    return full;
  };
  slow.failWith = ({ op }) => (op === BLOCK_OP.write ? full : null);
  const failing = t.rejects(write(bed, 16 * KIB, 4 * KIB, 6), { code: 'NO_SPACE' });
  slow.release(1);
  await failing;
  first.failWith = null;
  slow.failWith = null;
  slow.isHolding = false;
  slow.release();
  await bed.convergence.whenDone();
  t.equal(slow.content[16 * KIB], 6);
});

t.test('a replica that is being rebuilt is given what was repaired', async (t) => {
  const bed = differing(3);
  bed.membership.remove(memberOf(bed, 2));
  const joiner = bed.replicas[2] as MemoryReplica;
  bed.membership.add(joiner.address, 'WO', joiner);
  deviceOf(bed, 1).content.set(deviceOf(bed, 0).content);
  deviceOf(bed, 1).content.fill(9, PIECE, PIECE + SECTOR_BYTES);
  const seen = watch(bed, 2);
  bed.convergence.add([range(0, 2 * PIECE)]);
  await bed.convergence.whenDone();
  t.same(seen, [[BLOCK_OP.write, PIECE, PIECE]], 'the piece in which anybody differed, unread');
  t.equal(joiner.device.content[PIECE], 1);
});

t.test('while clients are active, half of the time is theirs', async (t) => {
  const bed = differing(2);
  const slow = deviceOf(bed, 1);
  slow.isHolding = true;
  bed.convergence.add([range(0, PIECE), range(512 * KIB, 516 * KIB)]);
  await settle();
  const client = write(bed, 0, 4 * KIB, 9);
  slow.release();
  await settle();
  bed.clock.advance(30);
  slow.release();
  await settle();
  t.same(
    slow.held.map(({ op }) => op),
    [BLOCK_OP.write],
    'the client, and no further piece',
  );
  bed.clock.advance(29);
  await settle();
  t.equal(slow.held.length, 1);
  bed.clock.advance(1);
  await settle();
  t.same(
    slow.held.map(({ op }) => op),
    [BLOCK_OP.write, BLOCK_OP.read],
  );
  slow.isHolding = false;
  slow.release();
  await Promise.all([client, bed.convergence.whenDone()]);
});

t.test('who leaves may lack whatever was not compared yet', async (t) => {
  const bed = differing(3);
  deviceOf(bed, 1).isHolding = true;
  bed.convergence.add([range(0, PIECE), range(512 * KIB, 516 * KIB)]);
  await settle();
  t.same(bed.volume.missing().inFlight, [range(0, PIECE), range(512 * KIB, 516 * KIB)]);
  deviceOf(bed, 1).isHolding = false;
  deviceOf(bed, 1).release();
  await bed.convergence.whenDone();
  t.same(bed.volume.missing().inFlight, []);
});

t.test('a stop ends after the piece in work and says that members may differ', async (t) => {
  const bed = differing(2);
  t.equal(await bed.convergence.stop(), true, 'nothing was to do');
  deviceOf(bed, 1).isHolding = true;
  bed.convergence.add(null);
  await settle();
  const stopped = bed.convergence.stop();
  deviceOf(bed, 1).isHolding = false;
  deviceOf(bed, 1).release();
  t.equal(await stopped, false);
  t.equal(bed.counts.doneCount, 0);
  t.ok(slabIsWhole(bed));
  bed.convergence.add(null);
  await bed.convergence.whenDone();
  t.ok(
    deviceOf(bed, 1).content.every((byte) => byte === 1),
    'it can begin again',
  );
});

/** Numbers in [0, limit) that are the same in each run of a seed. */
function randomOf(seed: number): (limit: number) => number {
  let state = seed * 2654435761 + 1;
  return (limit) => {
    state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9) | 0;
    return (state >>> 8) % limit;
  };
}

/** Clients at work in any order of answers, and perhaps a member lost on the way. */
async function convergeUnderLoad(seed: number): Promise<string | null> {
  const random = randomOf(seed);
  const bed = differing(3, MIB);
  for (const { device } of bed.replicas) device.isHolding = true;
  const sectors = 48;
  /** Answered values of a sector, as far as they are known; −1: any. */
  const expected = new Array<number>(sectors).fill(-1);
  const submitted = new Array<number>(sectors).fill(0);
  /** What a read found where nobody had written; the same again, while the reference stays. */
  const found = new Map<number, number>();
  const at = (sector: number): number => sector * 16 * KIB;
  const begin = random(2) === 0 ? null : [range(0, 300 * KIB), range(500 * KIB, 600 * KIB)];
  bed.convergence.add(begin, memberOf(bed, random(3)));
  const isListed = (sector: number): boolean =>
    begin === null || begin.some((r) => r.beginOffset <= at(sector) && at(sector) < r.endOffset);
  let wrong: string | null = null;
  const pending: Promise<unknown>[] = [];
  const losesAt = random(4) === 0 ? 20 + random(40) : -1;
  for (let step = 0; step < 120; step++) {
    const sector = random(sectors);
    const kind = random(8);
    if (kind < 2 && step < 100) {
      const value = 10 + step;
      submitted[sector] = value;
      pending.push(
        write(bed, at(sector), SECTOR_BYTES, value).then(() => {
          expected[sector] = value;
        }),
      );
    } else if (kind === 2) {
      const before = expected[sector] as number;
      pending.push(
        read(bed, at(sector), SECTOR_BYTES).then((value) => {
          const first = value < 10 && isListed(sector) ? found.get(sector) : undefined;
          if (value < 10) found.set(sector, value);
          if (losesAt < 0 && first !== undefined && first !== value) {
            wrong = `read ${value} after ${first}, both unwritten`;
          }
          if (value < 10 && before >= 10) wrong = `read ${value} after ${before} was answered`;
          if (value >= 10 && value < before) wrong = `read ${value} after ${before}`;
        }),
      );
    } else if (kind === 3 && random(6) === 0) {
      pending.push(bed.volume.withBarrier(() => Promise.resolve()));
    }
    if (step === losesAt) {
      const index = random(3);
      const error = new StorageError('CONNECTION_LOST', 'EOF');
      bed.membership.fail(memberOf(bed, index), error);
      (bed.replicas[index] as MemoryReplica).lose(error);
    }
    for (const { device } of bed.replicas) {
      if (device.held.length > 0 && random(3) > 0) device.release(random(device.held.length));
    }
    await settle();
  }
  for (const { device } of bed.replicas) device.isHolding = false;
  for (const { device } of bed.replicas) device.release();
  await Promise.all(pending);
  await bed.convergence.whenDone();
  const left = bed.membership.readable.map((m) => bed.replicas.find((r) => r === m.port)?.device);
  const first = left[0]?.content as Uint8Array;
  for (const [sector, value] of submitted.entries()) {
    if (value > 0 && first[at(sector)] !== value) wrong = `sector ${sector} lost ${value}`;
  }
  for (const { beginOffset, endOffset } of begin ?? [range(0, MIB)]) {
    const wanted = Buffer.from(first.subarray(beginOffset, endOffset));
    for (const device of left) {
      const copy = device?.content.subarray(beginOffset, endOffset) ?? new Uint8Array();
      if (!wanted.equals(copy)) wrong = 'members differ at the end';
    }
  }
  return slabIsWhole(bed) ? wrong : 'a buffer is not given back';
}

t.test('under any order of answers no write is lost and members end alike', async (t) => {
  const wrong: string[] = [];
  for (let seed = 1; seed <= 30; seed++) {
    const found = await convergeUnderLoad(seed);
    if (found !== null) wrong.push(`seed ${seed}: ${found}`);
  }
  t.same(wrong, []);
});

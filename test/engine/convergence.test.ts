// Members that differ are made alike while clients work: on a real volume over replicas in memory,
// whose answers and failures the test controls.

import t from 'tap';
import { BLOCK_OP, type BlockRequest } from '../../src/core/block-device.js';
import { StorageError } from '../../src/core/errors.js';
import { KIB, MIB, SECTOR_BYTES } from '../../src/core/units.js';
import { NO_SPACE_RETRY_MS } from '../../src/engine/convergence.js';
import { settle } from '../support/engine-bed.js';
import type { MemoryReplica } from '../support/memory-replica.js';
import {
  PIECE,
  deviceOf,
  differing,
  memberOf,
  modes,
  range,
  read,
  slabIsWhole,
  watch,
  write,
  writesOf,
} from '../support/convergence-bed.js';

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

// The data path's promises on replicas in memory, whose answers and failures the test controls.
// Numbers refer to upstream scenarios (control_test, test_controller).

import t from 'tap';
import { BLOCK_OP, submitAndWait } from '../../src/core/block-device.js';
import { StorageError } from '../../src/core/errors.js';
import { KIB } from '../../src/core/units.js';
import {
  VOLUME_BYTES,
  contentOf,
  modes,
  read,
  replicaOf,
  settle,
  startEngine,
  write,
} from '../support/engine-bed.js';

t.test('P1: a write is answered only when every live replica has it', async (t) => {
  const bed = await startEngine(3);
  for (const replica of bed.replicas) replica.device.isHolding = true;
  let answered = false;
  const pending = write(bed, 0, 4 * KIB, 7).then(() => {
    answered = true;
  });
  bed.replicas[0]?.device.release();
  bed.replicas[1]?.device.release();
  await settle();
  t.equal(answered, false, 'two of three answered: the client waits');
  bed.replicas[2]?.device.release();
  await pending;
  for (const replica of bed.replicas) t.equal(replica.device.content[4095], 7);
});

t.test('a replica lost under a write leaves before the write is answered', async (t) => {
  const bed = await startEngine(2);
  for (const replica of bed.replicas) replica.device.isHolding = true;
  const pending = write(bed, 0, 4 * KIB, 1);
  bed.replicas[1]?.lose(new StorageError('CONNECTION_LOST', 'EOF'));
  t.same(modes(bed), ['RW', 'ERR']);
  bed.replicas[0]?.device.release();
  await pending;
  replicaOf(bed, 0).device.isHolding = false;
  await write(bed, 4 * KIB, 4 * KIB, 2);
  t.equal(bed.replicas[1]?.device.countOf(BLOCK_OP.write), 1, 'nothing is sent to it any more');
});

t.test(
  'the client hears of a failed write when no replica is left, and of no backend later',
  async (t) => {
    const bed = await startEngine(1);
    replicaOf(bed, 0).device.isHolding = true;
    const pending = write(bed, 0, 4 * KIB, 1);
    bed.replicas[0]?.lose(new StorageError('CONNECTION_LOST', 'tcp://r0:9502: EOF'));
    await t.rejects(pending, { code: 'CONNECTION_LOST' });
    await t.rejects(read(bed, 0, 512), { code: 'NO_BACKEND', message: 'no backend available' });
    await t.rejects(write(bed, 0, 512, 1), { code: 'NO_BACKEND' });
  },
);

t.test(
  'P4: a read that fails on one replica is served by another, and the first leaves',
  async (t) => {
    const bed = await startEngine(2);
    await write(bed, 0, 4 * KIB, 9);
    for (const replica of bed.replicas) {
      replica.device.failWith = () => new StorageError('PEER_ERROR', 'input/output error');
    }
    replicaOf(bed, 1).device.failWith = null;
    for (let i = 0; i < 2; i++) t.equal((await read(bed, 0, 4 * KIB))[0], 9);
    t.same(modes(bed), ['ERR', 'RW']);
  },
);

t.test('an unreadable sector does not cost the last replica', async (t) => {
  const bed = await startEngine(1);
  replicaOf(bed, 0).device.failWith = () => new StorageError('PEER_ERROR', 'input/output error');
  await t.rejects(read(bed, 0, 4 * KIB), { code: 'PEER_ERROR' });
  replicaOf(bed, 0).device.failWith = null;
  await read(bed, 8 * KIB, 4 * KIB);
  t.same(modes(bed), ['RW']);
});

t.test('reads go to the least loaded replica', async (t) => {
  const bed = await startEngine(3);
  replicaOf(bed, 0).inFlightCount = 5;
  replicaOf(bed, 1).inFlightCount = 1;
  replicaOf(bed, 2).inFlightCount = 5;
  for (let i = 0; i < 3; i++) await read(bed, 0, 512);
  t.equal(bed.replicas[1]?.device.countOf(BLOCK_OP.read), 3);
});

t.test('requests beyond the end fail with the bounds text and touch no replica', async (t) => {
  const bed = await startEngine(1);
  const size = VOLUME_BYTES;
  await t.rejects(read(bed, size - 512, 1024), {
    code: 'OUT_OF_RANGE',
    message: `EOF: Read of 1024 bytes at offset ${size - 512} is beyond volume size ${size}`,
  });
  await t.rejects(write(bed, size, 512, 1), {
    message: `EOF: Write of 512 bytes at offset ${size} is beyond volume size ${size}`,
  });
  await t.rejects(read(bed, -512, 512), { code: 'OUT_OF_RANGE' });
  const { op } = { op: BLOCK_OP.unmap };
  await t.rejects(submitAndWait(bed.engine.volume, { op, offsetBytes: size, lengthBytes: 4096 }), {
    message: `EOF: unmap of 4096 bytes at offset ${size} is beyond volume size ${size}`,
  });
  t.same(bed.replicas[0]?.device.counts, [0, 0, 0, 0, 0, 0]);
});

t.test('overlapping writes reach every replica in one order, one at a time', async (t) => {
  const bed = await startEngine(2);
  for (const replica of bed.replicas) replica.device.isHolding = true;
  const first = write(bed, 0, 4 * KIB, 1);
  const second = write(bed, 512, 512, 2);
  const apart = write(bed, 8 * KIB, 4 * KIB, 3);
  for (const replica of bed.replicas) t.equal(replica.device.held.length, 2, 'the overlap waits');
  bed.replicas[1]?.device.release();
  bed.replicas[0]?.device.release();
  for (const replica of bed.replicas) replica.device.release();
  await Promise.all([first, second, apart]);
  for (const { device } of bed.replicas) {
    t.same([device.content[0], device.content[512], device.content[1024]], [1, 2, 1]);
  }
});

t.test('a write is not acknowledged when those that took it have left since', async (t) => {
  for (const code of ['PEER_ERROR', 'NO_SPACE'] as const) {
    const bed = await startEngine(2);
    for (const replica of bed.replicas) replica.device.isHolding = true;
    const pending = write(bed, 0, 4 * KIB, 1);
    replicaOf(bed, 0).device.release();
    replicaOf(bed, 0).lose(new StorageError('TIMEOUT', 'ping timeout'));
    replicaOf(bed, 1).device.failWith = () => new StorageError(code, 'refused');
    replicaOf(bed, 1).device.release();
    await t.rejects(pending, { code }, 'no replica that is still RW has it');
    t.same(modes(bed), ['ERR', code === 'NO_SPACE' ? 'RW' : 'ERR']);
  }
});

t.test('a full disk does not cost the last replica while another is lost', async (t) => {
  const bed = await startEngine(2);
  for (const replica of bed.replicas) replica.device.isHolding = true;
  const pending = write(bed, 0, 4 * KIB, 1);
  replicaOf(bed, 0).lose(new StorageError('CONNECTION_LOST', 'EOF'));
  replicaOf(bed, 1).device.failWith = () => new StorageError('NO_SPACE', 'full');
  replicaOf(bed, 1).device.release();
  await t.rejects(pending, { code: 'NO_SPACE' });
  t.same(modes(bed), ['ERR', 'RW']);
});

t.test('a full volume: ENOSPC from every replica is told as such and nobody leaves', async (t) => {
  const bed = await startEngine(2);
  for (const replica of bed.replicas) {
    replica.device.failWith = (request) =>
      request.op === BLOCK_OP.write
        ? new StorageError('NO_SPACE', 'no space left on device')
        : null;
  }
  await t.rejects(write(bed, 0, 4 * KIB, 1), { code: 'NO_SPACE' });
  t.same(modes(bed), ['RW', 'RW']);
  await read(bed, 0, 4 * KIB);
});

t.test('#27 while a replica is WO, unaligned writes reach it as whole sectors', async (t) => {
  for (const [offsetBytes, lengthBytes] of [
    [0, 512],
    [512, 512],
    [3584, 512],
    [3584, 5120],
    [100, 4096],
    [1000, 70000],
    [8192, 8192],
  ] as const) {
    const bed = await startEngine(1, 1);
    for (let at = 0; at < 128 * KIB; at += 64 * KIB) await write(bed, at, 64 * KIB, 0x55);
    await bed.engine.addReplica('tcp://r1:9502', true, 'WO');
    await write(bed, offsetBytes, lengthBytes, 0xaa);
    const begin = offsetBytes - (offsetBytes % 4096);
    const end = Math.ceil((offsetBytes + lengthBytes) / 4096) * 4096;
    const want = Buffer.alloc(end - begin, 0x55);
    want.fill(0xaa, offsetBytes - begin, offsetBytes - begin + lengthBytes);
    t.same(contentOf(replicaOf(bed, 0), begin, end), want, `${offsetBytes}+${lengthBytes} on RW`);
    t.same(contentOf(replicaOf(bed, 1), begin, end), want, `${offsetBytes}+${lengthBytes} on WO`);
    t.equal(replicaOf(bed, 1).device.content[end], 0, 'and nothing beyond');
  }
});

t.test('a WO replica is never read, and trims wait until it is rebuilt', async (t) => {
  const bed = await startEngine(1, 1);
  await write(bed, 0, 4 * KIB, 1);
  await bed.engine.addReplica('tcp://r1:9502', true, 'WO');
  t.same(modes(bed), ['RW', 'WO']);
  for (let i = 0; i < 4; i++) t.equal((await read(bed, 0, 4 * KIB))[0], 1);
  t.equal(bed.replicas[1]?.device.countOf(BLOCK_OP.read), 0);
  const op = BLOCK_OP.unmap;
  await submitAndWait(bed.engine.volume, { op, offsetBytes: 0, lengthBytes: 4 * KIB });
  t.equal(bed.replicas[0]?.device.countOf(op), 0);
  t.equal(bed.replicas[1]?.zeroesAsData, true);
  await t.rejects(bed.engine.addReplica('tcp://r2:9502', true, 'WO'), { code: 'BUSY' });
  await bed.engine.verifyRebuild('tcp://r1:9502');
  t.same(modes(bed), ['RW', 'RW']);
  t.equal(bed.replicas[1]?.zeroesAsData, false);
});

t.test('the last readable replica may be silent for twice as long', async (t) => {
  const bed = await startEngine(2, 1);
  const silenceMaxMs = (): number | undefined => replicaOf(bed, 0).connectOptions?.silenceMaxMs();
  const shortMs = silenceMaxMs() as number;
  await bed.engine.removeReplica('tcp://r1:9502');
  t.equal(silenceMaxMs(), 2 * shortMs);
  await bed.engine.addReplica('tcp://r2:9502', true, 'WO');
  t.equal(silenceMaxMs(), 2 * shortMs, 'one that is being rebuilt cannot replace it');
});

t.test('metrics show the last whole second', async (t) => {
  const bed = await startEngine(1);
  const { metrics } = bed.engine.volume;
  await write(bed, 0, 4 * KIB, 1);
  await write(bed, 0, 4 * KIB, 1);
  await read(bed, 0, 512);
  t.match(metrics.lastSecond(500), { readCount: 0, writeCount: 0 });
  t.match(metrics.lastSecond(1200), {
    readCount: 1,
    readBytes: 512,
    writeCount: 2,
    writeBytes: 8192,
  });
  t.match(metrics.lastSecond(5000), { readCount: 0, writeCount: 0 });
});

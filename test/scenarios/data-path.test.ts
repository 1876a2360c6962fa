// A served volume as its client sees it: upstream's tests of the data path and of frontends (group J),
// with an NBD client on real processes.

import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { randomBytes } from 'node:crypto';
import { createConnection } from 'node:net';
import t from 'tap';
import { NbdError } from '../support/nbd-volume.js';
import { waitUntil } from '../support/replica-state.js';
import { SECTOR, VolumeBench } from '../support/volume-bench.js';

const MIB = 1024 * 1024;
const SIZE = 4 * MIB;
const LOGICAL_BLOCK = 512;
const EINVAL = 22;
const ENOSPC = 28;

t.setTimeout(90_000);

async function codeOf(request: Promise<unknown>): Promise<number> {
  const error = await request.then(
    () => null,
    (e: unknown) => e,
  );
  if (error instanceof NbdError) return error.nbdError;
  throw error ?? new Error('the request succeeded');
}

/** A sequence that is the same in every run; below `limit`. */
function sequence(): (limit: number) => number {
  let state = 12_345;
  return (limit) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return (state >>> 8) % limit;
  };
}

t.test('the data path of one volume', async (t) => {
  const bench = await VolumeBench.start(t, { replicas: 2, sizeBytes: SIZE });

  await t.test('#71 random reads and writes equal a shadow copy', async (t) => {
    const client = await bench.client();
    const next = sequence();
    let wrong = 0;
    for (let i = 0; i < 600; i++) {
      const length = (1 + next(64)) * LOGICAL_BLOCK;
      const offset = next((SIZE - length) / LOGICAL_BLOCK) * LOGICAL_BLOCK;
      if (i % 3 === 2) {
        const expected = bench.model.subarray(offset, offset + length);
        if (!(await client.read(offset, length)).equals(expected)) wrong++;
      } else {
        const data = randomBytes(length);
        await client.write(offset, data);
        data.copy(bench.model, offset);
      }
    }
    t.equal(wrong, 0);
    t.ok(await bench.holds());
    t.same(await bench.imagesOf(bench.slot(0)), await bench.imagesOf(bench.slot(1)));
  });

  await t.test('#72 requests beyond the end fail and change nothing', async (t) => {
    const client = await bench.client();
    for (const [offset, length] of [
      [SIZE, SECTOR],
      [SIZE - SECTOR, 2 * SECTOR],
      [SIZE + 100 * MIB, LOGICAL_BLOCK],
    ] as const) {
      const codes = [
        await codeOf(client.write(offset, Buffer.alloc(length, 1))),
        await codeOf(client.read(offset, length)),
        await codeOf(client.trim(offset, length)),
      ];
      t.same(codes, [ENOSPC, EINVAL, ENOSPC], `${length} bytes at ${offset}`);
    }
    t.ok(await bench.holds());
    t.same(await bench.modes(), ['RW', 'RW']);
  });

  await t.test('#73 metrics count what goes in each direction', async (t) => {
    const client = await bench.client();
    await bench.withApi(async ({ engine }) => {
      const busy = async (run: () => Promise<unknown>, key: 'write' | 'read'): Promise<void> => {
        await waitUntil(`the ${key} metrics move`, async () => {
          await run();
          const { metrics } = await engine.metricsGet({});
          return Number(metrics?.[`${key}IOPS`]) > 0;
        });
        const { metrics } = await engine.metricsGet({});
        t.ok(Number(metrics?.[`${key}Throughput`]) > 0, `${key} bytes`);
        t.ok(Number(metrics?.[`${key}Latency`]) > 0, `${key} latency`);
      };
      await busy(() => bench.fill(0, SECTOR, 3), 'write');
      await busy(() => client.read(0, SECTOR), 'read');
    });
  });

  // Longhorn's endpoints are a device and an IQN; ours is what an NBD client is given.
  await t.test('#74 info shows endpoint, name and state of the frontend', async (t) => {
    t.match(await bench.json('info'), {
      endpoint: bench.stack.nbdUri,
      frontend: 'nbd',
      frontendState: 'up',
    });
  });

  await t.test('#76 frontends come and go, and the data stays', async (t) => {
    const other = await bench.cli('frontend', 'start', 'socket');
    t.not(other.code, 0, 'another one while one is up');
    t.match(other.stderr, /frontend/);
    t.ok(await bench.holds());
    bench.detach();
    await bench.ok('frontend', 'shutdown');
    t.match(await bench.json('info'), { endpoint: '', frontendState: 'down' });
    await t.rejects(bench.client(), 'nobody listens');
    await bench.ok('frontend', 'start', 'nbd');
    t.ok(await bench.holds());
    await bench.stack.engine?.end();
    bench.detach();
    await bench.stack.startEngine(bench.stack.replicas, ['--frontend', 'none']);
    t.match(await bench.json('info'), { endpoint: '', frontend: '' });
    await bench.ok('frontend', 'start', 'nbd');
    t.ok(await bench.holds());
    await bench.ok('frontend', 'shutdown');
    bench.detach();
    await bench.ok('frontend', 'start', 'nbd');
    t.ok(await bench.holds());
  });

  // With NBD it is a socket that an engine leaves which was killed.
  await t.test('#75 a left-over socket is no obstacle, and no file is taken for one', async (t) => {
    await bench.fill(0, MIB, 9);
    await bench.stack.engine?.end('SIGKILL');
    bench.detach();
    t.ok(existsSync(bench.stack.nbdSocket), 'it was left');
    const connection = createConnection(bench.stack.nbdSocket);
    await t.rejects(new Promise((_, reject) => connection.once('error', reject)), /ECONNREFUSED/);
    await bench.stack.startEngine();
    t.ok(await bench.holds());
    await bench.stack.engine?.end();
    bench.detach();
    await writeFile(bench.stack.nbdSocket, 'precious');
    const refused = bench.stack.launchEngine();
    t.match(await refused.ended, { code: 1 }, refused.text());
  });
});

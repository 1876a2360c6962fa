// The socket set at every stage of an environment's life: exceptions in callbacks, process exit,
// worker threads that are terminated with open connections, use after shutdown, wrong arguments.

import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import t from 'tap';

import { addon, type NativeSocketEvents, type NativeSocketSet } from '../../src/addon/addon.js';

const directory = mkdtempSync(join(tmpdir(), 'longhorn-sockets-'));
t.teardown(() => rmSync(directory, { recursive: true }));
let pathCount = 0;
const socketPath = (): string => join(directory, `s${pathCount++}`);

const SUPPORT = new URL('./socket-life.js', import.meta.url);

const INHERITED = ['LONGHORN_ADDON_PATH', 'LD_PRELOAD', 'ASAN_OPTIONS', 'UBSAN_OPTIONS'];

/** Without the test runner's own hooks, but with what a sanitizer build needs. */
function environment(): NodeJS.ProcessEnv {
  const result: NodeJS.ProcessEnv = { SOCKET_PATH: socketPath() };
  for (const name of INHERITED) {
    if (process.env[name] !== undefined) result[name] = process.env[name];
  }
  return result;
}

function startWorker(stage: string): Worker {
  return new Worker(SUPPORT, { argv: [stage], env: environment(), execArgv: [] });
}

/** Runs test/native/socket-life.ts as a process of its own. */
function live(stage: string): ReturnType<typeof spawnSync> {
  const options = { env: environment(), encoding: 'utf8', timeout: 20_000 } as const;
  return spawnSync(process.execPath, [SUPPORT.pathname, stage], options);
}

function newSet(events: Partial<NativeSocketEvents> = {}): NativeSocketSet {
  const nothing = (): void => undefined;
  return new addon.SocketSet(addon.allocateSlab(1 << 20), 0, 8, 1 << 16, {
    connected: nothing,
    accepted: nothing,
    received: nothing,
    sent: nothing,
    closed: nothing,
    ...events,
  });
}

for (const stage of [
  'throw-in-received',
  'throw-in-sent',
  'throw-in-accepted',
  'throw-in-closed',
]) {
  t.test(`an exception ends the process with its message: ${stage}`, async (t) => {
    const result = live(stage);
    t.equal(result.status, 1);
    t.match(String(result.stderr), new RegExp(`Error: deliberate ${stage}`));
  });
}

for (const stage of ['exit-idle', 'exit-connecting', 'exit-open', 'exit-in-received']) {
  t.test(`process.exit() is clean at the stage ${stage}`, async (t) => {
    const result = live(stage);
    t.equal(String(result.stderr), '');
    t.equal(result.status, 7);
  });
}

t.test('a process ends by itself when nothing is open, also without shutdown()', async (t) => {
  const result = live('end-idle');
  t.equal(String(result.stderr), '');
  t.same([result.status, result.signal], [0, null]);
});

t.test('an open connection keeps the process alive until it closes', async (t) => {
  const result = live('end-after-close');
  t.equal(String(result.stderr), '');
  t.equal(String(result.stdout), 'closed\n');
  t.equal(result.status, 0);
});

t.test('a handler of uncaught exceptions may go on: other events still arrive', async (t) => {
  const result = live('survive');
  t.equal(String(result.stdout), 'caught deliberate survive\nstill received\n');
  t.equal(result.status, 0);
});

for (const stage of ['worker-idle', 'worker-open', 'worker-busy']) {
  t.test(`worker.terminate() leaves no descriptor: ${stage}`, async (t) => {
    const before = readdirSync('/proc/self/fd').length;
    for (let round = 0; round < 5; round++) {
      const worker = startWorker(stage);
      await once(worker, 'message');
      await worker.terminate();
    }
    t.equal(readdirSync('/proc/self/fd').length, before);
  });
}

t.test('a worker that ends by itself closes what it left open', async (t) => {
  const worker = startWorker('exit-open');
  const [code] = await once(worker, 'exit');
  t.equal(code, 7);
});

t.test('a set that was shut down refuses work and stays harmless', async (t) => {
  const set = newSet();
  const path = socketPath();
  const listener = set.listenUnix(path);
  t.ok(listener >= 0);
  set.shutdown();
  set.shutdown();
  t.ok(set.connectUnix(path) < 0);
  t.ok(set.listenUnix(path) < 0);
  t.equal(set.listenerPort(listener), 0);
  set.closeListener(listener);
  set.start(0);
  set.resume(0);
  set.close(0);
});

t.test('wrong arguments are refused before any memory is touched', async (t) => {
  const set = newSet();
  const slab = addon.allocateSlab(1 << 16);
  const nothing = (): void => undefined;
  const events = {
    connected: nothing,
    accepted: nothing,
    received: nothing,
    sent: nothing,
    closed: nothing,
  };
  t.throws(() => new addon.SocketSet(slab, 1 << 16, 8, 1, events), TypeError);
  t.throws(() => new addon.SocketSet(slab, 2, 8, 1, events), TypeError);
  t.throws(() => new addon.SocketSet(slab, 0, 0, 1, events), TypeError);
  t.throws(() => new addon.SocketSet(slab, -4, 8, 1, events), TypeError);
  const incomplete = { ...events, closed: undefined as unknown as () => void };
  t.throws(() => new addon.SocketSet(slab, 0, 8, 1, incomplete), TypeError);
  t.ok(set.connectTcp('not an address', 80) < 0);
  t.ok(set.connectTcp('127.0.0.1', -1) < 0);
  t.ok(set.connectUnix('p'.repeat(108)) < 0);
  t.throws(() => set.attach(99, 0), RangeError);
  t.throws(() => set.attach(-1, 0), RangeError);
  set.closeListener(12);
  set.close(12345);
  const id = set.listenUnix(socketPath());
  t.ok(id >= 0);
  set.shutdown();
});

t.test('a segment or target outside the slab closes the connection with EFAULT', async (t) => {
  const path = socketPath();
  const slab = addon.allocateSlab(1 << 20);
  const words = new Int32Array(slab);
  const blocks = [4096, 4096 * 32];
  for (const bad of ['segment', 'target', 'empty'] as const) {
    words.fill(0);
    const ends: Promise<number> = new Promise((resolve) => {
      const set = new addon.SocketSet(slab, 0, 8, 1 << 16, {
        connected(id) {
          set.attach(id, blocks[0] as number);
          const block = (blocks[0] as number) / 4;
          words[block] = 4096 * 64;
          words[block + 1] = 4096 * 64 + (bad === 'empty' ? 0 : 100);
          if (bad === 'segment') {
            words.set([1 << 20, 1, 0], block + 16);
            words[block + 7] = 1;
            words.set([1, 0, id], 0);
          }
          if (bad === 'target') words.set([(1 << 20) - 1, 2], block + 2);
          set.start(id);
        },
        accepted(_listener, id) {
          set.attach(id, blocks[1] as number);
          const block = (blocks[1] as number) / 4;
          words.set([0, 4, 0], block + 16);
          words[block + 7] = 1;
          const count = words[0] as number;
          words[2 + count] = id;
          words[0] = count + 1;
        },
        received: () => undefined,
        sent: () => undefined,
        closed(_id, errno) {
          set.shutdown();
          resolve(errno);
        },
      });
      set.listenUnix(path);
      set.connectUnix(path);
    });
    t.equal(await ends, 14, bad);
  }
});

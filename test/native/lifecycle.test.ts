// The addon's disk at every stage of its life, when the process or the worker thread ends: no
// crash, no hang, no lost completion, nothing left behind.

import { execFile } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';

import t from 'tap';

import { SLAB_BYTES } from '../../src/core/slab.js';
import { KIB } from '../../src/core/units.js';
import type { End, Stage } from '../support/disk-lifecycle-main.js';
import { BACKENDS, type Backend, refusal } from '../support/native-disk.js';

const MAIN = fileURLToPath(new URL('../support/disk-lifecycle-main.js', import.meta.url));
const STAGES: readonly Stage[] = [
  'loaded',
  'created',
  'opening',
  'open',
  'queued',
  'inFlight',
  'syncing',
  'load',
  'completing',
  'control',
  'closing',
  'closed',
  'shuttingDown',
  'shutDown',
];
/** Enough for a process each; the rest is alike for a thread and a process. */
const PROCESS_STAGES: readonly Stage[] = ['opening', 'queued', 'load', 'completing', 'closing'];
const EXIT_CODE = 7;
/** A child that takes longer hangs. */
const CHILD_TIMEOUT_MS = 60_000;

/** Without the test runner's own hooks, which would make every child slow to start. */
const CHILD_ENV: NodeJS.ProcessEnv = { ...process.env, NODE_OPTIONS: '' };

interface Ended {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

function runNode(args: string[], limits = ''): Promise<Ended> {
  const command = `${limits} exec "$0" "$@"`;
  return new Promise((resolve) => {
    const child = execFile(
      'sh',
      ['-c', command, process.execPath, ...args],
      { timeout: CHILD_TIMEOUT_MS, killSignal: 'SIGKILL', env: CHILD_ENV },
      (_error, stdout, stderr) => {
        resolve({ code: child.exitCode, signal: child.signalCode, stdout, stderr });
      },
    );
  });
}

async function temporaryDirectory(t: {
  teardown(end: () => Promise<void>): void;
}): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'longhorn-life-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

function runStage(stage: Stage, end: End, backend: Backend, directory: string): Promise<Ended> {
  return runNode([MAIN, stage, end, backend, directory]);
}

/**
 * Runs a stage in a worker thread; its exit code. With the end 'wait' it is terminated as soon as
 * it has reached the stage.
 */
function runWorker(stage: Stage, end: End, backend: Backend, directory: string): Promise<number> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(MAIN, {
      workerData: [stage, end, backend, directory],
      execArgv: [],
      env: CHILD_ENV,
    });
    worker.on('message', () => void worker.terminate());
    worker.on('error', reject);
    worker.on('exit', resolve);
  });
}

function descriptorCount(): number {
  return readdirSync('/proc/self/fd').length;
}

function virtualBytes(): number {
  const match = /^VmSize:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'));
  return Number(match?.[1]) * KIB;
}

for (const backend of BACKENDS) {
  const skip = refusal(backend);

  t.test(`${backend}: a process ends by itself, after its I/O`, { skip }, async (t) => {
    const directory = await temporaryDirectory(t);
    for (const stage of PROCESS_STAGES) {
      const { code, signal, stderr } = await runStage(stage, 'return', backend, directory);
      t.same({ code, signal, stderr }, { code: 0, signal: null, stderr: '' }, stage);
    }
  });

  t.test(`${backend}: process.exit ends a process at once`, { skip }, async (t) => {
    const directory = await temporaryDirectory(t);
    for (const stage of PROCESS_STAGES) {
      const { code, signal, stderr } = await runStage(stage, 'exit', backend, directory);
      t.same({ code, signal, stderr }, { code: EXIT_CODE, signal: null, stderr: '' }, stage);
    }
  });

  t.test(
    `${backend}: a worker thread may end at any stage and leaves nothing`,
    { skip },
    async (t) => {
      const directory = await temporaryDirectory(t);
      await runWorker('load', 'wait', backend, directory);
      const descriptorsBefore = descriptorCount();
      const bytesBefore = virtualBytes();
      for (const stage of STAGES) {
        t.equal(await runWorker(stage, 'return', backend, directory), 0, `${stage}: by itself`);
        t.equal(await runWorker(stage, 'exit', backend, directory), EXIT_CODE, `${stage}: exit`);
        t.equal(await runWorker(stage, 'wait', backend, directory), 1, `${stage}: terminated`);
      }
      t.ok(descriptorCount() <= descriptorsBefore, 'no descriptor is left');
      // Dozens of slabs have come and gone; a few thread arenas may stay.
      t.ok(virtualBytes() - bytesBefore < 8 * SLAB_BYTES, 'no slab is left');
    },
  );

  t.test(
    `${backend}: an exception in complete() is reported and loses no completion`,
    { skip },
    async (t) => {
      const directory = await temporaryDirectory(t);
      const { code, stdout, stderr } = await runStage('load', 'throw', backend, directory);
      t.equal(code, 0, stderr);
      t.same(JSON.parse(stdout), { caught: 10, finished: 100, pending: 0 });
    },
  );
}

t.test('without a descriptor for a ring, auto takes threads and io_uring says why', async (t) => {
  const directory = await temporaryDirectory(t);
  const args = [MAIN, 'created', 'fallback', 'auto', directory];
  const { code, stdout, stderr } = await runNode(args, 'ulimit -n 64;');
  t.equal(code, 0, stderr);
  t.match(JSON.parse(stdout), {
    backend: 'threads',
    refusal: /disk backend 'io_uring' cannot be used here: Too many open files/,
  });
});

t.test(
  'an exception in complete() that nobody handles ends the process, not silently',
  async (t) => {
    const directory = await temporaryDirectory(t);
    const script = `
    import { createNativeDisk } from ${JSON.stringify(new URL('../../src/disk/native-disk.js', import.meta.url).href)};
    import { silentLogger } from ${JSON.stringify(new URL('../../src/core/log.js', import.meta.url).href)};
    const disk = createNativeDisk({ log: silentLogger });
    const file = await disk.open(${JSON.stringify(join(directory, 'a'))}, { writable: true, create: true });
    disk.queue.submit({ op: 2, file, bufferOffset: 0, lengthBytes: 0, fileOffsetBytes: 0,
      complete() { throw new Error('a bug in complete'); } });`;
    const { code, stderr } = await runNode(['--input-type=module', '-e', script]);
    t.equal(code, 1);
    t.match(stderr, /a bug in complete/);
  },
);

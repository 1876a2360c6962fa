// The benchmark with inputs so small that its figures mean nothing: it still runs, it reads fio and
// /proc rightly, it judges rightly, and it leaves nothing behind. No figure of a run is asserted.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { fioArguments, onNbd, parseFioReport } from '../../bench/fio.js';
import { judgeGoals } from '../../bench/goals.js';
import { missingPrograms } from '../../bench/machine.js';
import { parseCpuMicros, parseMemory } from '../../bench/process-stats.js';
import { renderReport } from '../../bench/report.js';
import { type BenchResults, median, ratioTo, type Sample } from '../../bench/results.js';

const MAIN = fileURLToPath(new URL('../../bench/main.js', import.meta.url));
const TINY = ['--quick', '--size', '16m', '--requests', '32', '--idle', '0'];

interface Run {
  readonly child: ChildProcess;
  readonly stdout: () => string;
  readonly stderr: () => string;
}

async function temporaryDirectory(test: Test): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'bench-test-'));
  test.teardown(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

/** Without the options that the test runner gives to every Node process: a user's have none. */
function startBench(args: readonly string[], path = process.env['PATH']): Run {
  const clean = ['-u', 'NODE_OPTIONS', `PATH=${path}`, process.execPath, MAIN, ...args];
  const child = spawn('/usr/bin/env', clean, { stdio: ['ignore', 'pipe', 'pipe'] });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  return { child, stdout: () => stdout, stderr: () => stderr };
}

/** Resolves when stderr holds the text, or when the run is over. */
function untilSaid({ child, stderr }: Run, text: string): Promise<void> {
  return new Promise((resolve) => {
    child.stderr?.on('data', () => void (stderr().includes(text) && resolve()));
    child.once('close', () => resolve());
  });
}

/** Processes whose command line names the directory. */
async function processesUsing(directory: string): Promise<string[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const lines = pids.map((pid) => readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => ''));
  return (await Promise.all(lines))
    .filter((line) => line.includes(`${directory}/longhorn-bench-`))
    .map((line) => line.replaceAll('\0', ' '));
}

function sample(round: number, iops: number, cpu: Record<string, number>): Sample {
  const rest = { bytesPerSecond: iops * 4096, meanMicros: 100, p99Micros: 200, othersCpuShare: 0 };
  return { round, iops, cpuMicrosPerIo: cpu, ...rest };
}

/** Two rounds on a disk that was half as fast in the second. */
function results(oursIops: readonly [number, number], cpuMicros: number): BenchResults {
  const cell = 'randread-qd32';
  const ours = oursIops.map((iops, i) =>
    sample(i + 1, iops, { engine: cpuMicros, 'replica 1': 1 }),
  );
  const theirs = [sample(1, 1000, { 'qemu-nbd': 30 }), sample(2, 500, { 'qemu-nbd': 30 })];
  const memory = { anonymousBytes: 12 * 1024 * 1024, rssBytes: 51 * 1024 * 1024 };
  return {
    startedAt: '2026-01-01T00:00:00.000Z',
    machine: {
      ...{ cpu: 'a processor', cores: 2, memoryBytes: 2 ** 34, kernel: '6.1', node: 'v20' },
      ...{ fio: 'fio-3', qemuNbd: 'qemu-nbd 7', disk: 'ext4 on /dev/sda', loadAverageBefore: 0 },
    },
    settings: {
      ...{ sizeBytes: 2 ** 30, rounds: 2, seconds: 3, requests: null },
      ...{ idleSeconds: 2, dataProtocol: 'tcp' },
    },
    cells: [
      { cell, target: '1 replica', samples: ours },
      { cell, target: 'qemu-nbd', samples: theirs },
    ],
    starts: [{ round: 1, target: '1 replica', process: 'engine', startMs: 250, ...memory }],
  };
}

t.test('ratios compare what ran in the same round', async (t) => {
  const found = results([900, 450], 10);
  t.same(ratioTo(found, '1 replica', 'qemu-nbd', 'randread-qd32'), { median: 0.9, best: 0.9 });
  t.equal(ratioTo(found, '1 replica', 'raw file', 'randread-qd32'), null);
  t.equal(median([5, 1, 3]), 3);
  t.equal(median([5, 1, 3, 2]), 2.5);
  t.ok(Number.isNaN(median([])));
});

t.test('a goal is met, missed or not measured', async (t) => {
  const verdictOf = (found: BenchResults, measure: string): boolean | null | undefined =>
    judgeGoals(found).find((goal) => goal.measure === measure)?.isMet;
  const good = results([900, 450], 34);
  const bad = results([890, 440], 35);
  t.equal(verdictOf(good, '1 replica, randread-qd32'), true);
  t.equal(verdictOf(bad, '1 replica, randread-qd32'), false);
  t.equal(verdictOf(good, '1 replica, randwrite-qd32'), null);
  t.equal(verdictOf(good, 'CPU a request, 1 replica, randread-qd32'), true, 'engine and replica');
  t.equal(verdictOf(bad, 'CPU a request, 1 replica, randread-qd32'), false);
  t.equal(verdictOf(good, 'engine, private memory when idle'), true, 'the limit itself is met');
  t.equal(verdictOf(good, 'engine, RSS when idle'), false);
  t.equal(verdictOf(good, 'engine, start to serving'), true);
  t.equal(verdictOf(good, 'replica, start to serving'), null);
});

t.test('reports say what ran where, and mark what others disturbed', async (t) => {
  const found = results([900, 450], 10);
  const text = renderReport(found, 'text');
  for (const part of [
    'a processor',
    'ext4 on /dev/sda',
    'NOT MET',
    'not measured',
    '0.90 (0.90)',
  ]) {
    t.match(text, part);
  }
  t.notMatch(text, '1 replica *');
  const [ours] = found.cells;
  const disturbed = ours?.samples.map((entry) => ({ ...entry, othersCpuShare: 0.2 })) ?? [];
  const cells = [{ cell: 'randread-qd32', target: '1 replica', samples: disturbed }];
  t.match(renderReport({ ...found, cells }, 'text'), '1 replica *');
  t.match(renderReport(found, 'markdown'), '| job | target |');
});

t.test('fio is never told to run for less than a second', async (t) => {
  const place = onNbd('/run/a.sock', 'vol');
  const job = { rw: 'randread', blockBytes: 4096, depth: 32 } as const;
  const run = { job, place, sizeBytes: 4096 };
  t.throws(() => fioArguments({ ...run, length: { seconds: 0.5 } }), RangeError);
  t.ok(fioArguments({ ...run, length: { seconds: 1 } }).includes('--runtime=1'));
  t.ok(fioArguments({ ...run, length: { requests: 5 } }).includes('--number_ios=5'));
  t.ok(
    fioArguments({ ...run, length: 'once' }).includes('--uri=nbd+unix:///vol?socket=/run/a.sock'),
  );
});

t.test('fio reports are read with text before them, and failures are seen', async (t) => {
  const idle = { total_ios: 0, iops: 0, bw_bytes: 0, runtime: 0, lat_ns: { mean: 0 }, clat_ns: {} };
  const busy = {
    ...{ total_ios: 100, iops: 50, bw_bytes: 204800, runtime: 2000, lat_ns: { mean: 5000 } },
    clat_ns: { max: 12_000, percentile: { '99.000000': 9000 } },
  };
  const report = (error: number, write: object): string =>
    JSON.stringify({ jobs: [{ error, usr_cpu: 10, sys_cpu: 15, read: idle, write }] });
  t.same(parseFioReport(`fio: a note\n${report(0, busy)}`, 'randwrite'), {
    ...{ requests: 100, iops: 50, bytesPerSecond: 204800, meanMicros: 5, p99Micros: 9 },
    ...{ maxMicros: 12, cpuMicros: 500_000 },
  });
  t.throws(() => parseFioReport(report(5, busy), 'randwrite'), /errno 5/);
  t.throws(() => parseFioReport(report(0, idle), 'randwrite'), /no requests/);
  t.throws(() => parseFioReport('fio: no such engine', 'read'), /no such engine/);
});

t.test('CPU time and memory are read from what the kernel prints', async (t) => {
  const fields = Array.from({ length: 50 }, (_, i) => (i === 11 ? 150 : i === 12 ? 50 : 0));
  t.equal(parseCpuMicros(`42 (a ) name) ${fields.join(' ')}`), 2_000_000);
  const rollup = 'Rss:               2048 kB\nPss_Anon: 1 kB\nAnonymous:         1024 kB\n';
  t.same(parseMemory(rollup), { anonymousBytes: 1024 * 1024, rssBytes: 2048 * 1024 });
});

t.test('wrong use is told, with status 2', async (t) => {
  const wrong = [
    ['--seconds', '0'],
    ['--rounds', 'x'],
    ['--only', 'none'],
    ['--target', 'tape'],
  ];
  for (const args of [...wrong, ['--size', '5000'], ['--surprise']]) {
    const run = startBench(args);
    const [code] = await once(run.child, 'close');
    t.equal(code, 2, args.join(' '));
    t.match(run.stderr(), 'usage: npm run bench');
  }
});

t.test('missing programs are named with their packages, with status 1', async (t) => {
  const run = startBench(TINY, '/nonexistent');
  const [code] = await once(run.child, 'close');
  t.equal(code, 1);
  t.match(run.stderr(), 'apt-get install fio');
  t.match(run.stderr(), 'apt-get install qemu-utils');
});

const missing = await missingPrograms();
const skip = missing.length === 0 ? false : missing.join('; ');

t.test('a tiny run measures every target and leaves nothing behind', { skip }, async (t) => {
  const directory = await temporaryDirectory(t);
  const json = join(directory, 'results.json');
  const cells = ['--only', 'randread-qd32', '--only', 'write-1m'];
  const run = startBench([...TINY, ...cells, '--dir', directory, '--json', json, '--markdown']);
  const [code] = await once(run.child, 'close');
  t.equal(code, 0, run.stderr());
  t.match(run.stdout(), '| randread-qd32 | 3 replicas');
  t.same(await processesUsing(directory), []);
  t.same(await readdir(directory), ['results.json']);

  const found = JSON.parse(await readFile(json, 'utf8')) as BenchResults & { goals: unknown[] };
  t.same(
    found.cells.map(({ cell, target, samples }) => `${cell}, ${target}: ${samples.length}`),
    ['1 replica', '3 replicas', 'qemu-nbd', 'raw file'].flatMap((target) => [
      `randread-qd32, ${target}: 1`,
      `write-1m-qd4, ${target}: 1`,
    ]),
  );
  t.same(
    found.starts.map(({ process }) => process).filter((name) => !name.startsWith('sync agent')),
    ['replica 1', 'engine', 'replica 1', 'replica 2', 'replica 3', 'engine', 'qemu-nbd'],
  );
  t.ok(
    found.starts.every(
      ({ anonymousBytes, rssBytes }) => 0 < anonymousBytes && anonymousBytes < rssBytes,
    ),
  );
  t.equal(found.goals.length, judgeGoals(found).length);

  const again = startBench(['--from', json, '--markdown']);
  await once(again.child, 'close');
  t.equal(again.stdout(), run.stdout(), 'the file holds all that was printed');
});

t.test('an interrupted run ends its processes and removes its files', { skip }, async (t) => {
  const directory = await temporaryDirectory(t);
  const run = startBench([...TINY, '--idle', '600', '--dir', directory]);
  const closed = once(run.child, 'close');
  await untilSaid(run, 'start and idle memory');
  run.child.kill('SIGINT');
  t.same(await closed, [130, null], run.stderr());
  t.same(await processesUsing(directory), []);
  t.same(await readdir(directory), []);
});

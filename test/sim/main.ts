// `npm run sim`: one seed with a readable trace, or many on all cores. Prints what to run to see a
// failure again. See docs/testing.md.

import { fork } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { runSeed, type SeedResult } from './run-seed.js';

const USAGE = `usage: npm run sim -- [--seed N [--trace]] [--seeds COUNT [--from N]] [--jobs N]
  --seed N       run one seed
  --trace        print all that happens
  --seeds COUNT  run seeds N, N+1, … (default from 1)`;

interface Options {
  seed: number | null;
  isTraced: boolean;
  seeds: number;
  from: number;
  jobs: number;
}

function parse(args: readonly string[]): Options | null {
  const options: Options = {
    seed: null,
    isTraced: false,
    seeds: 0,
    from: 1,
    jobs: availableParallelism(),
  };
  for (let i = 0; i < args.length; i++) {
    const arg = args[i] as string;
    if (arg === '--trace') {
      options.isTraced = true;
      continue;
    }
    const value = Number(args[++i]);
    if (!Number.isSafeInteger(value) || value < 0) return null;
    if (arg === '--seed') options.seed = value;
    else if (arg === '--seeds') options.seeds = value;
    else if (arg === '--from') options.from = value;
    else if (arg === '--jobs') options.jobs = Math.max(1, value);
    else return null;
  }
  return options.seed === null && options.seeds === 0 ? null : options;
}

function report(result: SeedResult): void {
  if (result.violation === null) return;
  console.log(`FAILED seed ${result.seed}: ${result.violation.text}`);
  console.log(`  again: npm run sim -- --seed ${result.seed} --trace`);
}

async function one(seed: number, isTraced: boolean): Promise<number> {
  const result = await runSeed(seed, isTraced);
  if (result.lines !== null) for (const line of result.lines) console.log(line);
  report(result);
  const { hash, opsDone, opsAcked, events, virtualMs, wipes } = result;
  console.log(
    `seed ${seed}: ${opsDone} requests, ${opsAcked} acknowledged, ${events} events, ${virtualMs} ms, ${wipes} wiped, trace ${hash.toString(16)}`,
  );
  return result.violation === null ? 0 : 1;
}

interface Tally {
  passed: number;
  failed: number;
  opsDone: number;
  wipes: number;
}

/** Each child takes every jobs-th seed. */
async function many({ seeds, from, jobs }: Options): Promise<number> {
  const started = performance.now();
  const tally: Tally = { passed: 0, failed: 0, opsDone: 0, wipes: 0 };
  const count = Math.min(jobs, seeds);
  await Promise.all(
    Array.from({ length: count }, (_, index) => child(from + index, count, from + seeds, tally)),
  );
  const seconds = (performance.now() - started) / 1000;
  const rate = (seeds / seconds).toFixed(1);
  console.log(
    `${seeds} seeds in ${seconds.toFixed(1)} s (${rate} a second), ${tally.opsDone} requests, ${tally.wipes} replicas wiped`,
  );
  console.log(`${tally.passed} passed, ${tally.failed} failed`);
  return tally.failed === 0 ? 0 : 1;
}

function child(first: number, step: number, end: number, tally: Tally): Promise<void> {
  return new Promise((resolve) => {
    let done = first;
    const worker = fork(fileURLToPath(import.meta.url), [
      'worker',
      `${first}`,
      `${step}`,
      `${end}`,
    ]);
    worker.on('message', (result: SeedResult) => {
      done += step;
      tally.opsDone += result.opsDone;
      tally.wipes += result.wipes;
      if (result.violation === null) tally.passed++;
      else tally.failed++;
      report(result);
    });
    worker.on('exit', () => {
      if (done < end) {
        console.log(`FAILED seed ${done}: the process that ran it ended`);
        tally.failed++;
      }
      resolve();
    });
  });
}

async function worker(first: number, step: number, end: number): Promise<void> {
  for (let seed = first; seed < end; seed += step) process.send?.(await runSeed(seed));
  process.disconnect();
}

const args = process.argv.slice(2);
if (args[0] === 'worker') {
  const [first = 0, step = 1, end = 0] = args.slice(1).map(Number);
  await worker(first, step, end);
} else {
  const options = parse(args);
  if (options === null) {
    console.error(USAGE);
    process.exitCode = 2;
  } else if (options.seed !== null) {
    process.exitCode = await one(options.seed, options.isTraced);
  } else process.exitCode = await many(options);
}

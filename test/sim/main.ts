// `npm run sim`: one seed with a readable trace, or many on all cores, or the planted bugs. Prints
// what to run to see a failure again. See docs/testing.md.

import { fork } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { MUTANTS } from './mutants/all.js';
import type { Mutant } from './mutants/mutant.js';
import { runSeed, type SeedResult } from './run-seed.js';

const USAGE = `usage: npm run sim -- --seed N [--trace] [--mutant NAME]
       npm run sim -- --seeds COUNT [--from N] [--jobs N]
       npm run sim -- --mutants [--seeds COUNT] [--from N] [--jobs N]
  --seed N       run one seed
  --trace        print all that happens
  --seeds COUNT  run seeds N, N+1, … (from 1)
  --mutant NAME  with this bug planted
  --mutants      plant each bug in turn; each must be noticed within COUNT seeds (200)`;

/** A planted bug must be noticed within so many seeds. */
const MUTANT_SEEDS = 200;

interface Options {
  seed: number | null;
  isTraced: boolean;
  seeds: number | null;
  from: number;
  jobs: number;
  mutant: string | null;
  areMutants: boolean;
}

interface WorkerTask {
  readonly first: number;
  readonly step: number;
  readonly end: number;
  readonly mutant: string | null;
}

function parse(args: readonly string[]): Options | null {
  const options: Options = {
    seed: null,
    isTraced: false,
    seeds: null,
    from: 1,
    jobs: availableParallelism(),
    mutant: null,
    areMutants: false,
  };
  for (let i = 0; i < args.length; i++) {
    const arg = args[i] as string;
    if (arg === '--trace') options.isTraced = true;
    else if (arg === '--mutants') options.areMutants = true;
    else if (arg === '--mutant') options.mutant = args[++i] ?? '';
    else {
      const value = Number(args[++i]);
      if (!Number.isSafeInteger(value) || value < 0) return null;
      if (arg === '--seed') options.seed = value;
      else if (arg === '--seeds') options.seeds = value;
      else if (arg === '--from') options.from = value;
      else if (arg === '--jobs') options.jobs = Math.max(1, value);
      else return null;
    }
  }
  const isComplete = options.seed !== null || options.seeds !== null || options.areMutants;
  return isComplete ? options : null;
}

function mutantOf(name: string | null): Mutant | null {
  if (name === null) return null;
  const mutant = MUTANTS.find((candidate) => candidate.name === name);
  if (mutant === undefined) {
    throw new Error(`no mutant ${name}; there are ${MUTANTS.map((m) => m.name).join(', ')}`);
  }
  return mutant;
}

function report(result: SeedResult): void {
  if (result.violation === null) return;
  console.log(`FAILED seed ${result.seed}: ${result.violation.text}`);
  console.log(`  again: npm run sim -- --seed ${result.seed} --trace`);
}

async function one(seed: number, isTraced: boolean, mutant: Mutant | null): Promise<number> {
  const result = await runSeed(seed, isTraced, mutant);
  if (result.lines !== null) for (const line of result.lines) console.log(line);
  report(result);
  const { hash, opsDone, opsAcked, events, virtualMs, wipes } = result;
  console.log(
    `seed ${seed}: ${opsDone} requests, ${opsAcked} acknowledged, ${events} events, ${virtualMs} ms, ${wipes} wiped, trace ${hash.toString(16)}`,
  );
  return result.violation === null ? 0 : 1;
}

/** Each child takes every jobs-th seed. */
async function many(from: number, seeds: number, jobs: number): Promise<number> {
  const started = performance.now();
  const tally = { passed: 0, failed: 0, opsDone: 0, wipes: 0 };
  const step = Math.min(jobs, seeds);
  const end = from + seeds;
  await Promise.all(
    Array.from({ length: step }, async (_, index) => {
      const task = { first: from + index, step, end, mutant: null };
      const unfinished = await runChild(task, (result) => {
        tally.opsDone += result.opsDone;
        tally.wipes += result.wipes;
        if (result.violation === null) tally.passed++;
        else tally.failed++;
        report(result);
        return true;
      });
      if (unfinished === null) return;
      console.log(`FAILED seed ${unfinished}: the process that ran it ended`);
      tally.failed++;
    }),
  );
  const seconds = (performance.now() - started) / 1000;
  const rate = (seeds / seconds).toFixed(1);
  console.log(
    `${seeds} seeds in ${seconds.toFixed(1)} s (${rate} a second), ${tally.opsDone} requests, ${tally.wipes} replicas wiped`,
  );
  console.log(`${tally.passed} passed, ${tally.failed} failed`);
  return tally.failed === 0 ? 0 : 1;
}

/** One mutant a child at a time; each from the same seed on. */
async function mutants(from: number, seeds: number, jobs: number): Promise<number> {
  const waiting = [...MUTANTS];
  let failed = 0;
  const work = async (): Promise<void> => {
    for (let mutant = waiting.shift(); mutant !== undefined; mutant = waiting.shift()) {
      const { name, mistake } = mutant;
      let noticed: SeedResult | null = null;
      const task = { first: from, step: 1, end: from + seeds, mutant: name };
      const unfinished = await runChild(task, (result) => {
        if (result.violation !== null) noticed = result;
        return noticed === null;
      });
      const found = noticed as SeedResult | null;
      if (found !== null) {
        const text = found.violation?.text.split('\n')[0]?.slice(0, 110) ?? '';
        console.log(`ok      ${name} (${mistake}): after ${found.seed - from + 1} seeds, ${text}`);
      } else if (unfinished !== null) {
        console.log(`ok      ${name} (${mistake}): its process ended at seed ${unfinished}`);
      } else {
        console.log(`FAILED  ${name} (${mistake}): not noticed in ${seeds} seeds`);
        failed++;
      }
    }
  };
  await Promise.all(Array.from({ length: jobs }, work));
  console.log(`${MUTANTS.length - failed} passed, ${failed} failed`);
  return failed === 0 ? 0 : 1;
}

/**
 * Runs seeds in a child process, which also survives what ends a process.
 * @param onResult false ends it.
 * @returns the seed at which it ended by itself, or null.
 */
function runChild(
  task: WorkerTask,
  onResult: (result: SeedResult) => boolean,
): Promise<number | null> {
  return new Promise((resolve) => {
    let next = task.first;
    let isStopped = false;
    const args = ['worker', JSON.stringify(task)];
    const child = fork(fileURLToPath(import.meta.url), args);
    child.on('message', (result: SeedResult) => {
      next += task.step;
      if (isStopped || onResult(result)) return;
      isStopped = true;
      child.kill();
    });
    child.on('exit', () => resolve(isStopped || next >= task.end ? null : next));
  });
}

async function worker({ first, step, end, mutant }: WorkerTask): Promise<void> {
  // Stacks of errors that are expected cost much time; a replay has them.
  Error.stackTraceLimit = 0;
  const planted = mutantOf(mutant);
  for (let seed = first; seed < end; seed += step) {
    const result = await runSeed(seed, false, planted);
    await new Promise<void>((resolve) => process.send?.(result, () => resolve()));
  }
  process.disconnect();
}

async function main(args: readonly string[]): Promise<number> {
  if (args[0] === 'worker') {
    await worker(JSON.parse(args[1] ?? '') as WorkerTask);
    return 0;
  }
  const options = parse(args);
  if (options === null) {
    console.error(USAGE);
    return 2;
  }
  const { seed, seeds, from, jobs, isTraced, mutant, areMutants } = options;
  if (seed !== null) return one(seed, isTraced, mutantOf(mutant));
  if (areMutants) return mutants(from, seeds ?? MUTANT_SEEDS, jobs);
  return many(from, seeds ?? 1, jobs);
}

process.exitCode = await main(process.argv.slice(2));

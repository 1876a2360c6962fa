// Does a deep chain of snapshots slow reads down? Two volumes get the same writes in the same order,
// one with a snapshot after each round of random 4 KiB writes, one with a single snapshot. Both are
// then read in turns, each time by processes that have just started: loading the owner index counts.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { ProcessStack } from '../test/support/process-stack.js';
import { type FioJob, onNbd, runFio } from './fio.js';
import type { Answer, Question, QuestionContext } from './questions.js';

const PROGRAM = fileURLToPath(new URL('../src/cli/main.js', import.meta.url));
const SNAPSHOTS = 50;
/** A read through 50 snapshots may cost at most 15 % more than through one. */
const SHARE_MIN = 1 / 1.15;
const MIB = 1024 ** 2;

const JOBS: readonly (readonly [string, FioJob])[] = [
  ['random 4 KiB reads', { rw: 'randread', blockBytes: 4096, depth: 32 }],
  ['sequential 1 MiB reads', { rw: 'read', blockBytes: MIB, depth: 4 }],
];

export const chain: Question = {
  name: 'chain',
  asks: `do reads through ${SNAPSHOTS} snapshots cost more than through one, after a restart too?`,
  answer,
};

interface Plan {
  readonly sizeBytes: number;
  /** 4 KiB writes between two snapshots. */
  readonly writes: number;
  readonly rounds: number;
  readonly seconds: number;
}

function planOf({ quick }: QuestionContext): Plan {
  return quick
    ? { sizeBytes: 512 * MIB, writes: 1000, rounds: 1, seconds: 2 }
    : { sizeBytes: 2048 * MIB, writes: 8000, rounds: 3, seconds: 4 };
}

async function answer(context: QuestionContext): Promise<readonly Answer[]> {
  const plan = planOf(context);
  const stacks: ProcessStack[] = [];
  try {
    for (const count of [1, SNAPSHOTS]) {
      context.progress(`writing a volume with ${count} snapshots`);
      stacks.push(await written(context, plan, count));
    }
    const answers: Answer[] = [];
    for (const [what, job] of JOBS) {
      const shares: number[] = [];
      for (let round = 0; round < plan.rounds; round++) {
        const rates = new Map<ProcessStack, number>();
        // The other one first in every second round.
        const order = round % 2 === 0 ? stacks : [...stacks].reverse();
        for (const stack of order) rates.set(stack, await coldRate(context, plan, stack, job));
        const [shallow, deep] = stacks.map((stack) => rates.get(stack) as number);
        context.progress(
          `${what}: ${Math.round(deep as number)} of ${Math.round(shallow as number)}`,
        );
        shares.push((deep as number) / (shallow as number));
      }
      answers.push({
        what: `${what} per second, ${SNAPSHOTS} snapshots of 1, median of rounds`,
        value: median(shares),
        goal: { relation: 'at least', value: Number(SHARE_MIN.toFixed(3)) },
      });
    }
    return answers;
  } finally {
    for (const stack of stacks) await stack.stop();
  }
}

/** A volume written whole and then, 50 times, at random; its processes are ended. */
async function written(
  context: QuestionContext,
  { sizeBytes, writes }: Plan,
  snapshots: number,
): Promise<ProcessStack> {
  const stack = await ProcessStack.create({
    size: String(sizeBytes),
    parent: context.directory,
  });
  try {
    await stack.startReplicas(1);
    await stack.startEngine();
    const place = onNbd(stack.nbdSocket, stack.volumeName);
    const fill: FioJob = { rw: 'write', blockBytes: MIB, depth: 4 };
    await runFio({ job: fill, place, sizeBytes, length: 'once' }, context.signal);
    for (let round = 1; round <= SNAPSHOTS; round++) {
      if (snapshots > 1 || round === 1) await snapshot(stack, `s${round}`);
      const job: FioJob = { rw: 'randwrite', blockBytes: 4096, depth: 32 };
      await runFio({ job, place, sizeBytes, length: { requests: writes } }, context.signal);
    }
    await end(stack);
    return stack;
  } catch (error) {
    await stack.stop();
    throw error;
  }
}

/** Requests a second of processes that have just been started. */
async function coldRate(
  context: QuestionContext,
  { sizeBytes, seconds }: Plan,
  stack: ProcessStack,
  job: FioJob,
): Promise<number> {
  for (const slot of stack.replicas) await stack.startReplica(slot);
  await stack.startEngine();
  try {
    const place = onNbd(stack.nbdSocket, stack.volumeName);
    return (await runFio({ job, place, sizeBytes, length: { seconds } }, context.signal)).iops;
  } finally {
    await end(stack);
  }
}

async function end(stack: ProcessStack): Promise<void> {
  await stack.engine?.end();
  for (const slot of stack.replicas) await slot.daemon?.end();
}

export function snapshot(stack: ProcessStack, name: string): Promise<void> {
  return runCommand(stack, ['snapshot', 'create', name]);
}

/** A command of `longhorn` to the stack's engine. @throws when it fails. */
export async function runCommand(stack: ProcessStack, command: readonly string[]): Promise<void> {
  const args = [PROGRAM, '--url', `127.0.0.1:${stack.enginePort}`, ...command];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'inherit'] });
  const [code] = await once(child, 'exit');
  if (code !== 0) throw new Error(`${command.join(' ')} ended with ${String(code)}`);
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] as number;
}

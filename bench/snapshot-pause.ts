// How long does a client wait when a snapshot is created? Random writes into sectors that had no
// space yet leave much for the file system to make durable. The longest request of a run with
// snapshots is set beside that of a run without.

import { setTimeout as sleep } from 'node:timers/promises';
import { ProcessStack } from '../test/support/process-stack.js';
import { type FioOutcome, onNbd, runFio } from './fio.js';
import type { Answer, Question, QuestionContext } from './questions.js';
import { snapshot } from './snapshot-chain.js';

const DEPTH = 32;
const PAUSE_MS_MAX = 50;
const GIB = 1024 ** 3;

export const snapshotPause: Question = {
  name: 'snapshot-pause',
  asks: `how long does a client at queue depth ${DEPTH} wait when a snapshot is created?`,
  answer,
};

async function answer(context: QuestionContext): Promise<readonly Answer[]> {
  const rounds = context.quick ? 1 : 5;
  const calm: number[] = [];
  const cut: number[] = [];
  for (let round = 1; round <= rounds; round++) {
    calm.push((await longest(context, false)).maxMicros / 1000);
    cut.push((await longest(context, true)).maxMicros / 1000);
    context.progress(`round ${round}: ${calm.at(-1)?.toFixed(0)} and ${cut.at(-1)?.toFixed(0)} ms`);
  }
  const added = cut.map((ms, round) => ms - (calm[round] as number));
  return [
    { what: 'longest request without a snapshot, median ms', value: median(calm) },
    { what: 'longest request with one, median ms', value: median(cut) },
    {
      what: 'added by the snapshot, median ms',
      value: median(added),
      goal: { relation: 'at most', value: PAUSE_MS_MAX },
    },
    { what: 'added by the snapshot, worst round, ms', value: Math.max(...added) },
  ];
}

/** One run of random writes over a new volume, with a snapshot in its middle or none. */
async function longest(context: QuestionContext, cuts: boolean): Promise<FioOutcome> {
  const seconds = context.quick ? 3 : 6;
  const stack = await ProcessStack.create({ size: '4g', parent: context.directory });
  try {
    await stack.startReplicas(1);
    await stack.startEngine();
    const run = runFio(
      {
        job: { rw: 'randwrite', blockBytes: 4096, depth: DEPTH },
        place: onNbd(stack.nbdSocket, stack.volumeName),
        sizeBytes: 4 * GIB,
        length: { seconds },
      },
      context.signal,
    );
    const [outcome] = await Promise.all([run, cuts && cutLater(context, stack, seconds / 2)]);
    return outcome;
  } finally {
    await stack.stop();
  }
}

async function cutLater(
  context: QuestionContext,
  stack: ProcessStack,
  seconds: number,
): Promise<void> {
  await sleep(seconds * 1000, undefined, { signal: context.signal });
  await snapshot(stack, 'cut');
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] as number;
}

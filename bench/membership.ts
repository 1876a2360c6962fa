// How long does a client wait when a replica dies? The engine notices the end of the connection at
// once; then everyone who remains must have stored that the dead one is out before the writes that it
// missed are acknowledged (P3), and a little later they cut the fork. The longest request of a run
// with a kill is set beside that of a run without.

import { setTimeout as sleep } from 'node:timers/promises';
import { ProcessStack, type ReplicaSlot } from '../test/support/process-stack.js';
import { type FioOutcome, onNbd, runFio } from './fio.js';
import type { Answer, Question, QuestionContext } from './questions.js';

const DEPTH = 32;
/** Detection of a killed process on this machine is immediate; this is the project's allowance. */
const PAUSE_MS_MAX = 50;

export const membership: Question = {
  name: 'membership',
  asks: `how long does a client at queue depth ${DEPTH} wait when one of three replicas is killed?`,
  answer,
};

async function answer(context: QuestionContext): Promise<readonly Answer[]> {
  const rounds = context.quick ? 1 : 5;
  const calm: number[] = [];
  const killed: number[] = [];
  for (let round = 1; round <= rounds; round++) {
    context.progress(`round ${round} of ${rounds}`);
    calm.push((await longest(context, false)).maxMicros / 1000);
    killed.push((await longest(context, true)).maxMicros / 1000);
  }
  const added = killed.map((ms, round) => ms - (calm[round] as number));
  return [
    { what: 'longest request without a failure, median ms', value: median(calm) },
    { what: 'longest request with one, median ms', value: median(killed) },
    {
      what: 'added by the failure, median ms',
      value: median(added),
      goal: { relation: 'at most', value: PAUSE_MS_MAX },
    },
    { what: 'added by the failure, worst round, ms', value: Math.max(...added) },
  ];
}

/** One run of random writes over a new volume; in its middle one replica is killed, or none. */
async function longest(context: QuestionContext, kills: boolean): Promise<FioOutcome> {
  const seconds = context.quick ? 2 : 6;
  const stack = await ProcessStack.create({ size: '1g', parent: context.directory });
  try {
    await stack.startReplicas(3);
    await stack.startEngine();
    const run = runFio(
      {
        job: { rw: 'randwrite', blockBytes: 4096, depth: DEPTH },
        place: onNbd(stack.nbdSocket, stack.volumeName),
        sizeBytes: 1024 ** 3,
        length: { seconds },
      },
      context.signal,
    );
    await sleep((seconds * 1000) / 2, undefined, { signal: context.signal });
    if (kills) (stack.replicas[2] as ReplicaSlot).daemon?.kill('SIGKILL');
    return await run;
  } finally {
    await stack.stop();
  }
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] as number;
}

// How fast is a snapshot of scattered 4 KiB writes purged while a client works? The replica copies
// its data down into the snapshot's removed parent; the time runs from the command to the end.

import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { ProcessStack, type ReplicaSlot } from '../test/support/process-stack.js';
import { onNbd, runFio, type FioJob } from './fio.js';
import type { Answer, Question, QuestionContext } from './questions.js';
import { runCommand, snapshot } from './snapshot-chain.js';

const MIB = 1024 ** 2;
const DATA_MIB = 350;
const RATE_MIN = 100;
const POLL_MS = 50;

export const purge: Question = {
  name: 'purge',
  asks: `how fast is a snapshot with random 4 KiB data purged while a client reads and writes?`,
  answer,
};

async function answer(context: QuestionContext): Promise<readonly Answer[]> {
  const rates: number[] = [];
  for (let round = 1; round <= (context.quick ? 1 : 3); round++) {
    rates.push(await rateOf(context));
    context.progress(`round ${round}: ${rates.at(-1)?.toFixed(0)} MB/s`);
  }
  rates.sort((a, b) => a - b);
  return [
    {
      what: `purge of ${context.quick ? DATA_MIB / 5 : DATA_MIB} MiB beside a client, MB/s, median`,
      value: rates[Math.floor(rates.length / 2)] as number,
      goal: { relation: 'at least', value: RATE_MIN },
    },
    { what: 'slowest round, MB/s', value: rates[0] as number },
  ];
}

/** Megabytes a second that leave the purged snapshot's child. */
async function rateOf(context: QuestionContext): Promise<number> {
  const dataBytes = (context.quick ? DATA_MIB / 5 : DATA_MIB) * MIB;
  const sizeBytes = 4 * dataBytes;
  const stack = await ProcessStack.create({ size: String(sizeBytes), parent: context.directory });
  try {
    await stack.startReplicas(1);
    await stack.startEngine();
    const place = onNbd(stack.nbdSocket, stack.volumeName);
    const job: FioJob = { rw: 'randwrite', blockBytes: 4096, depth: 32 };
    const write = (requests: number): Promise<unknown> =>
      runFio({ job, place, sizeBytes, length: { requests } }, context.signal);
    await write(1000);
    await snapshot(stack, 'old');
    await write(dataBytes / 4096);
    await snapshot(stack, 'new');
    const child = join((stack.replicas[0] as ReplicaSlot).directory, 'volume-snap-new.img');
    const { blocks } = await stat(child);
    await runCommand(stack, ['snapshot', 'rm', 'old']);
    const client: FioJob = { rw: 'randwrite', blockBytes: 4096, depth: 1 };
    const busy = new AbortController();
    const signal = AbortSignal.any([busy.signal, context.signal]);
    const running = runFio({ job: client, place, sizeBytes, length: { seconds: 60 } }, signal);
    const ended = running.catch(() => undefined);
    const begin = performance.now();
    await runCommand(stack, ['snapshot', 'purge']);
    while (await isThere(child.replace('-new.', '-old.'))) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      context.signal.throwIfAborted();
    }
    const seconds = (performance.now() - begin) / 1000;
    busy.abort();
    await ended;
    return (blocks * 512) / 1e6 / seconds;
  } finally {
    await stack.stop();
  }
}

async function isThere(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

// How fast is a removed snapshot of scattered 4 KiB writes purged while a client works? Three times:
// with the data in the snapshot, in its child, and in both. The time runs from the command to the end;
// what the disk itself does with such writes into a new file stands beside it.

import { open, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { ProcessStack, type ReplicaSlot } from '../test/support/process-stack.js';
import { type FioJob, type FioOutcome, onFile, onNbd, runFio } from './fio.js';
import type { Answer, Question, QuestionContext } from './questions.js';
import { runCommand, snapshot } from './snapshot-chain.js';

const MIB = 1024 ** 2;
const DATA_BYTES = 350 * MIB;
const SMALL_BYTES = 4 * MIB;
const SIZE_BYTES = 4 * DATA_BYTES;
const RATE_MIN = 100;
const POLL_MS = 20;
const SCATTERED: FioJob = { rw: 'randwrite', blockBytes: 4096, depth: 32 };

interface Case {
  readonly what: string;
  readonly snapshotBytes: number;
  readonly childBytes: number;
}

const CASES: readonly Case[] = [
  { what: '350 MiB into a small child', snapshotBytes: DATA_BYTES, childBytes: SMALL_BYTES },
  { what: 'a little into 350 MiB', snapshotBytes: SMALL_BYTES, childBytes: DATA_BYTES },
  { what: '350 MiB into 350 MiB', snapshotBytes: DATA_BYTES, childBytes: DATA_BYTES },
];

export const purge: Question = {
  name: 'purge',
  asks: `how fast is a snapshot with random 4 KiB data purged while a client reads and writes?`,
  answer,
};

interface Sample {
  /** Megabytes a second of the larger of the two files. */
  readonly rate: number;
  readonly p99Ms: number;
  readonly calmP99Ms: number;
}

async function answer(context: QuestionContext): Promise<readonly Answer[]> {
  const rounds = context.quick ? 1 : 3;
  const answers: Answer[] = [];
  const raw: number[] = [];
  for (const one of CASES) {
    const samples: Sample[] = [];
    for (let round = 1; round <= rounds; round++) {
      raw.push(await rawRate(context));
      const sample = await sampleOf(context, one);
      samples.push(sample);
      context.progress(
        `${one.what}: ${sample.rate.toFixed(0)} MB/s, raw ${raw.at(-1)?.toFixed(0)} MB/s`,
      );
    }
    const goal = { relation: 'at least', value: RATE_MIN } as const;
    answers.push(
      { what: `${one.what}, MB/s, median`, value: median(samples.map((s) => s.rate)), goal },
      { what: "client's p99 meanwhile, ms", value: median(samples.map((s) => s.p99Ms)) },
      { what: "client's p99 before, ms", value: median(samples.map((s) => s.calmP99Ms)) },
    );
  }
  answers.push({ what: 'fio itself at depth 32 into a new file, MB/s', value: median(raw) });
  return answers;
}

/** Megabytes a second of the same writes into a new sparse file, without any of our code. */
async function rawRate(context: QuestionContext): Promise<number> {
  const path = join(context.directory, 'raw');
  const file = await open(path, 'w');
  await file.truncate(SIZE_BYTES);
  await file.close();
  const length = { requests: DATA_BYTES / 4096 };
  const run = { job: SCATTERED, place: onFile(path), sizeBytes: SIZE_BYTES, length };
  return (await runFio(run, context.signal)).bytesPerSecond / 1e6;
}

async function sampleOf(context: QuestionContext, one: Case): Promise<Sample> {
  const stack = await ProcessStack.create({ size: String(SIZE_BYTES), parent: context.directory });
  try {
    await stack.startReplicas(1);
    await stack.startEngine();
    const place = onNbd(stack.nbdSocket, stack.volumeName);
    for (const [name, bytes] of [
      ['old', one.snapshotBytes],
      ['new', one.childBytes],
    ] as const) {
      const length = { requests: bytes / 4096 };
      await runFio({ job: SCATTERED, place, sizeBytes: SIZE_BYTES, length }, context.signal);
      await snapshot(stack, name);
    }
    const imageOf = (name: string): string =>
      join((stack.replicas[0] as ReplicaSlot).directory, `volume-snap-${name}.img`);
    const bytes = Math.max(await dataBytes(imageOf('old')), await dataBytes(imageOf('new')));
    await runCommand(stack, ['snapshot', 'rm', 'old']);
    const calm = await clientSecond(context, place);
    const began = performance.now();
    let isOver = false;
    const ended = endOf(context, stack, imageOf('old')).finally(() => {
      isOver = true;
    });
    ended.catch(() => undefined); // awaited below, after the client's last second
    const p99s: number[] = [];
    while (!isOver) p99s.push((await clientSecond(context, place)).p99Micros / 1000);
    const seconds = ((await ended) - began) / 1000;
    return {
      rate: bytes / 1e6 / seconds,
      p99Ms: Math.max(...p99s),
      calmP99Ms: calm.p99Micros / 1000,
    };
  } finally {
    await stack.stop();
  }
}

/** One request at a time for a second, reads and writes mixed. */
function clientSecond(context: QuestionContext, place: readonly string[]): Promise<FioOutcome> {
  const job: FioJob = { rw: 'randrw', blockBytes: 4096, depth: 1 };
  return runFio({ job, place, sizeBytes: SIZE_BYTES, length: { seconds: 1 } }, context.signal);
}

/** When the purged snapshot's image was gone. */
async function endOf(
  context: QuestionContext,
  stack: ProcessStack,
  image: string,
): Promise<number> {
  await runCommand(stack, ['snapshot', 'purge']);
  while (await isThere(image)) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    context.signal.throwIfAborted();
  }
  return performance.now();
}

async function dataBytes(path: string): Promise<number> {
  return (await stat(path)).blocks * 512;
}

async function isThere(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] as number;
}

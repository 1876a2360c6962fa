// How fast is a new replica filled, beside a plain copy on the same disk, and what do clients feel of it?
// Two volumes with the same amount of data, one in a single layer, one in 50 snapshots.

import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type CliRun, startCli } from '../test/support/cli.js';
import { ProcessStack, type ReplicaSlot } from '../test/support/process-stack.js';
import { onNbd, runFio } from './fio.js';
import type { Answer, Question, QuestionContext } from './questions.js';
import { addAgain, dd, timed } from './resync.js';

const MIB = 1024 ** 2;
/** Of the speed of a plain copy. */
const SPEED_SHARE_MIN = 0.5;
/** Slow-down of the foreground's slow requests. */
const SLOWER_MAX = 3;
const CALM_RUNS = 3;

export const rebuild: Question = {
  name: 'rebuild',
  asks: 'how fast is a full rebuild beside dd, with 0 and 50 snapshots, and how slow are clients meanwhile?',
  answer,
};

async function answer(context: QuestionContext): Promise<readonly Answer[]> {
  const sizeBytes = (context.quick ? 1024 : 2048) * MIB;
  const answers: Answer[] = [];
  for (const snapshots of [0, 50]) {
    context.progress(`a volume with ${snapshots} snapshots`);
    answers.push(...(await oneVolume(context, sizeBytes, snapshots)));
  }
  return answers;
}

async function oneVolume(
  context: QuestionContext,
  sizeBytes: number,
  snapshots: number,
): Promise<Answer[]> {
  const size = String(sizeBytes);
  const stack = await ProcessStack.create({ size, parent: context.directory });
  const source = join(context.directory, 'source');
  const target = join(context.directory, 'copy');
  try {
    await stack.startReplicas(1);
    await stack.startEngine();
    await fill(context, stack, sizeBytes, snapshots);
    await dd(context, '/dev/urandom', source, sizeBytes, []);
    const slot = await stack.addSlot();
    await stack.startReplica(slot);
    const copySeconds = await timed(() => dd(context, source, target, sizeBytes, ['iflag=direct']));
    const seconds = await timed(() => addAgain(stack, slot, 'add'));
    const calm = await calmly(context, stack);
    const busy = await whileRebuilding(context, stack);
    return [
      {
        what: `${snapshots} snapshots: speed of a rebuild, of dd's`,
        value: copySeconds / seconds,
        goal: { relation: 'at least', value: SPEED_SHARE_MIN },
      },
      { what: `${snapshots} snapshots: time of a rebuild, s`, value: seconds },
      { what: `${snapshots} snapshots: time of one while clients write, s`, value: busy.seconds },
      { what: `${snapshots} snapshots: p99 of 4 KiB writes without a rebuild, ms`, value: calm },
      {
        what: `${snapshots} snapshots: p99 with one, of without`,
        value: busy.p99 / calm,
        goal: { relation: 'at most', value: SLOWER_MAX },
      },
    ];
  } finally {
    await stack.stop();
    await Promise.all([source, target].map((path) => rm(path, { force: true })));
  }
}

/** The whole volume, a share of it in each layer. */
async function fill(
  { signal }: QuestionContext,
  stack: ProcessStack,
  sizeBytes: number,
  snapshots: number,
): Promise<void> {
  const place = onNbd(stack.nbdSocket, stack.volumeName);
  const job = { rw: 'write', blockBytes: MIB, depth: 4 } as const;
  const parts = Math.max(1, snapshots);
  const partBytes = Math.ceil(sizeBytes / parts / MIB) * MIB;
  for (let part = 0; part < parts; part++) {
    const offsetBytes = part * partBytes;
    const partEnd = Math.min(offsetBytes + partBytes, sizeBytes);
    if (offsetBytes < partEnd) {
      await runFio(
        { job, place, offsetBytes, sizeBytes: partEnd - offsetBytes, length: 'once' },
        signal,
      );
    }
    if (snapshots > 0) await command(stack, 'snapshots', 'create', `s${part}`).result;
  }
}

function command(stack: ProcessStack, ...args: string[]): CliRun {
  return startCli(['--url', `http://127.0.0.1:${stack.enginePort}`, ...args]);
}

interface Busy {
  readonly p99: number;
  /** That the rebuild took. */
  readonly seconds: number;
}

/** Only what was measured while it ran from beginning to end counts. */
async function whileRebuilding(context: QuestionContext, stack: ProcessStack): Promise<Busy> {
  const slot: ReplicaSlot = await stack.addSlot();
  const daemon = await stack.startReplica(slot);
  let isOver = false;
  const beganMs = performance.now();
  const adding = addAgain(stack, slot, 'add').finally(() => (isOver = true));
  await Promise.race([daemon.event('receiver.stopped'), adding]);
  const samples: number[] = [];
  while (!isOver) {
    const p99 = await slowest(context, stack);
    // `adding` settles in another turn of the event loop.
    if (!isOver) samples.push(p99);
  }
  await adding;
  const seconds = (performance.now() - beganMs) / 1000;
  if (samples.length === 0) throw new Error('the rebuild ended before a second was measured');
  return { p99: median(samples), seconds };
}

async function calmly(context: QuestionContext, stack: ProcessStack): Promise<number> {
  const samples: number[] = [];
  for (let run = 0; run < CALM_RUNS; run++) samples.push(await slowest(context, stack));
  return median(samples);
}

function median(samples: readonly number[]): number {
  const sorted = [...samples].sort((a, b) => a - b);
  return sorted[Math.floor((sorted.length - 1) / 2)] as number;
}

/** Milliseconds that 99 of 100 requests stay below. */
async function slowest({ signal }: QuestionContext, stack: ProcessStack): Promise<number> {
  const outcome = await runFio(
    {
      job: { rw: 'randwrite', blockBytes: 4096, depth: 8 },
      place: onNbd(stack.nbdSocket, stack.volumeName),
      sizeBytes: Number(stack.size),
      length: { seconds: 1 },
    },
    signal,
  );
  return outcome.p99Micros / 1000;
}

// What does it cost to bring a replica back that was away for ten seconds? A large volume, a little of
// it written; one replica is killed, 64 MiB are rewritten, the replica returns. The bytes come from
// its sync agent's log; the copy that the time is set beside is dd's, on the same disk.

import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { startCli } from '../test/support/cli.js';
import { type Daemon, ProcessStack, type ReplicaSlot } from '../test/support/process-stack.js';
import { onNbd, runFio } from './fio.js';
import type { Answer, Question, QuestionContext } from './questions.js';

const MIB = 1024 ** 2;
const REWRITTEN = 64 * MIB;
const OUTAGE_MS = 10_000;
/** Of what was rewritten; the rest is for ranges that were in flight. */
const MOVED_SHARE_MAX = 1.2;
const EXTRA_SECONDS_MAX = 2;

export const resync: Question = {
  name: 'resync',
  asks: 'how much moves, and how long does it take, when a replica of 10 GiB returns after 10 s?',
  answer,
};

async function answer(context: QuestionContext): Promise<readonly Answer[]> {
  const filled = (context.quick ? 256 : 2048) * MIB;
  const stack = await ProcessStack.create({ size: '10g', parent: context.directory });
  try {
    await stack.startReplicas(2);
    await stack.startEngine();
    context.progress(`writing ${filled / MIB} MiB of 10 GiB`);
    await write(context, stack, filled);
    const away = stack.replicas[1] as ReplicaSlot;
    await away.daemon?.end('SIGKILL');
    await (stack.engine as Daemon).event('fork.cut');
    context.progress('one replica is away');
    await write(context, stack, REWRITTEN);
    await sleep(context.quick ? 0 : OUTAGE_MS, undefined, { signal: context.signal });
    const daemon = await stack.startReplica(away);
    await addAgain(stack, away, 'rm');
    const seconds = await timed(() => addAgain(stack, away, 'add'));
    const moved = Number((await daemon.event('files.synced'))['receivedBytes']);
    const source = join(context.directory, 'source');
    await dd(context, '/dev/urandom', source, REWRITTEN, []);
    const target = join(context.directory, 'copy');
    const copySeconds = await timed(() => dd(context, source, target, REWRITTEN, ['iflag=direct']));
    return [
      {
        what: 'bytes moved, of those rewritten',
        value: moved / REWRITTEN,
        goal: { relation: 'at most', value: MOVED_SHARE_MAX },
      },
      { what: 'time to be in step again, s', value: seconds },
      { what: 'time to copy as many bytes, s', value: copySeconds },
      {
        what: 'time beyond the copy, s',
        value: seconds - copySeconds,
        goal: { relation: 'at most', value: EXTRA_SECONDS_MAX },
      },
    ];
  } finally {
    await stack.stop();
  }
}

export function write(
  context: QuestionContext,
  stack: ProcessStack,
  sizeBytes: number,
): Promise<unknown> {
  const job = { rw: 'write', blockBytes: MIB, depth: 4 } as const;
  const place = onNbd(stack.nbdSocket, stack.volumeName);
  return runFio({ job, place, sizeBytes, length: 'once' }, context.signal);
}

export async function addAgain(
  stack: ProcessStack,
  slot: ReplicaSlot,
  command: 'rm' | 'add',
): Promise<void> {
  const engine = ['--url', `http://127.0.0.1:${stack.enginePort}`];
  const size = command === 'rm' ? [] : ['--size', stack.size, '--current-size', stack.size];
  const run = startCli([...engine, command, ...size, slot.address]);
  const { code, stderr } = await run.result;
  if (code !== 0) throw new Error(`${command} failed: ${stderr}`);
}

/** Copies so many bytes past the page cache and makes them durable. */
export async function dd(
  context: QuestionContext,
  from: string,
  to: string,
  sizeBytes: number,
  flags: readonly string[],
): Promise<void> {
  const length = ['bs=1M', `count=${sizeBytes / MIB}`, 'oflag=direct', 'conv=fdatasync'];
  const { signal } = context;
  await promisify(execFile)('dd', [`if=${from}`, `of=${to}`, ...length, ...flags], { signal });
}

export async function timed(action: () => Promise<unknown>): Promise<number> {
  const beginMs = performance.now();
  await action();
  return (performance.now() - beginMs) / 1000;
}

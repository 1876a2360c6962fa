// Replicas on a disk that fills up, with real processes on a small file system: the client is told
// "no space", nobody is thrown out of the volume for it, and with space freed writes work again.

import { execFileSync } from 'node:child_process';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { fioRefusal, runFio } from '../support/fio.js';
import { ProcessStack, type ReplicaSlot } from '../support/process-stack.js';
import { replicaState } from '../support/replica-state.js';

const MIB = 1024 * 1024;
const DISK_BYTES = 48 * MIB;

/** A new ext4 on a loop device at `path`. @throws when this user may not mount. */
function mountDisk(image: string, path: string): void {
  const run = (program: string, ...args: string[]): void => {
    execFileSync(program, args, { stdio: 'ignore' });
  };
  run('truncate', '-s', String(DISK_BYTES), image);
  run('mkfs.ext4', '-q', '-F', '-m', '0', '-O', '^has_journal', image);
  run('mount', '-o', 'loop', image, path);
}

async function refusal(): Promise<string | false> {
  const directory = await mkdtemp(join(tmpdir(), 'longhorn-mount-'));
  try {
    await mkdir(join(directory, 'm'));
    mountDisk(join(directory, 'image'), join(directory, 'm'));
    execFileSync('umount', [join(directory, 'm')]);
    return fioRefusal();
  } catch {
    return 'this user may not mount a small ext4';
  } finally {
    await rm(directory, { recursive: true });
  }
}

const skip = await refusal();

interface FullDisk {
  readonly stack: ProcessStack;
  /** A file that takes the space that makes the disk full. */
  readonly filler: string;
}

/** Replicas 1 to `onFullDisk` live on the small disk, the others beside it. */
async function start(t: Test, replicas: number, onFullDisk: number): Promise<FullDisk> {
  t.setTimeout(90_000);
  const stack = await ProcessStack.create({ size: '64m', replicaFlags: ['--no-sync-agent'] });
  const mount = join(stack.directory, 'disk');
  await mkdir(mount);
  mountDisk(join(stack.directory, 'disk.img'), mount);
  t.teardown(async () => {
    await stack.kill();
    execFileSync('umount', [mount]);
    await stack.stop();
  });
  const filler = join(mount, 'filler');
  await writeFile(filler, Buffer.alloc(12 * MIB, 1));
  for (let i = 1; i <= replicas; i++) {
    const directory = i <= onFullDisk ? join(mount, `r${i}`) : join(stack.directory, `r${i}`);
    await stack.startReplica(await stack.addSlot(directory));
  }
  await stack.startEngine();
  return { stack, filler };
}

const PATTERN = ['--bs=64k', '--verify=crc32c', '--verify_fatal=1', '--randseed=5'];
const BEGIN = ['--rw=write', '--size=8m', ...PATTERN];
const REST = ['--rw=write', '--offset=8m', '--size=56m', ...PATTERN];

t.test(
  'a volume on a full disk says so, stays readable and goes on when there is space',
  { skip },
  async (t) => {
    const { stack, filler } = await start(t, 1, 1);
    const run = (flags: readonly string[]) => runFio(stack.nbdUri, stack.directory, flags);
    t.match(await run(BEGIN), { code: 0 });
    const full = await run(REST);
    t.not(full.code, 0);
    t.match(full.output, /No space left on device/, 'the client gets ENOSPC, not an I/O error');
    t.match(await run([...BEGIN, '--verify_only']), { code: 0 }, 'the volume stays readable');
    const [slot] = stack.replicas as [ReplicaSlot];
    t.match(await replicaState(slot), { state: 'dirty' }, 'open, and written to');
    t.strictSame(stack.engine?.eventsOf('replica.mode.changed'), [], 'the replica stays in use');

    await rm(filler);
    const more = ['--rw=write', '--offset=40m', '--size=8m', ...PATTERN];
    t.match(await run(more), { code: 0 }, 'with space freed writes work again');
    t.match(await stack.engine?.end(), { code: 0 });
    t.strictSame(await replicaState(slot), { state: 'closed', dirty: false });
  },
);

t.test('a replica on a full disk leaves, and the others serve on', { skip }, async (t) => {
  const { stack } = await start(t, 2, 1);
  const whole = ['--rw=write', '--size=64m', ...PATTERN];
  t.match(await runFio(stack.nbdUri, stack.directory, whole), { code: 0 });
  const [full] = stack.replicas as [ReplicaSlot, ReplicaSlot];
  const changes = stack.engine?.eventsOf('replica.mode.changed') ?? [];
  t.match(changes, [{ replica: full.address, to: 'ERR', error: { code: 'NO_SPACE' } }]);
  t.equal(changes.length, 1);
});

t.test('a full disk closes and opens again', { skip }, async (t) => {
  const { stack } = await start(t, 1, 1);
  const [slot] = stack.replicas as [ReplicaSlot];
  const run = (flags: readonly string[]) => runFio(stack.nbdUri, stack.directory, flags);
  t.match(await run(BEGIN), { code: 0 });
  t.not((await run(REST)).code, 0);
  t.match(await stack.engine?.end(), { code: 0 });
  t.match(await slot.daemon?.end(), { code: 0 });
  await stack.startReplica(slot);
  await stack.startEngine();
  t.match(await run([...BEGIN, '--verify_only']), { code: 0 });
});

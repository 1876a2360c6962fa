// What rosters, write intents and rebuilds add to the writes of a replica must not make a full disk
// worse: a replica's death can still be recorded without space, what needs space fails clearly, and
// nothing acknowledged is lost either way. The plain cases are in test/e2e/full-disk.test.ts.

import { execFileSync } from 'node:child_process';
import { appendFile, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { MIB } from '../../src/core/units.js';
import type { ReplicaSlot } from '../support/process-stack.js';
import { CrashStack } from './crash-stack.js';
import { BLOCK_BYTES, contentOf } from './ledger.js';
import { Load, seededRandom } from './load.js';
import { Refused } from './volume-client.js';

const SIZE_MIB = 16;
const ENOSPC = 28;
/** Only these blocks are ever written before the disk is full, so that they have space. */
const OLD_BLOCKS = 256;

t.setTimeout(120_000);

function mountRefusal(): string | false {
  return process.getuid?.() === 0 ? false : 'this user may not mount a small ext4';
}

const skip = mountRefusal();

interface Bed {
  readonly crash: CrashStack;
  /** Takes all the space there is. */
  fill(): Promise<void>;
  free(): Promise<void>;
}

/** Replicas 1 to `onFullDisk` share a small ext4, the others are elsewhere. */
async function start(t: Test, replicas: number, onFullDisk: number): Promise<Bed> {
  t.setTimeout(100_000);
  const parent = await mkdtemp(join(tmpdir(), 'longhorn-full-disk-'));
  const mount = join(parent, 'disk');
  const image = join(parent, 'image');
  await mkdir(mount);
  const run = (program: string, ...args: string[]): void => {
    execFileSync(program, args, { stdio: 'ignore' });
  };
  run('truncate', '-s', String(48 * MIB), image);
  run('mkfs.ext4', '-q', '-F', '-m', '0', '-b', '4096', image);
  run('mount', '-o', 'loop', image, mount);
  const crash = await CrashStack.create({ sizeMib: SIZE_MIB, random: seededRandom(11) });
  t.teardown(async () => {
    await crash.end();
    // A sync agent whose replica was killed notices it a moment later; the image goes with the last file.
    execFileSync('umount', ['--lazy', mount]);
    await rm(parent, { recursive: true, force: true });
  });
  for (let i = 1; i <= replicas; i++) {
    await crash.stack.addSlot(i <= onFullDisk ? join(mount, `r${i}`) : undefined);
  }
  for (const slot of crash.slots) await crash.stack.startReplica(slot);
  await crash.startEngine();
  const content = contentOf(0, Array<number>(OLD_BLOCKS).fill(crash.ledger.nextValue()));
  const change = crash.ledger.send(0, Array<number>(OLD_BLOCKS).fill(1));
  await crash.attached.write(0, content, true);
  crash.ledger.acknowledge(change, true);
  const filler = join(mount, 'filler');
  return {
    crash,
    fill: async () => {
      for (const bytes of [MIB, BLOCK_BYTES]) await appendUntilFull(filler, bytes);
    },
    free: () => rm(filler),
  };
}

async function appendUntilFull(path: string, bytes: number): Promise<void> {
  const piece = Buffer.alloc(bytes, 1);
  for (;;) {
    try {
      await appendFile(path, piece, { flush: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOSPC') return;
      throw error;
    }
  }
}

/** Overwrites old blocks, which needs no space. */
async function overwrite(crash: CrashStack, seed: number): Promise<Load> {
  const { ledger } = crash;
  // No zeros: a hole in the head would need space again.
  const random = seededRandom(seed);
  const load = new Load({
    client: crash.attached,
    ledger,
    random,
    depth: 4,
    blockCount: OLD_BLOCKS,
    withoutZeros: true,
  });
  await load.acknowledges(40);
  await load.stop();
  crash.complain(load.complaints, 'overwriting');
  return load;
}

t.test('P3: on a full disk a replica that died is still recorded as gone', { skip }, async (t) => {
  const { crash, fill } = await start(t, 3, 2);
  const [one, two, dying] = crash.slots as [ReplicaSlot, ReplicaSlot, ReplicaSlot];
  await fill();
  await crash.kill(dying);
  const load = await overwrite(crash, 1);
  t.equal(load.refusals.length, 0, 'writes that need no space go on');
  await crash.killEngine();
  await crash.restart(dying);
  await crash.startEngine();
  const modes = await crash.modes();
  t.strictSame(
    [one, two, dying].map((slot) => modes.get(slot.address)),
    ['RW', 'RW', 'ERR'],
    'a new engine does not trust who missed writes',
  );
  await overwrite(crash, 2);
  t.strictSame(crash.complaints, []);
});

t.test('a snapshot without space fails clearly and the volume goes on', { skip }, async (t) => {
  const { crash, fill, free } = await start(t, 2, 2);
  await fill();
  const result = await crash.attempt('snapshots', 'create', 'no-room');
  const isMade = result.code === 0;
  if (!isMade) t.match(result.stderr, /space/, 'it says why');
  const at = OLD_BLOCKS * BLOCK_BYTES;
  const content = contentOf(OLD_BLOCKS, Array<number>(256).fill(crash.ledger.nextValue()));
  const refused = await crash.attached.write(at, content).catch((error: unknown) => error);
  t.ok(refused instanceof Refused && refused.errno === ENOSPC, 'a write says that it is full');
  crash.ledger.send(OLD_BLOCKS, Array<number>(256).fill(2));
  await free();
  await crash.startLoad(4).acknowledges(100);
  await crash.stopLoad();
  await crash.command('snapshots', 'create', 'room');
  t.strictSame([...(await crash.modes()).values()], ['RW', 'RW']);
  await crash.finish();
  t.strictSame(crash.complaints, [], 'and both replicas hold the same');
});

t.test('a rebuild onto a full disk fails clearly and hurts nobody', { skip }, async (t) => {
  const { crash, fill, free } = await start(t, 2, 1);
  const [small, other] = crash.slots as [ReplicaSlot, ReplicaSlot];
  await crash.kill(small);
  await crash.startLoad(4).acknowledges(150);
  await crash.stopLoad();
  await fill();
  await crash.restart(small);
  await crash.attempt('rm-replica', small.address);
  const size = ['--size', crash.stack.size, '--current-size', crash.stack.size];
  const result = await crash.attempt('add', ...size, small.address);
  t.not(result.code, 0);
  t.match(result.stderr, /space/, 'it says why');
  t.equal((await crash.modes()).get(other.address), 'RW');
  await crash.startLoad(4).acknowledges(50);
  await crash.stopLoad();
  await free();
  await crash.heal();
  await crash.finish();
  t.strictSame(crash.complaints, [], 'with space it succeeds, and both hold the same');
});

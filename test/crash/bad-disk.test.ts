// One replica's disk fails while clients write: the device answers every request with EIO, as a disk
// that was pulled. The replica leaves, the others have it on record before anything it missed is
// acknowledged (P3), and neither a flush nor a later start believes in what the bad disk holds.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { ReplicaSlot } from '../support/process-stack.js';
import { waitUntil } from '../support/replica-state.js';
import { CrashStack } from './crash-stack.js';
import { BLOCK_BYTES, contentOf } from './ledger.js';
import { seededRandom } from './load.js';
import { LoggedDisk, loggedDiskRefusal } from './logged-disk.js';

const skip = loggedDiskRefusal();
const SIZE_MIB = 8;
const DISK_MIB = 64;

t.setTimeout(120_000);

interface Bed {
  readonly crash: CrashStack;
  readonly disk: LoggedDisk;
}

/** The first replica on the disk that will fail, the others elsewhere. */
async function start(t: Test, replicas: number): Promise<Bed> {
  t.setTimeout(100_000);
  const parent = await mkdtemp(join(tmpdir(), 'longhorn-bad-disk-'));
  t.teardown(() => rm(parent, { recursive: true, force: true }));
  const disk = await LoggedDisk.create(parent, DISK_MIB);
  const crash = await CrashStack.create({ sizeMib: SIZE_MIB, random: seededRandom(5) });
  t.teardown(async () => {
    await crash.end();
    await disk.end();
  });
  await crash.stack.addSlot(join(disk.mount, 'r1'));
  for (let i = 1; i < replicas; i++) await crash.stack.addSlot();
  for (const slot of crash.slots) await crash.stack.startReplica(slot);
  await crash.startEngine();
  return { crash, disk };
}

function failures(crash: CrashStack): string[] {
  return (crash.stack.engine?.eventsOf('replica.mode.changed') ?? [])
    .filter((line) => line['to'] === 'ERR')
    .map((line) => `${line['replica']} ${JSON.stringify(line['error'])}`);
}

t.test(
  'a replica whose disk fails leaves, and nothing acknowledged is lost',
  { skip },
  async (t) => {
    const { crash, disk } = await start(t, 3);
    const [bad, ...good] = crash.slots as [ReplicaSlot, ReplicaSlot, ReplicaSlot];
    const load = crash.startLoad();
    await load.acknowledges(100);
    await disk.pull();
    await load.acknowledges(300);
    await crash.stopLoad();
    t.equal(load.refusals.length, 0, 'no client sees an error');
    t.equal(failures(crash).length, 1, 'one replica failed');
    t.match(failures(crash)[0], bad.address);
    t.match(failures(crash)[0], /errno 5/, 'and the log says that its disk did');

    await crash.killEngine();
    await crash.kill(bad);
    await crash.startEngine(good);
    await crash.startLoad().acknowledges(50);
    await crash.stopLoad();
    t.match([...(await crash.modes()).values()], ['RW', 'RW']);
    t.strictSame(crash.complaints, []);
  },
);

t.test(
  'a flush on a failed disk is not acknowledged while it is the only one',
  { skip },
  async (t) => {
    const { crash, disk } = await start(t, 1);
    await crash.startLoad().acknowledges(50);
    await crash.stopLoad();
    await disk.pull();
    const write = crash.attached.write(0, contentOf(0, [crash.ledger.nextValue()]));
    const flushed = write.then(() => crash.attached.flush());
    await t.rejects(flushed, 'the client hears of it');
    await t.rejects(crash.attached.write(BLOCK_BYTES, contentOf(1, [1]), true), 'and again');
    await waitUntil('the replica is given up', () => Promise.resolve(failures(crash).length === 1));
    t.match(failures(crash)[0], /errno 5/);
  },
);

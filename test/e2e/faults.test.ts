// A volume of real processes under load while its parts fail: no client sees an error as long as
// one replica lives, and nothing acknowledged is lost.

import { join } from 'node:path';
import t, { type Test } from 'tap';
import { fioRefusal, type FioResult, runFio, startFio } from '../support/fio.js';
import { ProcessStack, type ReplicaSlot, type StackOptions } from '../support/process-stack.js';
import { allocatedAtLeast, headSha256, replicaState, waitUntil } from '../support/replica-state.js';

// Time-outs of a replica are 8 s and more.
t.setTimeout(180_000);

const skip = fioRefusal();
const MIB = 1024 * 1024;
const WRITE_AND_VERIFY = ['--verify=crc32c', '--verify_fatal=1', '--randseed=7'];

async function start(
  t: Test,
  replicas: number,
  options: Partial<StackOptions> = {},
): Promise<ProcessStack> {
  t.setTimeout(90_000);
  const stack = await ProcessStack.create({
    size: '64m',
    ...options,
    replicaFlags: ['--no-sync-agent'],
  });
  t.teardown(() => stack.stop());
  await stack.startReplicas(replicas);
  await stack.startEngine();
  return stack;
}

function passed(t: Test, result: FioResult, claim: string): void {
  t.equal(result.code, 0, claim, result.code === 0 ? {} : { output: result.output });
}

/** Waits until the engine has given the replica up, and says why. */
async function lost(stack: ProcessStack, slot: ReplicaSlot): Promise<string> {
  const lines = (): string[] =>
    (stack.engine?.eventsOf('replica.mode.changed') ?? [])
      .filter((line) => line['replica'] === slot.address && line['to'] === 'ERR')
      .map((line) => JSON.stringify(line['error']));
  await waitUntil(`${slot.address} is ERR`, async () => {
    if (stack.engine?.hasEnded === true) throw new Error(`no engine:\n${stack.engine.text()}`);
    return lines().length > 0;
  });
  return lines()[0] ?? '';
}

t.test(
  'a writer sees no error while replicas are killed, stopped and ended',
  { skip },
  async (t) => {
    const stack = await start(t, 4);
    const [killed, stopped, ended, last] = stack.replicas as [
      ReplicaSlot,
      ReplicaSlot,
      ReplicaSlot,
      ReplicaSlot,
    ];
    const flags = ['--rw=randwrite', '--bs=4k', ...WRITE_AND_VERIFY];
    const fio = startFio(stack.nbdUri, stack.directory, [...flags, '--rate_iops=4000']);

    await allocatedAtLeast(killed, 4 * MIB);
    await killed.daemon?.end('SIGKILL');
    t.match(await lost(stack, killed), /CONNECTION_LOST/, 'a killed replica is lost at once');

    await allocatedAtLeast(last, 12 * MIB);
    stopped.daemon?.kill('SIGSTOP');
    t.match(await lost(stack, stopped), /TIMEOUT/, 'a silent one after the time-out');
    stopped.daemon?.kill('SIGCONT');

    await allocatedAtLeast(last, 24 * MIB);
    const ending = await ended.daemon?.end('SIGTERM');
    t.match(ending, { code: 0 }, 'a replica that is asked to end does so under load');
    await lost(stack, ended);

    passed(t, await fio.finished, 'everything written was read back');
    await waitUntil('the engine closed the replica that went on', async () => {
      return (await replicaState(stopped)).state === 'closed';
    });
    t.match(await stack.engine?.end(), { code: 0 }, 'the engine ends cleanly');
    t.strictSame(await replicaState(last), { state: 'closed', dirty: false });

    await stack.startEngine([last]);
    const again = await runFio(stack.nbdUri, stack.directory, [...flags, '--verify_only']);
    passed(t, again, 'the last replica has it all after a new start');
  },
);

t.test(
  'after its engine was killed, a new engine serves the volume at once, nothing restarted',
  { skip },
  async (t) => {
    const stack = await start(t, 2);
    const first = ['--rw=randwrite', '--bs=4k', '--size=16m', ...WRITE_AND_VERIFY];
    passed(t, await runFio(stack.nbdUri, stack.directory, first), 'the first half is written');
    const second = ['--rw=randwrite', '--bs=4k', '--offset=32m', '--size=32m', '--rate_iops=2000'];
    const fio = startFio(stack.nbdUri, stack.directory, second);
    await allocatedAtLeast(stack.replicas[0] as ReplicaSlot, 20 * MIB);
    const { engine } = stack;
    const occupied = stack.launchEngine();
    t.match(await occupied.ended, { code: 1 }, 'a second start by mistake takes nothing away');
    t.match(occupied.text(), /nbd.sock is in use: another engine may be serving this volume/);
    t.notOk(engine?.eventsOf('engine.fenced').length, 'the first one serves on');
    await engine?.end('SIGKILL');
    fio.kill();
    await fio.finished;

    await stack.startEngine();
    const verify = [...first, '--verify_only'];
    passed(t, await runFio(stack.nbdUri, stack.directory, verify), 'nothing acknowledged is lost');
  },
);

t.test(
  'P6: of two engines of one volume the older one gets errors, and none of its writes lands',
  { skip },
  async (t) => {
    const stack = await start(t, 2);
    const older = stack.engine;
    const olderUri = stack.nbdUri;
    const flags = ['--rw=randwrite', '--bs=4k', '--iodepth=16', '--rate_iops=4000'];
    const fio = startFio(olderUri, stack.directory, flags);
    await allocatedAtLeast(stack.replicas[0] as ReplicaSlot, 4 * MIB);
    const newer = join(stack.directory, 'newer.sock');
    await stack.startEngine(stack.replicas, ['--nbd-listen', `unix://${newer}`]);
    const newerUri = `nbd+unix:///vol?socket=${newer}`;
    await older?.event('engine.fenced');
    t.not((await fio.finished).code, 0, 'its client hears of it');
    const verified = ['--rw=randwrite', '--bs=4k', ...WRITE_AND_VERIFY];
    passed(t, await runFio(newerUri, stack.directory, verified), 'the newer one serves');
    t.not((await runFio(olderUri, stack.directory, flags)).code, 0, 'the older one never again');
    const again = [...verified, '--verify_only'];
    passed(t, await runFio(newerUri, stack.directory, again), 'nothing was overwritten');
  },
);

t.test(
  'a killed replica comes back dirty with everything that was acknowledged',
  { skip },
  async (t) => {
    const stack = await start(t, 1);
    const [slot] = stack.replicas as [ReplicaSlot];
    const flags = ['--rw=randwrite', '--bs=4k', '--size=16m', ...WRITE_AND_VERIFY];
    passed(t, await runFio(stack.nbdUri, stack.directory, flags), 'written');
    await slot.daemon?.end('SIGKILL');
    await lost(stack, slot);
    const read = ['--rw=read', '--bs=4k', '--size=4k', '--iodepth=1'];
    const failed = await runFio(stack.nbdUri, stack.directory, read);
    t.not(failed.code, 0, 'a volume without replicas answers with an error');
    t.match(failed.output, /Input\/output error/);
    t.match(await stack.engine?.end(), { code: 0 });
    await stack.startReplica(slot);
    t.strictSame(await replicaState(slot), { state: 'closed', dirty: true });
    await stack.startEngine();
    const verify = [...flags, '--verify_only'];
    passed(t, await runFio(stack.nbdUri, stack.directory, verify), 'and serves again');
  },
);

t.test('writers of overlapping ranges leave equal replicas', { skip }, async (t) => {
  const stack = await start(t, 3);
  const range = ['--size=4m', '--io_size=24m', '--norandommap'];
  const jobs = [
    ['--rw=randwrite', '--bs=4k', '--randseed=1', '--buffer_pattern=0x11'],
    ['--rw=randwrite', '--bs=512-20k', '--bs_unaligned', '--randseed=2', '--buffer_pattern=0x22'],
    ['--rw=randwrite', '--bs=64k', '--randseed=3', '--buffer_pattern=0x33'],
    ['--rw=randtrim', '--bs=8k', '--randseed=4'],
  ];
  const results = await Promise.all(
    jobs.map((job) => runFio(stack.nbdUri, stack.directory, [...job, ...range])),
  );
  for (const result of results) passed(t, result, 'a writer ends without an error');
  t.match(await stack.engine?.end(), { code: 0 });
  const hashes = await Promise.all(stack.replicas.map(headSha256));
  t.equal(new Set(hashes).size, 1, 'all replicas hold the same');
});

t.test('an engine ends in time although a replica hangs', { skip }, async (t) => {
  const stack = await start(t, 2);
  const [hanging, healthy] = stack.replicas as [ReplicaSlot, ReplicaSlot];
  hanging.daemon?.kill('SIGSTOP');
  t.match(await stack.engine?.end(), { code: 0 });
  t.strictSame(await replicaState(healthy), { state: 'closed', dirty: false });
});

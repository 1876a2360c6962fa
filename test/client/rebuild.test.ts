// The order of a rebuild's steps, and what is left when one fails or the caller gives up.

import t, { type Test } from 'tap';
import { Connections } from '../../src/client/connections.js';
import {
  addReplica,
  type AddReplicaOptions,
  type AddReplicaRequest,
} from '../../src/client/rebuild.js';
import type { Roster } from '../../src/api/generated/replica.js';
import { realClock } from '../../src/core/clock-real.js';
import { StorageError } from '../../src/core/errors.js';
import { FakeVolume, SOURCE } from '../support/fake-volume.js';

const MIB = 1024 * 1024;
const READY = ['open', 'rebuilding true', 'close', 'join with snapshot'];
const FILL = ['prepare', 'sync', 'reload', 'verify', 'rebuilding false'];

async function fakeVolume(
  t: Test,
  change: (fake: FakeVolume) => void = () => undefined,
): Promise<FakeVolume> {
  const fake = new FakeVolume();
  change(fake);
  await fake.start();
  t.teardown(() => fake.stop());
  return fake;
}

async function add(
  fake: FakeVolume,
  options: AddReplicaOptions = {},
  change: Partial<AddReplicaRequest> = {},
): Promise<StorageError | null> {
  const connections = new Connections({
    clock: realClock,
    engineAddress: `127.0.0.1:${fake.enginePort}`,
    volumeName: '',
    engineInstanceName: '',
  });
  const request = {
    address: fake.address,
    sizeBytes: 32 * MIB,
    currentSizeBytes: 32 * MIB,
    fastSync: false,
    isRestore: false,
    httpTimeoutSeconds: 5,
    deadlineSeconds: 0,
    ...change,
  };
  try {
    await addReplica(connections, request, options);
    return null;
  } catch (error) {
    if (error instanceof StorageError) return error;
    throw error;
  } finally {
    connections.close();
  }
}

t.test('a new replica joins with a snapshot, is filled, then verified', async (t) => {
  const fake = await fakeVolume(t);
  const steps: string[] = [];
  t.equal(await add(fake, { onProgress: ({ step }) => void steps.push(step) }), null);
  t.same(fake.calls, [...READY, ...FILL]);
  t.same(fake.sources, [SOURCE], 'copied from as many as the engine allows');
  t.same(
    [...new Set(steps)],
    ['check', 'mark', 'join', 'prepare', 'sync', 'reload', 'verify', 'finish'],
  );
});

t.test('replicas that cannot be asked are not read beside each other', async (t) => {
  const fake = await fakeVolume(t, (f) => (f.concurrentSyncLimit = 5));
  t.equal(await add(fake), null);
  t.same(fake.sources, [SOURCE], 'rebuild-sources.test.ts has who is');
});

t.test('a smaller replica is expanded and closed again before it joins', async (t) => {
  const fake = await fakeVolume(t, (f) => (f.replicaBytes = 16 * MIB));
  t.equal(await add(fake), null);
  t.same(fake.calls.slice(0, 3), ['open', 'expand', 'rebuilding true']);
});

t.test('an expansion that fails leaves the replica closed and outside', async (t) => {
  const fake = await fakeVolume(t, (f) => {
    f.replicaBytes = 16 * MIB;
    f.failing = 'expand';
  });
  const error = await add(fake);
  t.match(error?.message, 'failed to expand replica');
  t.equal(error?.details['replicaMode'], 'none');
  t.same(fake.calls, ['open', 'expand', 'close']);
});

t.test('the flag of an earlier rebuild stays until the replica is whole', async (t) => {
  const fake = await fakeVolume(t, (f) => (f.rebuilding = true));
  t.equal(await add(fake), null);
  t.same(fake.calls, ['open', 'close', 'join with snapshot', ...FILL]);
});

t.test('the first replica of a volume starts it', async (t) => {
  const fake = await fakeVolume(t, (f) => (f.isEmpty = true));
  t.equal(await add(fake), null);
  t.same(fake.calls, ['start 1']);
});

t.test('a volume is started by one replica only when no other can hold more', async (t) => {
  const rosterOf = (...members: string[]): Roster => ({
    generation: 7,
    number: 2,
    members,
    absent: [],
    clean: true,
  });
  const cases: [string, RegExp | null, Partial<FakeVolume>][] = [
    ['new', null, { replicaId: 'me' }],
    ['the only member', null, { replicaId: 'me', roster: rosterOf('me') }],
    ['one of two', /start-with-replicas/, { replicaId: 'me', roster: rosterOf('me', 'other') }],
    ['no member', /start-with-replicas/, { replicaId: 'me', roster: rosterOf('other') }],
    ['told of no members', /start-with-replicas/, { replicaId: 'me', roster: rosterOf() }],
    ['used by another program since', /start-with-replicas/, { replicaId: 'me', rosterVoid: true }],
  ];
  for (const [what, refusal, fields] of cases) {
    const fake = await fakeVolume(t, (f) => Object.assign(f, { isEmpty: true }, fields));
    const error = await add(fake);
    if (refusal === null) t.equal(error, null, what);
    else t.match(error?.message, refusal, what);
    t.same(fake.calls, refusal === null ? ['start 1'] : [], `${what}: calls`);
  }
});

t.test('a replica for a restore joins without a snapshot and is not filled', async (t) => {
  const fake = await fakeVolume(t);
  t.equal(await add(fake, {}, { isRestore: true }), null);
  t.same(fake.calls, ['join without snapshot']);
  t.equal(fake.mode, 'WO');
});

t.test('a replica that must not be touched is not touched', async (t) => {
  const cases: [string, RegExp, (fake: FakeVolume) => void][] = [
    [
      'larger than the volume',
      /cannot add new replica larger than size/,
      (f) => (f.replicaBytes = 64 * MIB),
    ],
    ['in use elsewhere', /must be closed, cannot add in state open/, (f) => (f.state = 'open')],
    ['never created', /not created yet/, (f) => (f.state = 'initial')],
    ['already RW', /already part of the volume and RW/, (f) => (f.mode = 'RW')],
    ['still listed as ERR', /failed and is still listed/, (f) => (f.mode = 'ERR')],
  ];
  for (const [what, text, change] of cases) {
    const fake = await fakeVolume(t, change);
    t.match((await add(fake))?.message, text, what);
    t.same(fake.calls, [], `${what}: no call that changes anything`);
  }
});

t.test('a failure before verification leaves it WO; the same call takes it up again', async (t) => {
  for (const failing of ['prepare', 'sync', 'reload']) {
    const fake = await fakeVolume(t, (f) => (f.failing = failing));
    const error = await add(fake);
    t.equal(error?.details['replicaMode'], 'WO', failing);
    t.equal(fake.mode, 'WO', `${failing}: not removed`);
    fake.failing = '';
    fake.calls.length = 0;
    t.equal(await add(fake), null, `${failing}: again`);
    t.same(fake.calls, FILL, `${failing}: without joining twice`);
  }
});

t.test('a failed verification is reported with the mode the engine gave it', async (t) => {
  const fake = await fakeVolume(t, (f) => (f.failing = 'verify'));
  const error = await add(fake);
  t.equal(error?.details['replicaMode'], 'ERR');
  t.match(error?.message, 'failed to verify rebuilt replica');
  t.notOk(fake.calls.includes('rebuilding false'), 'its content is still marked as incomplete');
});

t.test('giving up during the copy cancels it and takes the replica out', async (t) => {
  const fake = await fakeVolume(t, (f) => (f.syncHangs = true));
  const controller = new AbortController();
  const onProgress: AddReplicaOptions['onProgress'] = ({ step }) => {
    if (step === 'sync' && fake.calls.includes('sync')) controller.abort();
  };
  const error = await add(fake, { signal: controller.signal, onProgress });
  t.equal(error?.code, 'CANCELLED');
  t.equal(error?.details['replicaMode'], 'none');
  t.same(fake.calls.at(-1), 'delete');
});

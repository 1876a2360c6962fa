// The life of a replica as its callers see it over gRPC: upstream's integration tests of the replica
// (group F), on a real replica process.

import { join } from 'node:path';
import t from 'tap';
import type { Replica as ReplicaInfo } from '../../src/api/generated/replica.js';
import { ReplicaServiceDefinition } from '../../src/api/generated/replica.js';
import { realClock } from '../../src/core/clock-real.js';
import { createChannel, createClient, type RpcClient } from '../../src/rpc/client.js';
import { freePorts, ProcessStack } from '../support/process-stack.js';

const SIZE = String(4 * 1024 * 1024);
const CREATED = '2026-01-01T00:00:00Z';
const OPEN = {
  isUpgrade: false,
  expectedBackendSize: 0,
  engineGeneration: 0,
  engineCapabilities: [],
};
const HEAD_2 = 'volume-head-002.img';
const [SNAP_0, SNAP_1] = ['volume-snap-000.img', 'volume-snap-001.img'];

t.setTimeout(60_000);

type Api = RpcClient<typeof ReplicaServiceDefinition>;
type Answer = Promise<{ replica?: ReplicaInfo | undefined }>;

async function info(answer: Answer): Promise<ReplicaInfo> {
  const { replica } = await answer;
  if (replica === undefined) throw new Error('an answer without a replica');
  return replica;
}

function snapshot(api: Api, name: string, labels: Record<string, string> = {}): Answer {
  return api.replicaSnapshot({
    name,
    userCreated: true,
    created: CREATED,
    labels,
    isBrief: false,
  });
}

t.test('the life of one replica', async (t) => {
  const stack = await ProcessStack.create({ size: SIZE });
  t.teardown(() => stack.stop());
  const port = await freePorts(3);
  const directory = join(stack.directory, 'r1');
  const flags = ['--listen', `127.0.0.1:${port}`, '--no-sync-agent', '--disableRevCounter'];
  const daemon = stack.daemon(['replica', directory, ...flags]);
  await daemon.event('replica.serving');
  const channel = createChannel({ host: '127.0.0.1', port }, { clock: realClock });
  t.teardown(() => channel.close());
  const api = createClient(ReplicaServiceDefinition, channel);

  await t.test('#43 a fresh process, then created', async (t) => {
    const fresh = await info(api.replicaGet({}));
    t.match(fresh, { state: 'initial', size: '0', sectorSize: 0, head: '', chain: [] });
    const created = await info(api.replicaCreate({ size: SIZE }));
    t.match(created, { state: 'closed', dirty: false, rebuilding: false, sectorSize: 512 });
    t.match(created, { head: 'volume-head-000.img', parent: '', size: SIZE });
  });

  await t.test('#44 open', async (t) => {
    const opened = await info(api.replicaOpen(OPEN));
    t.match(opened, { state: 'open', dirty: false, rebuilding: false, parent: '', size: SIZE });
    t.same(opened.chain, ['volume-head-000.img']);
    t.same(Object.keys(opened.disks), ['volume-head-000.img']);
  });

  await t.test('#45 closed, it still says what it is', async (t) => {
    const closed = await info(api.replicaClose({}));
    t.match(closed, { state: 'closed', dirty: false, head: 'volume-head-000.img', size: SIZE });
    t.equal(closed.parent, '');
    await api.replicaOpen(OPEN);
  });

  await t.test('#46 snapshots make it dirty, and labels are kept', async (t) => {
    await snapshot(api, '000', { zone: 'a', app: 'b' });
    const after = await info(snapshot(api, '001'));
    t.match(after, {
      state: 'dirty',
      dirty: true,
      rebuilding: false,
      head: HEAD_2,
      parent: SNAP_1,
    });
    t.same(after.chain, [HEAD_2, SNAP_1, SNAP_0]);
    t.match(after.disks[SNAP_0 ?? ''], { labels: { zone: 'a', app: 'b' }, userCreated: true });
    t.match(after.disks[HEAD_2], { userCreated: false, created: CREATED });
    t.same(after.disks[SNAP_0 ?? '']?.children, { [SNAP_1 ?? '']: true });
  });

  await t.test('#48 reload, close and open keep the chain', async (t) => {
    t.match(await info(api.replicaReload({})), { state: 'dirty', chain: [HEAD_2, SNAP_1, SNAP_0] });
    t.match(await info(api.replicaClose({})), { state: 'closed', dirty: false });
    const opened = await info(api.replicaOpen(OPEN));
    t.match(opened, { state: 'open', dirty: false, chain: [HEAD_2, SNAP_1, SNAP_0] });
    t.match(await info(api.replicaReload({})), { state: 'open', chain: opened.chain });
  });

  await t.test('#49 the rebuilding flag outlives close, open and reload', async (t) => {
    await t.rejects(api.rebuildingSet({ rebuilding: false }), 'it is not set');
    t.match(await info(api.rebuildingSet({ rebuilding: true })), { state: 'rebuilding' });
    t.match(await info(api.replicaReload({})), { state: 'rebuilding', rebuilding: true });
    t.match(await info(api.replicaClose({})), { state: 'closed', rebuilding: true });
    t.match(await info(api.replicaOpen(OPEN)), { state: 'rebuilding', rebuilding: true });
    t.match(await info(api.rebuildingSet({ rebuilding: false })), { state: 'open' });
  });

  await t.test('#47 marking and removing disks', async (t) => {
    await api.diskMarkAsRemoved({ name: '003' });
    t.same((await api.diskPrepareRemove({ name: '003' })).operations, []);
    await t.rejects(api.diskMarkAsRemoved({ name: HEAD_2 }), /cannot mark the active/);
    await t.rejects(api.diskPrepareRemove({ name: HEAD_2 }), /cannot delete the active/);
    await api.diskMarkAsRemoved({ name: '001' });
    t.equal((await api.diskPrepareRemove({ name: '001' })).operations.length, 1);
    const shorter = await info(api.diskRemove({ name: SNAP_1 ?? '', force: false }));
    t.match(shorter, { chain: [HEAD_2, SNAP_0], parent: SNAP_0 });

    await snapshot(api, '001');
    await api.diskMarkAsRemoved({ name: SNAP_0 ?? '' });
    const { operations } = await api.diskPrepareRemove({ name: SNAP_0 ?? '' });
    t.match(operations, [
      { action: 'coalesce', source: SNAP_0, target: SNAP_1 },
      { action: 'replace', source: SNAP_0, target: SNAP_1 },
    ]);
    const unmarked = await info(api.diskRemove({ name: SNAP_1 ?? '', force: false }));
    t.same(unmarked.chain, ['volume-head-003.img'], 'marked ones are no part of the chain');
    const bare = await info(api.diskRemove({ name: SNAP_0 ?? '', force: false }));
    t.same(Object.keys(bare.disks), ['volume-head-003.img']);
    t.equal(bare.parent, '');
  });
});

// An engine's replicas as callers of its gRPC interface change them: upstream's integration tests of
// the controller (group G), on a real engine and real replicas, and what its client makes of nonsense
// (end of group D).

import t from 'tap';
import { ControllerServiceDefinition, ReplicaMode } from '../../src/api/generated/controller.js';
import { Connections } from '../../src/client/connections.js';
import { describeReplicas } from '../../src/client/replicas.js';
import { markSnapshotsRemoved, snapshotInfos } from '../../src/client/snapshots.js';
import { realClock } from '../../src/core/clock-real.js';
import { StorageError } from '../../src/core/errors.js';
import { silentLogger } from '../../src/core/log.js';
import { createRpcServer, type ServiceHandlers } from '../../src/rpc/server.js';
import { ProcessStack, type ReplicaSlot } from '../support/process-stack.js';
import { replicaState, waitUntil } from '../support/replica-state.js';

const MIB = 1024 * 1024;
const SIZE = 4 * MIB;
const { WO, RW, ERR } = ReplicaMode;

t.setTimeout(90_000);

function connectionsTo(port: number): Connections {
  return new Connections({
    clock: realClock,
    engineAddress: `127.0.0.1:${port}`,
    volumeName: '',
    engineInstanceName: '',
  });
}

t.test('the replicas of one engine', async (t) => {
  const stack = await ProcessStack.create({
    size: String(SIZE),
    replicaFlags: ['--no-sync-agent'],
  });
  t.teardown(() => stack.stop());
  await stack.startReplicas(3);
  await stack.startEngine([], ['--frontend', 'none']);
  const connections = connectionsTo(stack.enginePort);
  t.teardown(() => connections.close());
  const { engine } = connections;
  const [r1, r2, r3] = stack.replicas as [ReplicaSlot, ReplicaSlot, ReplicaSlot];
  const list = async (): Promise<(readonly [string | undefined, ReplicaMode])[]> =>
    (await engine.replicaList({})).replicas.map(
      ({ address, mode }) => [address?.address, mode] as const,
    );
  const add = ({ address }: ReplicaSlot): Promise<unknown> =>
    engine.controllerReplicaCreate({ address, snapshotRequired: false, mode: WO });
  const update = (slot: ReplicaSlot, mode: ReplicaMode): Promise<unknown> =>
    engine.replicaUpdate({ address: { address: slot.address, instanceName: '' }, mode });
  const remove = ({ address }: ReplicaSlot): Promise<unknown> =>
    engine.replicaDelete({ address, instanceName: '' });

  await t.test('#51 start, start again, shut down, start', async (t) => {
    const replicaAddresses = stack.replicas.map(({ address }) => address);
    const request = { replicaAddresses, size: SIZE, currentSize: SIZE };
    for (let round = 0; round < 2; round++) {
      t.match(await engine.volumeStart(request), { replicaCount: 3, size: SIZE });
      t.match(
        await engine.volumeStart({ ...request, replicaAddresses: [r1.address] }),
        { replicaCount: 3 },
        'a second start changes nothing',
      );
      t.same(
        await list(),
        replicaAddresses.map((address) => [address, RW]),
      );
      if (round === 1) break;
      t.match(await engine.volumeShutdown({}), { replicaCount: 0 });
      for (const slot of stack.replicas) {
        t.match(await replicaState(slot), { state: 'closed', dirty: false });
      }
    }
  });

  await t.test('#52 expand', async (t) => {
    await engine.volumeExpand({ size: 2 * SIZE });
    await waitUntil('the expansion ended', async () => !(await engine.volumeGet({})).isExpanding);
    t.match(await engine.volumeGet({}), { size: 2 * SIZE, lastExpansionError: '' });
    for (const { info } of await describeReplicas(connections)) {
      t.match(info, { size: String(2 * SIZE) });
      t.match(info?.disks[`volume-snap-expand-${2 * SIZE}.img`], {
        userCreated: false,
        labels: { 'replica-expansion': String(2 * SIZE) },
      });
    }
    for (const size of [2 * SIZE + 1, SIZE]) {
      await t.rejects(engine.volumeExpand({ size }));
      const { lastExpansionError, lastExpansionFailedAt } = await engine.volumeGet({});
      t.match(lastExpansionError, /controller failed to start expansion: /);
      t.match(lastExpansionFailedAt, /^\d{4}-\d\d-\d\dT/);
    }
    t.match(await engine.volumeGet({}), { size: 2 * SIZE, isExpanding: false });
  });

  await t.test('#53 RW can be made ERR, and ERR nothing', async (t) => {
    await update(r3, ERR);
    await update(r3, RW);
    t.same((await list()).at(-1), [r3.address, ERR]);
    await t.rejects(update(r2, WO));
    t.same((await list())[1], [r2.address, RW]);
  });

  await t.test('#50 one entry for an address, one WO at a time', async (t) => {
    await engine.volumeShutdown({});
    for (let i = 0; i < 3; i++) await add(r1);
    t.same(await list(), [[r1.address, WO]]);
    await t.rejects(add(r2), /can only have one WO replica at a time/);
    t.same(await list(), [[r1.address, WO]]);
    await update(r1, RW);
    const { replica } = await connections.replica(r1.address).replicaGet({});
    t.same(replica?.roster?.members, [replica?.replicaId], 'it knows that it is the only member');
    t.ok((replica?.engineGeneration ?? 0) > 0, 'of an engine that nobody started as a volume');
    await add(r2);
    t.same(await list(), [
      [r1.address, RW],
      [r2.address, WO],
    ]);
    await remove(r2);
    await remove(r2);
    await remove(r1);
    await remove(r1);
    t.same(await list(), []);
    await waitUntil('both are closed', async () => {
      const states = await Promise.all([r1, r2].map(replicaState));
      return states.every(({ state }) => state === 'closed');
    });
  });
});

t.test('#35 an engine that answers nonsense gives errors, never a crash', async (t) => {
  let address: { address: string; instanceName: string } | undefined;
  const handlers = {
    replicaList: () => ({ replicas: [{ address, mode: RW }] }),
  } as unknown as ServiceHandlers<typeof ControllerServiceDefinition>;
  const server = createRpcServer({
    clock: realClock,
    log: silentLogger,
    identity: { volumeName: '', instanceName: '', what: 'controller' },
  }).addService(ControllerServiceDefinition, handlers);
  t.teardown(() => server.close(0));
  const connections = connectionsTo(await server.listen('127.0.0.1', 0));
  t.teardown(() => connections.close());
  const addresses = [undefined, '', 'tcp://', 'tcp://127.0.0.1:notaport', 'file:///etc'];
  for (const text of addresses) {
    address = text === undefined ? undefined : { address: text, instanceName: '' };
    const [entry] = await describeReplicas(connections);
    t.ok(entry?.failure instanceof StorageError, `replica address ${text}`);
    await t.rejects(snapshotInfos(connections), StorageError);
    await t.rejects(markSnapshotsRemoved(connections, ['s1']), StorageError);
  }
});

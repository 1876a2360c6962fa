// A volume of real processes driven by the command line alone: a replica is added under load, comes
// back after a rebuild that failed, and nobody talks to the wrong process.

import { join } from 'node:path';
import t, { type Test } from 'tap';
import { EXIT_CODE } from '../../src/cli/exit-codes.js';
import { Connections } from '../../src/client/connections.js';
import { ReplicaMode } from '../../src/api/generated/controller.js';
import { realClock } from '../../src/core/clock-real.js';
import { type CliResult, CliWorker, SocketClient } from '../support/cli.js';
import { type Daemon, ProcessStack, type ReplicaSlot } from '../support/process-stack.js';

const MIB = 1024 * 1024;
const SECTOR = 4096;
const SIZE = 16 * MIB;
const GROWN = 32 * MIB;
const SOCKET_FRONTEND = ['--frontend', 'socket'];

interface Bench {
  readonly stack: ProcessStack;
  readonly cli: (...args: string[]) => Promise<CliResult>;
  readonly add: (slot: ReplicaSlot, ...flags: string[]) => Promise<CliResult>;
  readonly modes: () => Promise<string[]>;
}

async function bench(t: Test): Promise<Bench> {
  const stack = await ProcessStack.create({ size: '16m' });
  t.teardown(async () => {
    if (!t.passing()) t.comment(stack.replicas.map(({ daemon }) => daemon?.text()).join('\n'));
    if (!t.passing()) t.comment(stack.engine?.text() ?? 'no engine');
    await stack.stop();
  });
  const worker = new CliWorker();
  t.teardown(() => worker.stop());
  await stack.startReplicas(2);
  await stack.startEngine(stack.replicas, SOCKET_FRONTEND);
  const cli = (...args: string[]): Promise<CliResult> =>
    worker.run('--url', `http://127.0.0.1:${stack.enginePort}`, ...args);
  return {
    stack,
    cli,
    add: (slot, ...flags) =>
      cli('add', '--size', '16m', '--current-size', '16m', ...flags, slot.address),
    modes: async () => {
      const list = JSON.parse((await cli('ls', '-o', 'json')).stdout) as { mode: string }[];
      return list.map(({ mode }) => mode);
    },
  };
}

function socketOf(stack: ProcessStack): string {
  return join(stack.directory, `longhorn-${stack.volumeName}.sock`);
}

/** Writes sectors all over the volume and the model until stopped. */
class Writer {
  readonly model = Buffer.alloc(GROWN);
  private readonly client: SocketClient;
  private isStopped = false;
  private count = 0;
  private running: Promise<void> = Promise.resolve();

  constructor(client: SocketClient) {
    this.client = client;
  }

  start(): void {
    this.running = this.run();
  }

  async stop(): Promise<number> {
    this.isStopped = true;
    await this.running;
    return this.count;
  }

  private async run(): Promise<void> {
    while (!this.isStopped) {
      this.count++;
      const offset = ((this.count * 7919) % (GROWN / SECTOR)) * SECTOR;
      const data = Buffer.alloc(SECTOR, (this.count % 255) + 1);
      await this.client.write(offset, data);
      data.copy(this.model, offset);
    }
  }
}

/** What an engine over this replica alone reads. */
async function contentOf(stack: ProcessStack, slot: ReplicaSlot): Promise<Buffer> {
  const size = ['--size', '32m', '--current-size', '32m'];
  const engine = await stack.startEngine([slot], [...SOCKET_FRONTEND, ...size]);
  const client = await SocketClient.connect(socketOf(stack));
  const parts: Buffer[] = [];
  for (let at = 0; at < GROWN; at += MIB) parts.push(await client.read(at, MIB));
  client.close();
  await engine.end();
  return Buffer.concat(parts);
}

t.test('a smaller replica is added to a written volume; each then holds the same', async (t) => {
  const { stack, cli, add, modes } = await bench(t);
  t.equal((await cli('expand', '--size', '32m')).code, EXIT_CODE.ok);
  while (JSON.parse((await cli('info')).stdout).size !== GROWN);
  const client = await SocketClient.connect(socketOf(stack));
  const writer = new Writer(client);
  const base = Buffer.alloc(8 * MIB, 0xaa);
  for (let at = 0; at < base.byteLength; at += MIB)
    await client.write(at, base.subarray(at, at + MIB));
  base.copy(writer.model);
  await cli('snapshots', 'create', 'before');
  writer.start();
  const slot = await stack.addSlot();
  await stack.startReplica(slot);
  const { code, stderr } = await add(slot);
  const count = await writer.stop();
  t.equal(code, EXIT_CODE.ok, stderr);
  t.match(stderr, /expanding it to the size of the volume[\s\S]*copying 100%[\s\S]*done/);
  t.ok(count > 0, 'the writer ran');
  t.same(await modes(), ['RW', 'RW', 'RW']);
  t.equal((await cli('rebuild-status')).stdout, '{}\n');
  client.close();
  await stack.engine?.end();
  for (const replica of stack.replicas) {
    t.ok(
      (await contentOf(stack, replica)).equals(writer.model),
      `${replica.directory} is the model`,
    );
  }
});

t.test(
  'a replica whose rebuild died is added again, without its old flag in the way',
  async (t) => {
    const { stack, cli, add, modes } = await bench(t);
    const slot = await stack.addSlot();
    const daemon = await stack.startReplica(slot);
    const connections = new Connections({
      clock: realClock,
      engineAddress: `127.0.0.1:${stack.enginePort}`,
      volumeName: '',
      engineInstanceName: '',
    });
    const request = { address: slot.address, snapshotRequired: true, mode: ReplicaMode.WO };
    await connections.engine.controllerReplicaCreate(request);
    await connections.replica(slot.address).rebuildingSet({ rebuilding: true });
    connections.close();
    t.match((await cli('snapshots', 'rm', 'x')).stderr, `because ${slot.address} is rebuilding`);
    t.match((await cli('snapshots', 'purge')).stderr, `because ${slot.address} is rebuilding`);
    t.match(Object.keys(JSON.parse((await cli('rebuild-status')).stdout)), [slot.address]);
    await daemon.end('SIGKILL');
    while (!(await modes()).includes('ERR'));
    await stack.startReplica(slot);
    const refused = await add(slot);
    t.equal(refused.code, EXIT_CODE.failure);
    t.match(refused.stderr, `longhorn rm-replica ${slot.address}`, 'says what to do');
    t.equal((await cli('rm', slot.address)).code, EXIT_CODE.ok);
    const { code, stderr } = await add(slot);
    t.equal(code, EXIT_CODE.ok, stderr);
    t.same(await modes(), ['RW', 'RW', 'RW']);
  },
);

t.test('an engine without replicas is not started by one that others left behind', async (t) => {
  const { stack, add, modes } = await bench(t);
  const [first, second] = stack.replicas as [ReplicaSlot, ReplicaSlot];
  const engine = stack.engine as Daemon;
  await second.daemon?.end('SIGKILL');
  const client = await SocketClient.connect(socketOf(stack));
  await client.write(0, Buffer.alloc(SECTOR, 1));
  client.close();
  await engine.event('fork.cut');
  await engine.end();
  await stack.startReplica(second);
  await stack.startEngine([], SOCKET_FRONTEND);
  const refused = await add(second);
  t.equal(refused.code, EXIT_CODE.failure);
  t.match(refused.stderr, /1 other member of its volume.*start-with-replicas/);
  t.same(await modes(), [], 'the engine still has none');
  const { code, stderr } = await add(first);
  t.equal(code, EXIT_CODE.ok, stderr);
  t.same(await modes(), ['RW'], 'the one that holds everything starts it');
});

t.test('callers who mean another volume or instance are refused everywhere', async (t) => {
  const { stack, cli } = await bench(t);
  const slot = await stack.addSlot();
  await stack.startReplica(slot, ['--replica-instance-name', 'r3']);
  const size = ['--size', '16m', '--current-size', '16m'];
  const wrongVolume = await cli('--volume-name', 'other', 'info');
  t.equal(wrongVolume.code, EXIT_CODE.failure);
  t.match(
    wrongVolume.stderr,
    /incorrect volume name other; check controller address \(IDENTITY_MISMATCH\)/,
  );
  const wrongReplica = await cli('add', ...size, '--replica-instance-name', 'r4', slot.address);
  t.equal(wrongReplica.code, EXIT_CODE.failure);
  t.match(
    wrongReplica.stderr,
    /incorrect instance name r4; check replica address \(IDENTITY_MISMATCH\)/,
  );
  t.equal((await cli('--volume-name', stack.volumeName, 'info')).code, EXIT_CODE.ok);
  const right = await cli('add', ...size, '--replica-instance-name', 'r3', slot.address);
  t.equal(right.code, EXIT_CODE.ok, right.stderr);
  await stack.engine?.end();
  await stack.startEngine(stack.replicas, ['--engine-instance-name', 'e1']);
  const wrongEngine = await cli('--engine-instance-name', 'e2', 'ls');
  t.equal(wrongEngine.code, EXIT_CODE.failure);
  t.match(wrongEngine.stderr, 'incorrect instance name e2; check controller address');
  t.equal((await cli('--engine-instance-name', 'e1', 'ls')).code, EXIT_CODE.ok);
});

t.test('the last replica of a served volume cannot be removed', async (t) => {
  const { stack, cli, modes } = await bench(t);
  const [first, second] = stack.replicas;
  t.equal((await cli('rm', first?.address ?? '')).code, EXIT_CODE.ok);
  const refused = await cli('rm', second?.address ?? '');
  t.equal(refused.code, EXIT_CODE.failure);
  t.match(refused.stderr, 'cannot remove last replica if volume is up');
  t.same(await modes(), ['RW']);
  t.equal(SIZE, JSON.parse((await cli('info')).stdout).size);
});

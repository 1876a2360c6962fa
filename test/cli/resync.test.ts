// A replica that was away comes back by what it missed: real processes, counted bytes, and in the end
// each replica alone must hold the same, in its head and in every snapshot.

import { createHash, randomBytes } from 'node:crypto';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { EXIT_CODE } from '../../src/cli/exit-codes.js';
import { silentLogger } from '../../src/core/log.js';
import { createNativeDisk, createSlab } from '../../src/disk/native-disk.js';
import type { CliResult } from '../support/cli.js';
import { CliWorker, SocketClient } from '../support/cli.js';
import { openChain, readBytes } from '../support/image-chains.js';
import { type Daemon, ProcessStack, type ReplicaSlot } from '../support/process-stack.js';

const MIB = 1024 * 1024;
const SECTOR = 4096;
const SIZE_MIB = 64;
const SOCKET_FRONTEND = ['--frontend', 'socket'];
const disk = createNativeDisk({ slab: createSlab(4 * MIB), log: silentLogger });
t.setTimeout(180_000);
t.teardown(() => disk.shutdown());

class Volume {
  readonly stack: ProcessStack;
  readonly worker = new CliWorker();
  readonly kept: ReplicaSlot;
  readonly away: ReplicaSlot;
  client: SocketClient;

  private constructor(stack: ProcessStack, client: SocketClient) {
    this.stack = stack;
    this.client = client;
    this.kept = stack.replicas[0] as ReplicaSlot;
    this.away = stack.replicas[1] as ReplicaSlot;
  }

  /** Two replicas with 32 MiB written, the snapshot `base`, and 4 MiB written after it. */
  static async create(t: Test): Promise<Volume> {
    const stack = await ProcessStack.create({ size: `${SIZE_MIB}m` });
    t.teardown(async () => {
      if (!t.passing()) t.comment(stack.replicas.map(({ daemon }) => daemon?.text()).join('\n'));
      if (!t.passing()) t.comment(stack.engine?.text() ?? 'no engine');
      await stack.stop();
    });
    await stack.startReplicas(2);
    await stack.startEngine(stack.replicas, SOCKET_FRONTEND);
    const volume = new Volume(stack, await connect(stack));
    t.teardown(() => volume.worker.stop());
    await volume.fill(0, 32);
    await volume.run('snapshots', 'create', 'base');
    await volume.fill(8, 4);
    return volume;
  }

  cli(...args: string[]): Promise<CliResult> {
    return this.worker.run('--url', `http://127.0.0.1:${this.stack.enginePort}`, ...args);
  }

  async run(...args: string[]): Promise<void> {
    const { code, stderr } = await this.cli(...args);
    if (code !== EXIT_CODE.ok) throw new Error(`${args.join(' ')}: ${stderr}`);
  }

  async fill(beginMib: number, countMib: number): Promise<void> {
    for (let i = 0; i < countMib; i++) {
      await this.client.write((beginMib + i) * MIB, randomBytes(MIB));
    }
  }

  /** Single sectors, far from each other. */
  async scatter(count: number): Promise<void> {
    for (let i = 0; i < count; i++) {
      const sector = (i * 7919 + 13) % ((SIZE_MIB * MIB) / SECTOR);
      await this.client.write(sector * SECTOR, randomBytes(SECTOR));
    }
  }

  /** The replica dies while a client writes; the fork is cut. */
  async lose(): Promise<void> {
    const engine = this.stack.engine as Daemon;
    const seen = engine.eventsOf('fork.cut').length;
    const writing = this.scatter(50);
    await this.away.daemon?.end('SIGKILL');
    await writing;
    await engine.event('fork.cut', seen);
  }

  async restartEngine(signal: NodeJS.Signals, slots: readonly ReplicaSlot[]): Promise<void> {
    this.client.close();
    await this.stack.engine?.end(signal);
    await this.stack.startEngine(slots, SOCKET_FRONTEND);
    this.client = await connect(this.stack);
  }

  add(): Promise<CliResult> {
    const size = ['--size', `${SIZE_MIB}m`, '--current-size', `${SIZE_MIB}m`];
    return this.cli('add', ...size, this.away.address);
  }

  /** Comes back; returns the bytes of data that moved. */
  async comeBack(t: Test): Promise<number> {
    const daemon = await this.stack.startReplica(this.away);
    await this.cli('rm', this.away.address);
    const { code, stderr } = await this.add();
    t.equal(code, EXIT_CODE.ok, stderr);
    return Number((await daemon.event('files.synced'))['receivedBytes']);
  }

  /** Ends everything and compares what the replicas hold. */
  async assertAlike(t: Test): Promise<void> {
    this.client.close();
    await this.stack.engine?.end();
    for (const { daemon } of this.stack.replicas) await daemon?.end();
    const [kept, away] = [await hashes(this.kept.directory), await hashes(this.away.directory)];
    t.same(away, kept, 'head and every snapshot are the same');
    t.ok(Object.keys(kept).length > 1, 'there was something to compare');
  }
}

function connect(stack: ProcessStack): Promise<SocketClient> {
  return SocketClient.connect(join(stack.directory, `longhorn-${stack.volumeName}.sock`));
}

/** What the volume and each of its snapshots look like from one directory. */
async function hashes(directory: string): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  const snapshots = (await readdir(directory)).filter((name) => /^volume-snap-.*\.img$/.test(name));
  for (const name of ['head', ...snapshots.sort()]) {
    const chain = await openChain(disk, directory, {
      readOnly: true,
      ...(name === 'head' ? {} : { headDiskName: name }),
    });
    const hash = createHash('sha256');
    for (let at = 0; at < chain.sizeBytes; at += MIB) {
      hash.update(await readBytes(disk, chain, at, MIB));
    }
    found[name] = hash.digest('hex');
    await chain.close();
  }
  return found;
}

t.test('a replica that was killed comes back by what was written meanwhile', async (t) => {
  const volume = await Volume.create(t);
  await volume.lose();
  await volume.fill(20, 2);
  await volume.scatter(64);
  const moved = await volume.comeBack(t);
  t.ok(moved >= 2 * MIB, `${moved} bytes: what was written`);
  t.ok(moved <= 3 * MIB, `${moved} bytes: little else`);
  await volume.assertAlike(t);
});

t.test('snapshots come and go meanwhile, engine and replicas restart', async (t) => {
  const volume = await Volume.create(t);
  await volume.lose();
  await volume.fill(20, 2);
  await volume.run('snapshots', 'create', 'meanwhile');
  await volume.restartEngine('SIGKILL', [volume.kept]);
  await volume.kept.daemon?.end('SIGKILL');
  await volume.stack.engine?.end('SIGKILL');
  await volume.stack.startReplica(volume.kept);
  await volume.restartEngine('SIGTERM', [volume.kept]);
  await volume.fill(22, 1);
  await volume.run('snapshots', 'create', 'gone');
  await volume.fill(30, 1);
  await volume.run('snapshots', 'rm', 'gone');
  await volume.run('snapshots', 'purge');
  const moved = await volume.comeBack(t);
  t.ok(moved <= 5 * MIB, `${moved} bytes: what was written, no more`);
  await volume.assertAlike(t);
});

t.test('the engine dies too, and knows again who was away', async (t) => {
  const volume = await Volume.create(t);
  await volume.fill(40, 1);
  await volume.away.daemon?.end('SIGKILL');
  await volume.stack.engine?.end('SIGKILL');
  await volume.restartEngine('SIGKILL', [volume.kept]);
  await volume.fill(41, 1);
  await volume.comeBack(t);
  await volume.assertAlike(t);
});

t.test('without a record, or after another life, everything is compared', async (t) => {
  const volume = await Volume.create(t);
  await volume.lose();
  await volume.fill(20, 2);
  await volume.restartEngine('SIGTERM', [volume.kept]);
  // Somebody runs the other one alone: from here on it has a history of its own.
  await volume.stack.engine?.end();
  await volume.kept.daemon?.end();
  await volume.stack.startReplica(volume.away);
  await volume.restartEngine('SIGTERM', [volume.away]);
  await volume.fill(0, 1);
  await volume.scatter(64);
  await volume.stack.engine?.end();
  await volume.away.daemon?.end();
  await volume.stack.startReplica(volume.kept);
  await volume.restartEngine('SIGTERM', [volume.kept]);
  const moved = await volume.comeBack(t);
  t.ok(moved < 16 * MIB, `${moved} bytes: equal pieces are not sent`);
  await volume.assertAlike(t);
});

t.test('a replica without its roster file is compared; an empty one copied whole', async (t) => {
  const volume = await Volume.create(t);
  await volume.lose();
  await volume.fill(20, 2);
  await rm(join(volume.away.directory, 'volume.roster'));
  const moved = await volume.comeBack(t);
  t.ok(moved < 16 * MIB, `${moved} bytes: equal pieces are not sent`);
  await volume.lose();
  await rm(volume.away.directory, { recursive: true });
  const all = await volume.comeBack(t);
  t.ok(all >= 32 * MIB, `${all} bytes`);
  await volume.assertAlike(t);
});

t.test('a second outage in the middle of the resync loses nothing', async (t) => {
  const volume = await Volume.create(t);
  await volume.lose();
  await volume.fill(20, 8);
  const daemon = await volume.stack.startReplica(volume.away);
  await volume.cli('rm', volume.away.address);
  const adding = volume.add();
  await daemon.event('receiver.stopped');
  await daemon.end('SIGKILL');
  t.not((await adding).code, EXIT_CODE.ok, 'the first attempt failed');
  await volume.fill(30, 1);
  const before = await volume.comeBack(t);
  t.ok(before <= 20 * MIB, `${before} bytes`);
  await volume.assertAlike(t);
});

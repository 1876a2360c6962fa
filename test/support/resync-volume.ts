// A volume of real processes of which one replica goes away and comes back: what the tests of resync
// share. Bytes are counted by the sync agent; in the end each replica is opened alone.

import { createHash, randomBytes } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Test } from 'tap';
import { EXIT_CODE } from '../../src/cli/exit-codes.js';
import type { Disk } from '../../src/disk/disk.js';
import { type CliResult, type CliRun, CliWorker, SocketClient, startCli } from './cli.js';
import { openChain, readBytes } from './image-chains.js';
import { type Daemon, ProcessStack, type ReplicaSlot } from './process-stack.js';

export const MIB = 1024 * 1024;
const SECTOR = 4096;
export const SIZE_MIB = 64;
const SOCKET_FRONTEND = ['--frontend', 'socket'];

export class ResyncVolume {
  readonly stack: ProcessStack;
  readonly worker = new CliWorker();
  readonly kept: ReplicaSlot;
  readonly away: ReplicaSlot;
  client: SocketClient;

  private readonly disk: Disk;

  private constructor(stack: ProcessStack, client: SocketClient, disk: Disk) {
    this.stack = stack;
    this.disk = disk;
    this.client = client;
    this.kept = stack.replicas[0] as ReplicaSlot;
    this.away = stack.replicas[1] as ReplicaSlot;
  }

  /** Replicas with 32 MiB written, the snapshot `base`, and 4 MiB written after it. */
  static async create(t: Test, disk: Disk, replicaCount = 2): Promise<ResyncVolume> {
    const stack = await ProcessStack.create({ size: `${SIZE_MIB}m` });
    t.teardown(async () => {
      if (!t.passing()) t.comment(stack.replicas.map(({ daemon }) => daemon?.text()).join('\n'));
      if (!t.passing()) t.comment(stack.engine?.text() ?? 'no engine');
      await stack.stop();
    });
    await stack.startReplicas(replicaCount);
    await stack.startEngine(stack.replicas, SOCKET_FRONTEND);
    const volume = new ResyncVolume(stack, await connect(stack), disk);
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
    await this.reconnect();
  }

  async reconnect(): Promise<void> {
    this.client = await connect(this.stack);
  }

  add(): Promise<CliResult> {
    return this.cli(...this.addArguments());
  }

  /** By a process of its own, that can be killed; the copy is slow. */
  startSlowAdd(bytesPerSecond: string): CliRun {
    const engine = ['--url', `http://127.0.0.1:${this.stack.enginePort}`];
    return startCli([...engine, ...this.addArguments(), '--bandwidth-limit', bytesPerSecond]);
  }

  private addArguments(): string[] {
    const size = ['--size', `${SIZE_MIB}m`, '--current-size', `${SIZE_MIB}m`];
    return ['add', ...size, this.away.address];
  }

  /** Comes back; returns the bytes of data that moved. */
  async comeBack(t: Test): Promise<number> {
    await this.stack.startReplica(this.away);
    await this.cli('rm', this.away.address);
    return this.addAgain(t);
  }

  /** The replica runs and is not listed, or still WO; returns the bytes of data that moved. */
  async addAgain(t: Test): Promise<number> {
    const daemon = this.away.daemon as Daemon;
    const seen = daemon.eventsOf('files.synced').length;
    const { code, stderr } = await this.add();
    t.equal(code, EXIT_CODE.ok, stderr);
    return Number((await daemon.event('files.synced', seen))['receivedBytes']);
  }

  /** Ends everything and compares what the replicas hold. */
  async assertAlike(t: Test, kept = this.kept): Promise<void> {
    this.client.close();
    await this.stack.engine?.end();
    for (const { daemon } of this.stack.replicas) await daemon?.end();
    const [theirs, ours] = [
      await hashes(this.disk, kept.directory),
      await hashes(this.disk, this.away.directory),
    ];
    t.same(ours, theirs, 'head and every snapshot are the same');
    t.ok(Object.keys(theirs).length > 1, 'there was something to compare');
  }
}

function connect(stack: ProcessStack): Promise<SocketClient> {
  return SocketClient.connect(join(stack.directory, `longhorn-${stack.volumeName}.sock`));
}

/** What the volume and each of its snapshots look like from one directory. */
async function hashes(disk: Disk, directory: string): Promise<Record<string, string>> {
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

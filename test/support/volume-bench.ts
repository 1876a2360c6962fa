// A volume of real processes with one NBD client, the command line, and a model of what the volume
// must hold. For scenarios that go through everything a user can reach.

import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Test } from 'tap';
import { Connections } from '../../src/client/connections.js';
import { realClock } from '../../src/core/clock-real.js';
import { type CliResult, CliWorker } from './cli.js';
import { NbdVolume } from './nbd-volume.js';
import { waitUntil } from './replica-state.js';
import { ProcessStack, type ReplicaSlot, type StackOptions } from './process-stack.js';

export const SECTOR = 4096;
const READ_BYTES = 1024 * 1024;

export interface BenchOptions extends Partial<StackOptions> {
  readonly replicas: number;
  readonly sizeBytes: number;
  /** What the volume holds at first; zeros by default. */
  readonly content?: Buffer;
}

export class VolumeBench {
  readonly stack: ProcessStack;
  model: Buffer;
  private readonly worker = new CliWorker();
  private attached: NbdVolume | null = null;

  private constructor(stack: ProcessStack, model: Buffer) {
    this.stack = stack;
    this.model = model;
  }

  /** Replicas and engine run; everything ends with the test. */
  static async start(t: Test, options: BenchOptions): Promise<VolumeBench> {
    const { replicas, sizeBytes, content, ...stackOptions } = options;
    const stack = await ProcessStack.create({ ...stackOptions, size: String(sizeBytes) });
    const bench = new VolumeBench(stack, content ?? Buffer.alloc(sizeBytes));
    t.teardown(async () => {
      bench.worker.stop();
      bench.detach();
      if (!t.passing()) {
        const daemons = [stack.engine, ...stack.replicas.map(({ daemon }) => daemon)];
        t.comment(daemons.map((daemon) => daemon?.text()).join('\n\n'));
      }
      await stack.stop();
    });
    await stack.startReplicas(replicas);
    await stack.startEngine();
    return bench;
  }

  slot(index: number): ReplicaSlot {
    return this.stack.replicas[index] as ReplicaSlot;
  }

  get engineAddress(): string {
    return `127.0.0.1:${this.stack.enginePort}`;
  }

  cli(...args: string[]): Promise<CliResult> {
    return this.worker.run('--url', `http://${this.engineAddress}`, ...args);
  }

  /** Runs a command that must succeed. @returns its stdout. */
  async ok(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.cli(...args);
    if (code !== 0) throw new Error(`${args.join(' ')} ended with ${code}: ${stderr}`);
    return stdout;
  }

  async json<T>(...args: string[]): Promise<T> {
    return JSON.parse(await this.ok(...args)) as T;
  }

  async modes(): Promise<string[]> {
    const list = await this.json<{ mode: string }[]>('ls', '-o', 'json');
    return list.map(({ mode }) => mode);
  }

  /** Adds a running replica and waits until it is RW. */
  async add(slot: ReplicaSlot): Promise<void> {
    const size = String(this.model.byteLength);
    await this.ok('add', '--size', size, '--current-size', size, slot.address);
  }

  /** Calls past the command line. */
  async withApi<T>(use: (connections: Connections) => Promise<T>): Promise<T> {
    const connections = new Connections({
      clock: realClock,
      engineAddress: this.engineAddress,
      volumeName: '',
      engineInstanceName: '',
    });
    try {
      return await use(connections);
    } finally {
      connections.close();
    }
  }

  async client(): Promise<NbdVolume> {
    this.attached ??= await NbdVolume.connect(this.stack.nbdSocket, this.stack.volumeName);
    return this.attached;
  }

  detach(): void {
    this.attached?.close();
    this.attached = null;
  }

  /** Writes to the volume and to the model. */
  async fill(offset: number, lengthBytes: number, byte: number): Promise<void> {
    await (await this.client()).write(offset, Buffer.alloc(lengthBytes, byte));
    this.model.fill(byte, offset, offset + lengthBytes);
  }

  async content(): Promise<Buffer> {
    const client = await this.client();
    const parts: Buffer[] = [];
    for (let at = 0; at < this.model.byteLength; at += READ_BYTES) {
      parts.push(await client.read(at, Math.min(READ_BYTES, this.model.byteLength - at)));
    }
    return Buffer.concat(parts);
  }

  /** The volume holds what the model says. */
  async holds(): Promise<boolean> {
    return (await this.content()).equals(this.model);
  }

  async snapshot(name: string): Promise<Buffer> {
    await this.ok('snapshots', 'create', name);
    return Buffer.from(this.model);
  }

  /** Reverts as a user must: with the frontend down. */
  async revert(name: string, content: Buffer): Promise<void> {
    this.detach();
    await this.ok('frontend', 'shutdown');
    await this.ok('snapshots', 'revert', name);
    await this.ok('frontend', 'start', 'nbd');
    content.copy(this.model.fill(0));
  }

  /** Removes the snapshots and waits until no replica purges any more. */
  async purge(...names: string[]): Promise<void> {
    await this.ok('snapshots', 'rm', ...names);
    await this.ok('snapshots', 'purge');
    let all: PurgeState[] = [];
    await waitUntil('no replica purges', async () => {
      all = Object.values(await this.json<Record<string, PurgeState>>('snapshots', 'purge-status'));
      return all.every(({ isPurging }) => !isPurging);
    });
    for (const { error, progress, state } of all) {
      if (error === '' && progress === 100 && state === 'complete') continue;
      throw new Error(`a purge ended at ${progress} %, ${state}: ${error}`);
    }
  }

  infos(): Promise<Record<string, SnapshotState>> {
    return this.json('snapshots', 'info');
  }

  /** Content hash of every image of a replica; those of equal replicas are equal. */
  async imagesOf(slot: ReplicaSlot): Promise<Record<string, string>> {
    await (await this.client()).flush();
    const images: Record<string, string> = {};
    const names = (await readdir(slot.directory)).filter((name) => name.endsWith('.img')).sort();
    for (const name of names) {
      const hash = createHash('sha256');
      for await (const chunk of createReadStream(join(slot.directory, name))) {
        hash.update(chunk as Buffer);
      }
      images[name.replace(/^volume-head-\d+/, 'head')] = hash.digest('hex');
    }
    return images;
  }
}

interface PurgeState {
  readonly error: string;
  readonly isPurging: boolean;
  readonly progress: number;
  readonly state: string;
}

interface SnapshotState {
  readonly parent: string;
  readonly removed: boolean;
  readonly usercreated: boolean;
  readonly size: string;
  readonly children: Record<string, boolean>;
}

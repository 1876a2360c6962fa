// What is measured: our engine with replicas, qemu-nbd, and the file itself. How each is started,
// as a user starts it, where fio finds it and which processes do its work.

import { mkdir, open, readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Child, Children } from './child.js';
import { onFile, onNbd } from './fio.js';
import { freePorts, untilControlServes, untilNbdServes } from './readiness.js';

const LONGHORN = fileURLToPath(new URL('../../bin/longhorn', import.meta.url));
const VOLUME = 'bench';
/** Control, data, sync agent and ten for file transfers. */
const PORTS_PER_REPLICA = 13;
const BYTES_PER_BLOCK = 512;

export interface ServerProcess {
  readonly name: string;
  readonly pid: number;
  readonly startMs: number;
}

export interface Target {
  readonly name: string;
  /** fio's arguments for this place; for servers, valid also before they start. */
  readonly place: readonly string[];
  /** Files with the data, the same size each; none when another target makes them. */
  dataFiles(): Promise<string[]>;
  start(signal: AbortSignal): Promise<void>;
  stop(): Promise<void>;
  /** Empty unless started. */
  readonly processes: readonly ServerProcess[];
}

export interface TargetOptions {
  readonly directory: string;
  readonly sizeBytes: number;
  readonly children: Children;
  readonly dataProtocol: string;
}

/** An engine and its replicas, all processes of their own, NBD on a unix socket. */
class LonghornTarget implements Target {
  readonly name: string;
  readonly place: readonly string[];
  processes: ServerProcess[] = [];
  private readonly options: TargetOptions;
  private readonly socketPath: string;
  private readonly replicaDirectories: readonly string[];
  private readonly ports: number[] = [];
  /** In the order in which they started. */
  private started: Child[] = [];

  constructor(replicas: number, options: TargetOptions) {
    this.name = replicas === 1 ? '1 replica' : `${replicas} replicas`;
    this.options = options;
    this.socketPath = this.path('volume.sock');
    this.place = onNbd(this.socketPath, VOLUME);
    this.replicaDirectories = Array.from({ length: replicas }, (_, i) =>
      this.path(`replica-${i + 1}`),
    );
  }

  async dataFiles(): Promise<string[]> {
    const heads = this.replicaDirectories.map(async (directory) => {
      const head = (await readdir(directory)).find((name) => /^volume-head-\d+\.img$/.test(name));
      return join(directory, head ?? 'volume-head');
    });
    return Promise.all(heads);
  }

  /** One replica after the other, so that each start is measured alone; then the engine. */
  async start(signal: AbortSignal): Promise<void> {
    await mkdir(this.path(''), { recursive: true });
    for (const index of this.replicaDirectories.keys()) await this.startReplica(index, signal);
    const { dataProtocol } = this.options;
    const size = String(this.options.sizeBytes);
    const args = ['engine', VOLUME, '--size', size, '--current-size', size, '--disableRevCounter'];
    args.push('--frontend', 'nbd', '--nbd-listen', `unix://${this.socketPath}`);
    args.push('--runtime-dir', this.path(''), '--listen', '127.0.0.1:0');
    args.push('--data-server-protocol', dataProtocol);
    for (const port of this.ports) args.push('--replica', `tcp://127.0.0.1:${port}`);
    await this.launch('engine', args, (child) => untilNbdServes(child, this.socketPath, signal));
  }

  /** The engine first, so that it closes its replicas. */
  async stop(): Promise<void> {
    this.processes = [];
    for (const child of this.started.splice(0).reverse()) await this.options.children.stop(child);
  }

  private async startReplica(index: number, signal: AbortSignal): Promise<void> {
    const port = this.ports[index] ?? (await freePorts(PORTS_PER_REPLICA));
    this.ports[index] = port;
    const directory = this.replicaDirectories[index] as string;
    const args = ['--volume-name', VOLUME, 'replica', directory, '--disableRevCounter'];
    args.push('--size', String(this.options.sizeBytes), '--listen', `127.0.0.1:${port}`);
    args.push('--data-server-protocol', this.options.dataProtocol);
    await this.launch(`replica ${index + 1}`, args, (child) =>
      untilControlServes(child, port, signal),
    );
  }

  private async launch(
    name: string,
    args: readonly string[],
    untilServes: (child: Child) => Promise<number>,
  ): Promise<void> {
    const log = this.path(`${name.replace(' ', '-')}.log`);
    const child = this.options.children.start(name, LONGHORN, args, log);
    this.started.push(child);
    const startMs = await untilServes(child);
    this.processes.push({ name, pid: child.pid, startMs });
  }

  private path(name: string): string {
    return join(this.options.directory, this.name.replace(' ', '-'), name);
  }
}

class QemuNbdTarget implements Target {
  readonly name = 'qemu-nbd';
  readonly place: readonly string[];
  processes: ServerProcess[] = [];
  private readonly options: TargetOptions;
  private readonly image: string;
  private readonly socketPath: string;
  private child: Child | null = null;

  constructor(image: string, options: TargetOptions) {
    this.options = options;
    this.image = image;
    this.socketPath = join(options.directory, 'qemu-nbd.sock');
    this.place = onNbd(this.socketPath, '');
  }

  async dataFiles(): Promise<string[]> {
    return [this.image];
  }

  /** The image starts sparse, as a replica's head does. */
  async start(signal: AbortSignal): Promise<void> {
    const file = await open(this.image, 'a');
    await file.truncate(this.options.sizeBytes);
    await file.close();
    const args = ['--cache=none', '--aio=io_uring', '--persistent', '--shared=8', '--format=raw'];
    args.push(`--socket=${this.socketPath}`, this.image);
    const log = join(this.options.directory, 'qemu-nbd.log');
    const child = this.options.children.start(this.name, 'qemu-nbd', args, log);
    this.child = child;
    const startMs = await untilNbdServes(child, this.socketPath, signal);
    this.processes = [{ name: this.name, pid: child.pid, startMs }];
  }

  async stop(): Promise<void> {
    this.processes = [];
    if (this.child !== null) await this.options.children.stop(this.child);
    this.child = null;
  }
}

/** The very file that qemu-nbd serves: two files would differ for reasons of their own. */
class RawTarget implements Target {
  readonly name = 'raw file';
  readonly place: readonly string[];
  readonly processes = [];

  constructor(image: string) {
    this.place = onFile(image);
  }

  async dataFiles(): Promise<string[]> {
    return [];
  }

  async start(): Promise<void> {}
  async stop(): Promise<void> {}
}

export const TARGET_NAMES = ['1 replica', '3 replicas', 'qemu-nbd', 'raw file'] as const;
/** Copies of the data that all targets together keep. */
export const DATA_COPIES = 5;

export function createTargets(options: TargetOptions): Target[] {
  const image = join(options.directory, 'raw.img');
  return [
    new LonghornTarget(1, options),
    new LonghornTarget(3, options),
    new QemuNbdTarget(image, options),
    new RawTarget(image),
  ];
}

/** @throws when a part of the file was never written: reading a hole costs no disk. */
export async function assertFullyWritten(path: string, sizeBytes: number): Promise<void> {
  const { size, blocks } = await stat(path);
  if (size >= sizeBytes && blocks * BYTES_PER_BLOCK >= sizeBytes) return;
  throw new Error(`${path} is not fully written: ${blocks * BYTES_PER_BLOCK} of ${sizeBytes} B`);
}

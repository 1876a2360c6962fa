// Replicas and an engine as real processes on free ports in a temporary directory. Every wait is
// for an event a process logs or for its end; stop() leaves no process, mount or file behind.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const PROGRAM = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
/** Ports of one replica: control, data, sync agent, ten receivers. */
const REPLICA_PORTS = 13;
/** Below the range that the system gives to outgoing connections. */
const FIRST_PORT = 11_000;
const LAST_PORT = 30_000;

export interface LogLine {
  readonly event: string;
  readonly level: string;
  readonly [field: string]: unknown;
}

export interface Ending {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** One daemon: its log as objects, events to wait for, and its end. */
export class Daemon {
  readonly process: ChildProcess;
  readonly log: LogLine[] = [];
  /** Lines on stderr that are no log, for example commander's own errors. */
  readonly otherLines: string[] = [];
  readonly ended: Promise<Ending>;
  private ending: Ending | null = null;
  private wake: () => void = () => undefined;
  private changed: Promise<void> = Promise.resolve();

  constructor(args: readonly string[]) {
    this.arm();
    this.process = spawn(process.execPath, [PROGRAM, ...args], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    const lines = createInterface({ input: this.process.stderr as NodeJS.ReadableStream });
    lines.on('line', (line) => this.take(line));
    // 'close' of stderr can be later than the end: a replica's sync agent shares it.
    this.ended = once(this.process, 'exit').then(([code, signal]) => {
      this.ending = { code, signal };
      // Lines written just before the end are still in the pipe: give the event loop a turn.
      setImmediate(() => this.notify());
      return this.ending;
    });
  }

  get pid(): number {
    return this.process.pid as number;
  }

  get hasEnded(): boolean {
    return this.ending !== null;
  }

  eventsOf(event: string): LogLine[] {
    return this.log.filter((line) => line.event === event);
  }

  /** The first line of this event after `seen` of them. @throws when the process ends first. */
  async event(event: string, seen = 0): Promise<LogLine> {
    for (;;) {
      const { changed } = this;
      const found = this.eventsOf(event)[seen];
      if (found !== undefined) return found;
      if (this.hasEnded) throw new Error(`no ${event} before the end:\n${this.text()}`);
      await changed;
    }
  }

  kill(signal: NodeJS.Signals): void {
    this.process.kill(signal);
  }

  /** Signals and waits for the end. */
  async end(signal: NodeJS.Signals = 'SIGTERM'): Promise<Ending> {
    if (!this.hasEnded) this.kill(signal);
    return this.ended;
  }

  /** Everything on stderr, for messages of failed tests. */
  text(): string {
    return [...this.log.map((line) => JSON.stringify(line)), ...this.otherLines].join('\n');
  }

  private take(line: string): void {
    try {
      this.log.push(JSON.parse(line) as LogLine);
    } catch {
      this.otherLines.push(line);
    }
    this.notify();
  }

  private notify(): void {
    const { wake } = this;
    this.arm();
    wake();
  }

  private arm(): void {
    this.changed = new Promise((resolve) => {
      this.wake = resolve;
    });
  }
}

/** A replica's place: its directory and ports stay the same when its process starts again. */
export class ReplicaSlot {
  readonly directory: string;
  readonly port: number;
  daemon: Daemon | null = null;

  constructor(directory: string, port: number) {
    this.directory = directory;
    this.port = port;
  }

  /** As an engine names it. */
  get address(): string {
    return `tcp://127.0.0.1:${this.port}`;
  }
}

export interface StackOptions {
  /** Default 'vol'. Its replicas and its engine are started with it. */
  readonly volumeName?: string;
  /** Text as on the command line. */
  readonly size: string;
  readonly replicaFlags?: readonly string[];
  readonly engineFlags?: readonly string[];
  /** Replicas count their writes; they do not by default. */
  readonly keepsRevisionCounter?: boolean;
  /** Where the stack's directory is made; default the temporary directory. */
  readonly parent?: string;
}

export class ProcessStack {
  readonly directory: string;
  readonly volumeName: string;
  readonly size: string;
  readonly replicas: ReplicaSlot[] = [];
  engine: Daemon | null = null;
  enginePort = 0;
  private readonly options: StackOptions;
  private readonly daemons: Daemon[] = [];

  private constructor(directory: string, options: StackOptions) {
    this.directory = directory;
    this.options = options;
    this.volumeName = options.volumeName ?? 'vol';
    this.size = options.size;
  }

  /** An empty stack in a new directory. Pass stop() to t.teardown(). */
  static async create(options: StackOptions): Promise<ProcessStack> {
    return new ProcessStack(
      await mkdtemp(join(options.parent ?? tmpdir(), 'longhorn-stack-')),
      options,
    );
  }

  get nbdSocket(): string {
    return join(this.directory, 'nbd.sock');
  }

  get nbdUri(): string {
    return `nbd+unix:///${this.volumeName}?socket=${this.nbdSocket}`;
  }

  /** A process of this stack with any arguments, global flags included. */
  daemon(args: readonly string[]): Daemon {
    const daemon = new Daemon(args);
    this.daemons.push(daemon);
    return daemon;
  }

  /** A place for a replica, with its own ports; nothing is started. */
  async addSlot(
    directory = join(this.directory, `r${this.replicas.length + 1}`),
  ): Promise<ReplicaSlot> {
    const slot = new ReplicaSlot(directory, await freePorts(REPLICA_PORTS));
    this.replicas.push(slot);
    return slot;
  }

  /** Starts the replica process of a slot, which may have run before; does not wait. */
  launchReplica(slot: ReplicaSlot, flags: readonly string[] = []): Daemon {
    const listen = `127.0.0.1:${slot.port}`;
    const own = ['replica', slot.directory, '--size', this.size, '--listen', listen];
    const all = [...own, ...this.counterFlags, ...(this.options.replicaFlags ?? []), ...flags];
    slot.daemon = this.daemon(['--volume-name', this.volumeName, ...all]);
    return slot.daemon;
  }

  async startReplica(slot: ReplicaSlot, flags: readonly string[] = []): Promise<Daemon> {
    const daemon = this.launchReplica(slot, flags);
    await daemon.event('replica.serving');
    return daemon;
  }

  async startReplicas(count: number): Promise<void> {
    for (let i = 0; i < count; i++) await this.addSlot();
    await Promise.all(this.replicas.map((slot) => this.startReplica(slot)));
  }

  /** Starts an engine over these replicas (default: all slots) with NBD on nbdSocket; no wait. */
  launchEngine(
    replicas: readonly ReplicaSlot[] = this.replicas,
    flags: readonly string[] = [],
  ): Daemon {
    const addresses = replicas.flatMap(({ address }) => ['--replica', address]);
    this.engine = this.daemon([
      'engine',
      this.volumeName,
      ...['--size', this.size, '--current-size', this.size],
      ...['--frontend', 'nbd'],
      ...(flags.includes('--nbd-listen') ? [] : ['--nbd-listen', `unix://${this.nbdSocket}`]),
      ...['--runtime-dir', this.directory, '--listen', '127.0.0.1:0', ...this.counterFlags],
      ...(this.options.engineFlags ?? []),
      ...flags,
      ...addresses,
    ]);
    return this.engine;
  }

  async startEngine(
    replicas: readonly ReplicaSlot[] = this.replicas,
    flags: readonly string[] = [],
  ): Promise<Daemon> {
    const daemon = this.launchEngine(replicas, flags);
    const { port } = await daemon.event('engine.serving');
    this.enginePort = Number(port);
    return daemon;
  }

  private get counterFlags(): string[] {
    return this.options.keepsRevisionCounter === true ? [] : ['--disableRevCounter'];
  }

  /** Kills what still runs; SIGKILL also ends stopped processes. */
  async kill(): Promise<void> {
    await Promise.all(this.daemons.map((daemon) => daemon.end('SIGKILL')));
  }

  /** Kills what still runs and removes the directory. */
  async stop(): Promise<void> {
    await this.kill();
    await rm(this.directory, { recursive: true, force: true });
  }
}

/** First of `count` neighbouring ports that nobody listens on. */
export async function freePorts(count: number): Promise<number> {
  const blocks = Math.floor((LAST_PORT - FIRST_PORT) / count);
  for (let attempt = 0; attempt < 100; attempt++) {
    const first = FIRST_PORT + Math.floor(Math.random() * blocks) * count;
    const ports = Array.from({ length: count }, (_, i) => first + i);
    const free = await Promise.all(ports.map(isFree));
    if (free.every(Boolean)) return first;
  }
  throw new Error(`no ${count} neighbouring free ports`);
}

async function isFree(port: number): Promise<boolean> {
  const server = createServer();
  try {
    server.listen(port, '127.0.0.1');
    await once(server, 'listening');
    return true;
  } catch {
    return false;
  } finally {
    server.close();
  }
}

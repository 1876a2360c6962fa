// A volume of three real replica processes and an engine that are killed and started again, and a
// client whose ledger says what must still be there. Restarting is what an operator (or Longhorn's
// manager) would do: start the processes, start the engine with every replica, add what it rejected.

import { createNativeDisk, createSlab } from '../../src/disk/native-disk.js';
import { realClock } from '../../src/core/clock-real.js';
import { silentLogger } from '../../src/core/log.js';
import { MIB } from '../../src/core/units.js';
import { ImageChain } from '../../src/image/chain.js';
import { CliWorker, type CliResult } from '../support/cli.js';
import { readAll } from '../support/image-chains.js';
import { ProcessStack, type ReplicaSlot, type StackOptions } from '../support/process-stack.js';
import { BLOCK_BYTES, Ledger, type Value, valueAt } from './ledger.js';
import { judgeContent, Load } from './load.js';
import { VolumeClient } from './volume-client.js';

const DEPTH = 16;

export interface CrashStackOptions extends Partial<StackOptions> {
  readonly sizeMib: number;
  readonly random: () => number;
  readonly position?: () => number;
}

export class CrashStack {
  readonly stack: ProcessStack;
  readonly ledger: Ledger;
  /** What was found wrong, in words. */
  readonly complaints: string[] = [];
  /** What was done, for messages of failed tests. */
  readonly story: string[] = [];
  load: Load | null = null;
  private readonly random: () => number;
  private readonly worker = new CliWorker();
  private client: VolumeClient | null = null;

  private constructor(stack: ProcessStack, options: CrashStackOptions) {
    this.stack = stack;
    this.random = options.random;
    this.ledger = new Ledger(options.sizeMib * MIB, options.position);
  }

  /** Nothing runs yet. Pass end() to t.teardown(). */
  static async create(options: CrashStackOptions): Promise<CrashStack> {
    const stack = await ProcessStack.create({ size: `${options.sizeMib}m`, ...options });
    return new CrashStack(stack, options);
  }

  get slots(): readonly ReplicaSlot[] {
    return this.stack.replicas;
  }

  note(text: string): void {
    this.story.push(text);
  }

  /** A command of the user to the engine. @throws when it fails. */
  async command(...args: string[]): Promise<CliResult> {
    const result = await this.attempt(...args);
    if (result.code === 0) return result;
    throw new Error(`${args.join(' ')}: status ${result.code}: ${result.stderr}`);
  }

  attempt(...args: string[]): Promise<CliResult> {
    return this.worker.run('--url', `http://127.0.0.1:${this.stack.enginePort}`, ...args);
  }

  async startEngine(slots: readonly ReplicaSlot[] = this.slots): Promise<void> {
    await this.stack.startEngine(slots);
    await this.attach();
  }

  /** Connects the client; what it does not know, it reads several times: no value may change. */
  async attach(): Promise<void> {
    this.client?.close();
    this.client = await VolumeClient.connect(this.stack.nbdSocket, this.stack.volumeName);
    const uncertain = this.ledger.uncertain();
    if (uncertain.length > 0) this.note(`${uncertain.length} blocks were in flight`);
    for (let pass = 0; pass < 6; pass++) {
      for (const block of uncertain) {
        const content = await this.attached.read(block * BLOCK_BYTES, BLOCK_BYTES);
        this.complain(judgeContent(this.ledger, block, content), `pass ${pass}`);
      }
    }
  }

  get attached(): VolumeClient {
    if (this.client === null) throw new Error('no client is attached');
    return this.client;
  }

  startLoad(depth = DEPTH, blockCount?: number): Load {
    const { ledger, random } = this;
    this.load = new Load({
      client: this.attached,
      ledger,
      random,
      depth,
      ...(blockCount === undefined ? {} : { blockCount }),
    });
    return this.load;
  }

  async stopLoad(): Promise<void> {
    const { load } = this;
    if (load === null) return;
    await load.stop();
    this.complain(load.complaints, 'load');
    this.load = null;
  }

  async killEngine(): Promise<void> {
    this.note('kill engine');
    await this.stack.engine?.end('SIGKILL');
    await this.stopLoad();
  }

  async kill(slot: ReplicaSlot): Promise<void> {
    this.note(`kill ${this.nameOf(slot)}`);
    await slot.daemon?.end('SIGKILL');
  }

  async restart(slot: ReplicaSlot): Promise<void> {
    if (slot.daemon?.hasEnded === false) return;
    this.note(`start ${this.nameOf(slot)}`);
    await this.stack.startReplica(slot);
  }

  /** Address → mode, as the engine says. */
  async modes(): Promise<Map<string, string>> {
    const { stdout } = await this.command('ls', '-o', 'json');
    const list = JSON.parse(stdout) as { address: string; mode: string }[];
    return new Map(list.map(({ address, mode }) => [address, mode]));
  }

  /** Starts replica processes that ended and brings back every one that is not RW. */
  async heal(): Promise<void> {
    for (const slot of this.slots) await this.restart(slot);
    const modes = await this.modes();
    for (const slot of this.slots) {
      const mode = modes.get(slot.address);
      if (mode === 'RW' && !this.wasLost(slot)) continue;
      this.note(`rebuild ${this.nameOf(slot)}, which is ${mode ?? 'not listed'}`);
      if (mode !== undefined) await this.command('rm-replica', slot.address);
      const size = `${this.stack.size}`;
      await this.command('add', '--size', size, '--current-size', size, slot.address);
    }
    const after = [...(await this.modes()).values()];
    if (after.length !== this.slots.length || after.some((mode) => mode !== 'RW')) {
      this.complaints.push(`after healing the modes are ${after.join(' ')}`);
    }
  }

  /** Ends everything in order and compares every directory with the ledger and with each other. */
  async finish(): Promise<void> {
    await this.stopLoad();
    const content = await this.readThroughEngine();
    this.complain(judgeContent(this.ledger, 0, content), 'last read');
    this.client?.close();
    await this.stack.engine?.end();
    for (const slot of this.slots) {
      await slot.daemon?.end();
      const own = await readDirectory(slot.directory);
      if (own.equals(content)) continue;
      const blocks = differing(own, content);
      this.complaints.push(`${this.nameOf(slot)} differs in ${blocks.length}: ${blocks[0]}`);
    }
  }

  async readThroughEngine(): Promise<Buffer> {
    const parts: Buffer[] = [];
    for (let at = 0; at < this.ledger.blockCount * BLOCK_BYTES; at += MIB) {
      parts.push(await this.attached.read(at, MIB));
    }
    return Buffer.concat(parts);
  }

  /** What each block holds as far as a quiet client knows. @throws when something is in doubt. */
  knownValues(): Value[] {
    return Array.from({ length: this.ledger.blockCount }, (_, block) => {
      const value = this.ledger.known(block);
      if (value === null) throw new Error(`block ${block} is in doubt`);
      return value;
    });
  }

  nameOf(slot: ReplicaSlot): string {
    return `r${this.slots.indexOf(slot) + 1}`;
  }

  /** Complaints, the story and the logs of all processes. */
  report(): string {
    const logs = this.slots.map((slot) => `${this.nameOf(slot)}:\n${slot.daemon?.text()}`);
    const engine = this.stack.engine?.text() ?? '';
    return [...this.complaints, ...this.story, ...logs, `engine:\n${engine}`].join('\n');
  }

  async end(): Promise<void> {
    this.client?.close();
    await this.stopLoad();
    this.worker.stop();
    await this.stack.stop();
  }

  complain(complaints: readonly string[], where: string): void {
    for (const complaint of complaints.slice(0, 20)) {
      this.note(`COMPLAINT ${where}: ${complaint}`);
      this.complaints.push(`${where}: ${complaint}`);
    }
  }

  /** A replica restarted so quickly that its loss may not have been noticed yet. */
  private wasLost(slot: ReplicaSlot): boolean {
    const lost = this.stack.engine?.eventsOf('replica.mode.changed') ?? [];
    const last = lost.filter((line) => line['replica'] === slot.address).at(-1);
    return last?.['to'] === 'ERR';
  }
}

/** The content of a replica that no process serves. Writes nothing. */
export async function readDirectory(directory: string, headDiskName?: string): Promise<Buffer> {
  const disk = createNativeDisk({ slab: createSlab(MIB), log: silentLogger });
  try {
    const chain = await ImageChain.open(disk, directory, {
      clock: realClock,
      log: silentLogger,
      readOnly: true,
      ...(headDiskName === undefined ? {} : { headDiskName }),
    });
    const content = await readAll(disk, chain);
    await chain.close();
    return content;
  } finally {
    await disk.shutdown();
  }
}

function differing(one: Buffer, other: Buffer): string[] {
  const found: string[] = [];
  for (let at = 0; at < Math.max(one.length, other.length); at += BLOCK_BYTES) {
    const [a, b] = [one, other].map((content) => content.subarray(at, at + BLOCK_BYTES));
    if (a?.equals(b as Buffer) === true) continue;
    const block = at / BLOCK_BYTES;
    const [x, y] = [a, b].map((content) => valueAt(block, content as Buffer));
    found.push(`block ${block} holds ${x}, the volume ${y}`);
  }
  return found;
}

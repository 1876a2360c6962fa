// One simulated world: machines, network, one volume, its clients and its model. It holds things
// together and says what is true; who acts is in manager.ts, faults.ts, workload.ts and admin.ts.

import { createLogger, type Logger, silentLogger } from '../../src/core/log.js';
import { SECTOR_BYTES } from '../../src/core/units.js';
import { Checks } from './checks.js';
import { Client } from './client.js';
import { EngineHost } from './engine-host.js';
import type { Machinery } from './machinery.js';
import { CELL_BYTES, Model } from './model.js';
import { Ports, SimNetwork } from './network.js';
import { type Plan, planOf } from './plan.js';
import { ReplicaNode } from './replica-node.js';
import { Rng } from './rng.js';
import { SimRpc } from './rpc.js';
import { Scheduler, SimProcess } from './scheduler.js';
import { Trace } from './trace.js';
import type { DataListener } from './transport.js';

export class Violation extends Error {
  readonly promise: string;

  constructor(promise: string, text: string) {
    super(`${promise}: ${text}`);
    this.promise = promise;
  }
}

export interface Serving {
  readonly host: EngineHost;
  readonly client: Client;
}

export class World {
  readonly seed: number;
  readonly rng: Rng;
  readonly plan: Plan;
  readonly scheduler: Scheduler;
  readonly trace: Trace;
  readonly network: SimNetwork;
  readonly rpc: SimRpc;
  readonly nodes: ReplicaNode[];
  readonly model: Model;
  readonly checks: Checks;
  /** Who acts from outside; never dies. */
  readonly outside: SimProcess;
  sizeBytes: number;
  serving: Serving | null = null;
  /** Engines that a newer one has replaced, still alive. */
  readonly leftBehind: Serving[] = [];
  /**
   * Nodes that hold everything that was acknowledged: whoever was RW at the last acknowledgement, and
   * whoever has become RW since.
   */
  trueMembers: Set<string>;
  /** A start is going on: whom it depends on is spared. */
  isStarting = false;
  hasStartedOnce = false;
  /** Called when the next change of a client is on its way. */
  private whenChanging: (() => void)[] = [];
  /** Told of each engine that begins to serve. */
  whenStarted: (client: Client) => void = () => undefined;
  /** No new requests: somebody waits until none is in flight. */
  isQuiet = false;
  /** No more faults: everything must heal. */
  isHealing = false;
  opsDone = 0;
  opsAcked = 0;
  violation: Violation | null = null;
  private readonly machinery: Machinery;
  private readonly dataPorts = new Ports<DataListener>();
  private readonly hosts: EngineHost[] = [];
  private stamps = 0;

  constructor(seed: number, keepsTrace: boolean) {
    this.seed = seed;
    this.rng = new Rng(seed);
    this.plan = planOf(this.rng.fork());
    this.scheduler = new Scheduler(this.rng.fork());
    this.trace = new Trace(() => this.scheduler.nowUs, keepsTrace);
    this.scheduler.trace = this.trace;
    const { latencyUs, jitterUs } = this.plan;
    this.network = new SimNetwork(this.scheduler, this.rng.fork(), { latencyUs, jitterUs });
    this.rpc = new SimRpc(this.network, (error) => this.failed(error));
    this.outside = new SimProcess(this.scheduler, this.rng.fork(), 'outside', 'outside');
    this.machinery = {
      scheduler: this.scheduler,
      rng: this.rng.fork(),
      network: this.network,
      rpc: this.rpc,
      hasRevisionCounter: this.plan.hasRevisionCounter,
      logOf: (who) => this.logOf(who),
      agentOf: (host) => this.nodes.find((node) => node.host === host)?.agent ?? null,
    };
    this.nodes = Array.from({ length: this.plan.nodeCount }, (_, i) => {
      return new ReplicaNode(`r${i}`, this.machinery, this.dataPorts);
    });
    this.sizeBytes = this.plan.sectorCount * SECTOR_BYTES;
    this.model = new Model(this.sizeBytes / CELL_BYTES);
    this.checks = new Checks(this);
    this.trueMembers = new Set(this.nodes.map(({ host }) => host));
  }

  nextStamp(): number {
    return ++this.stamps;
  }

  nodeAt(address: string): ReplicaNode {
    const node = this.nodes.find((candidate) => candidate.address === address);
    if (node === undefined) throw new Error(`no node has address ${address}`);
    return node;
  }

  newEngineHost(): EngineHost {
    const host = new EngineHost(`e${this.hosts.length}`, this.machinery, this.dataPorts);
    this.hosts.push(host);
    return host;
  }

  clientOf(host: EngineHost): Client {
    return new Client(this, host);
  }

  /** Resolves when the next change of a client is on its way. */
  nextChange(): Promise<void> {
    return new Promise((resolve) => this.whenChanging.push(resolve));
  }

  changeSent(): void {
    for (const resolve of this.whenChanging.splice(0)) resolve();
  }

  /** Call when membership may have changed, and before anything dies. */
  lookAround(): void {
    for (const host of this.readableNow()) this.trueMembers.add(host);
    for (const { host, client } of this.leftBehind) {
      if (client.isFenced || !host.process.isAlive) continue;
      // Nothing was acknowledged since, as far as it counts.
      for (const node of this.checks.readable(host.engine)) this.trueMembers.add(node.host);
    }
  }

  /** Something was acknowledged by the serving engine: who is not RW does not have it. */
  acknowledged(): void {
    const readable = this.readableNow();
    if (readable.length > 0) this.trueMembers = new Set(readable);
  }

  private readableNow(): string[] {
    const { serving } = this;
    if (serving === null || !serving.host.process.isAlive) return [];
    return this.checks.readable(serving.host.engine).map(({ host }) => host);
  }

  note(text: string): void {
    this.trace.note(text);
  }

  violated(promise: string, text: string): void {
    this.violation ??= new Violation(promise, text);
    this.trace.note(`VIOLATED ${promise}: ${text}`);
  }

  /** Code threw what it must not. */
  failed(error: unknown): void {
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    this.violated('bug', text);
  }

  dispose(): void {
    for (const host of this.hosts) host.kill();
    for (const node of this.nodes) node.dispose();
  }

  private logOf(who: string): Logger {
    if (!this.trace.isKept) return silentLogger;
    return createLogger({
      clock: this.outside.clock,
      level: 'info',
      write: (line) => this.trace.lines?.push(`${' '.repeat(14)}${who} ${line.slice(40)}`),
    });
  }
}

// The orchestrator around a volume, as Longhorn's manager is: starts processes again, starts an engine
// when there is none, takes failed replicas out and adds them anew. It passes all replicas it knows
// and relies on the engine to trust only those that are in step.
//
// A start at which no replica that is in step can answer cannot be told from a good one by anybody,
// so it does not begin one, and nothing befalls those replicas while it runs.

import { addReplica } from '../../src/client/rebuild.js';
import { purgeSnapshots } from '../../src/client/snapshots.js';
import { toStorageError } from '../../src/core/errors.js';
import { SimConnections } from './connections.js';
import type { Client } from './client.js';
import type { EngineHost } from './engine-host.js';
import type { ReplicaNode } from './replica-node.js';
import type { World } from './world.js';

const REBUILD_FAILURES_MAX = 4;

export class Manager {
  /** Nodes that are not to be added now. */
  readonly keptOut = new Set<string>();
  isStopped = false;
  wipes = 0;
  private readonly world: World;
  private readonly failures = new Map<string, number>();
  private readonly notBeforeUs = new Map<string, number>();
  /**
   * Being added. Not while the volume is shut down: adding a replica to a volume that has none starts
   * the volume with it alone, stale or not.
   */
  adding: string | null = null;
  isShuttingDown = false;

  constructor(world: World) {
    this.world = world;
  }

  /** Starts everything once, then keeps it going until stopped. */
  async run(): Promise<void> {
    const { world } = this;
    await Promise.all(world.nodes.map((node) => node.start(world.sizeBytes)));
    while (!this.isStopped) {
      world.lookAround();
      for (const node of world.nodes) this.keepRunning(node);
      if (!this.isServing()) await this.startEngine();
      else this.keepReplicas();
      await world.outside.sleep(this.pauseUs());
    }
  }

  private pauseUs(): number {
    const { world } = this;
    return world.rng.between(20_000, world.isHealing ? 300_000 : 2_000_000);
  }

  isServing(): boolean {
    const { serving } = this.world;
    if (serving === null || !serving.host.process.isAlive) return false;
    const { engine } = serving.host;
    return !engine.isFenced && this.world.checks.readable(engine).length > 0;
  }

  private keepRunning(node: ReplicaNode): void {
    const { world } = this;
    if (node.process !== null || node.isDown) return;
    const readyUs = this.notBeforeUs.get(node.host) ?? 0;
    if (!world.isHealing && (world.scheduler.nowUs < readyUs || world.rng.chance(0.5))) return;
    world.note(`start ${node.host}`);
    node.start(world.sizeBytes).catch((error: unknown) => {
      // A disk that fails while the process starts: it ends and is started again.
      world.note(`${node.host} did not start: ${toStorageError(error).code}`);
      node.kill();
    });
  }

  // ---- The engine ----

  private async startEngine(): Promise<void> {
    const { world } = this;
    this.endServing();
    world.isStarting = true;
    const host = world.newEngineHost();
    try {
      if (!this.canStart(host.host)) {
        host.kill();
        return;
      }
      await this.startOn(host);
    } finally {
      world.isStarting = false;
    }
  }

  /** An engine that serves no more is ended, as its supervisor would. */
  private endServing(): void {
    const { world } = this;
    const { serving } = world;
    if (serving === null) return;
    world.lookAround();
    serving.client.isCurrent = false;
    if (serving.host.process.isAlive && !world.leftBehind.includes(serving)) {
      world.note(`end ${serving.host.host}`);
      serving.host.kill();
    }
    world.serving = null;
  }

  canStart(engineHost: string): boolean {
    const { world } = this;
    return world.nodes.some(
      ({ host, isRunning }) =>
        isRunning && world.trueMembers.has(host) && !world.network.isCut(host, engineHost),
    );
  }

  private async startOn(host: EngineHost): Promise<void> {
    const { world } = this;
    const addresses = world.nodes.map(({ address }) => address);
    world.note(`start ${host.host} (in step: ${[...world.trueMembers].join(' ')})`);
    const loss = { ...world.rpc.faults };
    Object.assign(world.rpc.faults, { requestLoss: 0, answerLoss: 0 });
    const client = world.clientOf(host);
    const { sizeBytes } = world;
    try {
      await Promise.race([
        host.engine.start({ addresses, sizeBytes, currentSizeBytes: sizeBytes }),
        ended(host),
      ]);
    } catch (error) {
      const failure = toStorageError(error);
      world.note(
        `${host.host} did not start: ${failure.message} ${JSON.stringify(failure.details)}`,
      );
      this.startFailed();
      host.kill();
      return;
    } finally {
      Object.assign(world.rpc.faults, loss);
    }
    this.started(host, client);
  }

  private started(host: EngineHost, client: Client): void {
    const { world } = this;
    const readable = world.checks.readable(host.engine);
    world.note(`started ${host.host} with ${readable.map((node) => node.host).join(' ')}`);
    for (const old of world.leftBehind) old.client.volumeMovedOn();
    if (readable.some((node) => node.hasLostData)) {
      world.note('what was not flushed may be lost');
      world.model.powerLost();
    }
    for (const node of world.nodes) {
      // What it lost is kept by those that serve now, or has become what they have.
      if (node.hasLostData && !readable.includes(node)) world.trueMembers.delete(node.host);
      node.hasLostData = false;
    }
    world.serving = { host, client };
    if (readable.length > 0) world.checks.started(host.engine);
    world.hasStartedOnce = true;
    if (!world.isHealing) world.whenStarted(client);
  }

  /** A replica that an engine left open without ever connecting to it is let go by a restart. */
  private startFailed(): void {
    const { world } = this;
    for (const node of world.nodes) {
      if (node.isRunning && (node.replica?.openSerial ?? 0) > 0 && world.rng.chance(0.3))
        node.kill();
    }
  }

  // ---- Its replicas ----

  private keepReplicas(): void {
    const { world } = this;
    const { serving } = world;
    if (serving === null || this.adding !== null || this.isShuttingDown) return;
    const { engine } = serving.host;
    const node = world.rng.shuffled(world.nodes).find((candidate) => {
      const member = engine.replicas.find(({ address }) => address === candidate.address);
      const isIn = member !== undefined && member.mode === 'RW';
      return !isIn && candidate.isRunning && !this.keptOut.has(candidate.host);
    });
    if (node === undefined) return;
    this.adding = node.host;
    void this.add(node, serving.host).finally(() => {
      this.adding = null;
    });
  }

  private async add(node: ReplicaNode, host: EngineHost): Promise<void> {
    const { world } = this;
    const { address } = node;
    const user = world.outside;
    const connections = new SimConnections(user, world.rpc, host.host);
    world.note(`add ${node.host}`);
    try {
      const failed = host.engine.replicas.find(
        (member) => member.address === address && member.mode === 'ERR',
      );
      if (failed !== undefined) {
        await connections.engine.replicaDelete({ address, instanceName: '' });
      }
      await Promise.race([
        addReplica(connections, {
          address,
          sizeBytes: world.sizeBytes,
          currentSizeBytes: world.sizeBytes,
          fastSync: true,
          isRestore: false,
          httpTimeoutSeconds: 0,
          deadlineSeconds: 600,
        }),
        ended(host),
      ]);
      world.note(`added ${node.host}`);
      node.hasLostData = false;
      this.failures.delete(node.host);
      world.lookAround();
      if (world.checks.readable(host.engine).includes(node) && !node.isDown) {
        world.checks.holdsAll(node, 'P4', 'after its rebuild');
      }
      // As Longhorn's manager does after a rebuild, so that snapshots of rebuilds do not pile up.
      if (world.rng.chance(0.5)) await purgeSnapshots(connections, true);
    } catch (error) {
      world.note(
        `adding ${node.host}, or the purge after it, failed: ${toStorageError(error).message}`,
      );
      this.addFailed(node);
    }
  }

  /** Longhorn's manager would at last delete the replica and make a new one. */
  private addFailed(node: ReplicaNode): void {
    const { world, failures } = this;
    const count = (failures.get(node.host) ?? 0) + 1;
    failures.set(node.host, count);
    world.lookAround();
    const isNeeded = world.trueMembers.has(node.host);
    if (count % 2 === 0 && node.isRunning) {
      world.note(`restart ${node.host}`);
      node.kill();
    }
    if (count < REBUILD_FAILURES_MAX || isNeeded || world.rng.chance(0.5)) return;
    world.note(`wipe ${node.host}`);
    this.wipes++;
    failures.delete(node.host);
    world.trueMembers.delete(node.host);
    node.wipe();
  }

  restLater(node: ReplicaNode, delayUs: number): void {
    this.notBeforeUs.set(node.host, this.world.scheduler.nowUs + delayUs);
  }
}

/** Rejects when the engine's process ends: nobody answers any more. */
function ended(host: EngineHost): Promise<never> {
  return new Promise((_, reject) => {
    if (!host.process.isAlive) reject(new Error('the engine has ended'));
    else host.process.whenEnded(() => reject(new Error('the engine has ended')));
  });
}

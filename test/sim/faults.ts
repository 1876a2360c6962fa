// Everything that goes wrong, drawn from the plan. It never takes away the last copy that is in step
// for good, and spares those a running start depends on.

import type { Manager } from './manager.js';
import { draw, type FaultKind } from './plan.js';
import type { ReplicaNode } from './replica-node.js';
import type { Rng } from './rng.js';
import type { World } from './world.js';

/** Clients may be at rest; then the fault comes anyway. */
const MID_CHANGE_WAIT_US = 300_000;

export class Faults {
  private readonly world: World;
  private readonly manager: Manager;
  private readonly rng: Rng;

  constructor(world: World, manager: Manager) {
    this.world = world;
    this.manager = manager;
    this.rng = world.rng.fork();
  }

  async run(): Promise<void> {
    const { world, rng } = this;
    const { faultEveryMs, rpcLoss, faults } = world.plan;
    if (faultEveryMs === 0) return;
    Object.assign(world.rpc.faults, { requestLoss: rpcLoss, answerLoss: rpcLoss });
    while (!world.isHealing) {
      await world.outside.sleep(rng.below(2 * faultEveryMs * 1000));
      if (world.isHealing || !world.hasStartedOnce) continue;
      const kind = draw(rng, faults);
      if (kind === null) continue;
      if (rng.chance(0.5)) await this.midChange();
      if (!world.isHealing) this.inject(kind);
    }
  }

  /** The worst moment for a fault: some replicas have a change, others not yet. */
  private async midChange(): Promise<void> {
    const { world, rng } = this;
    const { latencyUs, jitterUs } = world.plan;
    await Promise.race([world.nextChange(), world.outside.sleep(MID_CHANGE_WAIT_US)]);
    await world.outside.sleep(rng.below(2 * (latencyUs + jitterUs) + 100));
  }

  /** Everything that lasts ends now. */
  healAll(): void {
    const { world } = this;
    world.network.healAll();
    Object.assign(world.rpc.faults, { requestLoss: 0, answerLoss: 0 });
    for (const node of world.nodes) {
      Object.assign(node.disk.faults, { ioErrorRate: 0, noSpaceRate: 0 });
      node.disk.latencyUs = 60;
      world.network.setQuality(node.host, null);
      if (node.isDown) node.powerBack();
    }
  }

  private inject(kind: FaultKind): void {
    const { world, rng } = this;
    world.lookAround();
    const node = rng.pick(world.nodes);
    switch (kind) {
      case 'killReplica':
        return this.killReplica(node);
      case 'killEngine':
        return this.killEngine();
      case 'losePower':
        return this.losePower(node);
      case 'partition':
        return this.partition(node);
      case 'cut':
        world.note(`cut connections of ${node.host}`);
        if (!this.isNeededNow(node)) world.serving?.host.transport.cut(node.host);
        return;
      case 'slowLink':
        return this.slowLink(node);
      case 'diskError':
        return this.diskFault(node, { ioErrorRate: rng.pick([0.02, 0.3, 1]), noSpaceRate: 0 });
      case 'diskFull':
        return this.diskFault(node, { ioErrorRate: 0, noSpaceRate: rng.pick([0.1, 1]) });
      case 'slowDisk':
        node.disk.latencyUs = rng.pick([5000, 100_000]);
        world.note(`slow disk ${node.host} ${node.disk.latencyUs} us`);
        this.later(5_000_000, () => {
          node.disk.latencyUs = 60;
        });
        return;
      case 'leaveBehind':
        return this.leaveBehind();
      case 'killAll':
        if (world.isStarting) return;
        this.killEngine();
        for (const each of world.nodes) if (rng.chance(0.8)) this.killReplica(each);
        return;
      case 'losePowerAll':
        if (world.isStarting) return;
        this.killEngine();
        for (const each of world.nodes) if (rng.chance(0.8)) this.losePower(each);
    }
  }

  /** A start goes on and needs it. */
  private isNeededNow(node: ReplicaNode): boolean {
    const { world } = this;
    return world.isStarting && world.trueMembers.has(node.host);
  }

  private killReplica(node: ReplicaNode): void {
    if (this.isNeededNow(node) || node.process === null) return;
    this.world.note(`kill ${node.host}`);
    this.manager.restLater(node, this.rng.below(5_000_000));
    node.kill();
  }

  private killEngine(): void {
    const { serving } = this.world;
    if (serving === null || !serving.host.process.isAlive) return;
    this.world.note(`kill ${serving.host.host}`);
    serving.host.kill(this.rng.chance(0.6));
  }

  private losePower(node: ReplicaNode): void {
    const { world } = this;
    if (this.isNeededNow(node) || node.isDown) return;
    world.note(`power lost ${node.host}`);
    if (world.trueMembers.has(node.host)) node.hasLostData = true;
    node.losePower();
    this.later(this.rng.between(500_000, 20_000_000), () => {
      world.note(`power back ${node.host}`);
      node.powerBack();
    });
  }

  private partition(node: ReplicaNode): void {
    const { world, rng } = this;
    const { serving } = world;
    if (serving === null || this.isNeededNow(node)) return;
    const other = rng.chance(0.8) ? serving.host.host : rng.pick(world.nodes).host;
    if (other === node.host) return;
    world.note(`partition ${node.host} ${other}`);
    world.network.partition(node.host, other);
    this.later(rng.pick([300_000, 3_000_000, 15_000_000, 40_000_000]), () => {
      world.note(`heal ${node.host} ${other}`);
      world.network.heal(node.host, other);
    });
  }

  private slowLink(node: ReplicaNode): void {
    const { world, rng } = this;
    const latencyUs = rng.pick([20_000, 300_000]);
    world.note(`slow link ${node.host} ${latencyUs} us`);
    world.network.setQuality(node.host, { latencyUs, jitterUs: latencyUs });
    this.later(rng.between(1_000_000, 10_000_000), () => {
      world.network.setQuality(node.host, null);
    });
  }

  private diskFault(node: ReplicaNode, faults: { ioErrorRate: number; noSpaceRate: number }): void {
    if (this.isNeededNow(node)) return;
    this.world.note(`disk faults ${node.host} ${JSON.stringify(faults)}`);
    Object.assign(node.disk.faults, faults);
    this.later(this.rng.between(100_000, 5_000_000), () => {
      Object.assign(node.disk.faults, { ioErrorRate: 0, noSpaceRate: 0 });
    });
  }

  /** The engine is cut off from whoever looks after it, and goes on while another one starts. */
  private leaveBehind(): void {
    const { world, rng } = this;
    const { serving } = world;
    if (serving === null || world.isStarting || !serving.host.process.isAlive) return;
    world.note(`leave ${serving.host.host} behind`);
    world.leftBehind.push(serving);
    serving.client.isCurrent = false;
    world.serving = null;
    for (const node of world.nodes) {
      if (!rng.chance(0.3)) continue;
      world.network.partition(node.host, serving.host.host);
      this.later(rng.between(1_000_000, 20_000_000), () =>
        world.network.heal(node.host, serving.host.host),
      );
    }
    this.later(rng.between(5_000_000, 40_000_000), () => {
      world.note(`kill ${serving.host.host}`);
      serving.host.kill();
    });
  }

  private later(delayUs: number, run: () => void): void {
    void this.world.outside.after(delayUs, run);
  }
}

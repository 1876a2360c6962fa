// What a volume's owner does while clients work: snapshots, reverts, deletions and purges, replicas
// taken out for a while, orderly restarts, expansion. One operation at a time, by the same commands.

import { markSnapshotsRemoved, purgeSnapshots } from '../../src/client/snapshots.js';
import { removeReplica } from '../../src/client/replicas.js';
import { toStorageError } from '../../src/core/errors.js';
import { SimConnections } from './connections.js';
import type { Manager } from './manager.js';
import { type AdminKind, draw } from './plan.js';
import type { Rng } from './rng.js';
import type { Serving, World } from './world.js';

const SNAPSHOTS_MAX = 6;

export class Admin {
  private readonly world: World;
  private readonly manager: Manager;
  private readonly rng: Rng;
  private snapshotCount = 0;
  /** Names whose deletion was asked for: they may be there or not. */
  private readonly deleted = new Set<string>();

  constructor(world: World, manager: Manager) {
    this.world = world;
    this.manager = manager;
    this.rng = world.rng.fork();
  }

  async run(): Promise<void> {
    const { world, rng } = this;
    const { adminEveryMs, admin } = world.plan;
    while (!world.isHealing) {
      await world.outside.sleep(rng.below(2 * adminEveryMs * 1000));
      const { serving } = world;
      if (world.isHealing || serving === null) continue;
      const kind = draw(rng, admin);
      if (kind === null) return;
      try {
        await Promise.race([this.perform(kind, serving), ended(serving)]);
      } catch (error) {
        world.note(`${kind} failed: ${toStorageError(error).message}`);
      } finally {
        world.isQuiet = false;
      }
    }
  }

  private async perform(kind: AdminKind, serving: Serving): Promise<void> {
    switch (kind) {
      case 'snapshot':
        return this.snapshot(serving);
      case 'revert':
        return this.revert(serving);
      case 'deleteSnapshot':
        return this.deleteSnapshot(serving);
      case 'purge':
        this.world.note('purge');
        return purgeSnapshots(this.connections(serving), true);
      case 'removeReplica':
        return this.removeReplica(serving);
      case 'restart':
        return this.restart(serving);
      case 'compare':
        return this.compare(serving);
      case 'expand':
        return;
    }
  }

  private connections({ host }: Serving): SimConnections {
    return new SimConnections(this.world.outside, this.world.rpc, host.host);
  }

  private async snapshot(serving: Serving): Promise<void> {
    const { world } = this;
    if (world.model.snapshots.size >= SNAPSHOTS_MAX) return this.deleteSnapshot(serving);
    const name = `s${++this.snapshotCount}`;
    world.note(`snapshot ${name}`);
    const view = world.model.snapshotBegan();
    let wasTaken = false;
    try {
      await Promise.race([
        this.connections(serving).engine.volumeSnapshot({
          name,
          labels: {},
          freezeFilesystem: false,
        }),
        ended(serving),
      ]);
      wasTaken = serving.client.isCurrent;
      if (wasTaken) world.acknowledged();
    } finally {
      world.model.snapshotEnded(view, name, wasTaken);
      world.note(`snapshot ${name} ${wasTaken ? 'taken' : 'unknown'}`);
    }
  }

  private async quiet(serving: Serving): Promise<void> {
    this.world.isQuiet = true;
    await serving.client.idle();
  }

  /** In a quiet moment all copies are alike. */
  private async compare(serving: Serving): Promise<void> {
    const { world } = this;
    await this.quiet(serving);
    if (!serving.host.process.isAlive || !serving.client.isCurrent) return;
    world.checks.alike(serving.host.engine, 'in a quiet moment');
  }

  private async revert(serving: Serving): Promise<void> {
    const { world, rng } = this;
    const names = [...world.model.snapshots.keys()].filter((name) => !this.deleted.has(name));
    if (names.length === 0) return;
    const name = rng.pick(names);
    await this.quiet(serving);
    if (!serving.host.process.isAlive || !serving.client.isCurrent) return;
    world.note(`revert ${name}`);
    const takeBack = world.model.revertBegan(name);
    let isKnown = false;
    let wasRefused = false;
    try {
      await Promise.race([this.connections(serving).engine.volumeRevert({ name }), ended(serving)]);
      isKnown = serving.client.isCurrent;
      if (isKnown) world.acknowledged();
    } catch (error) {
      wasRefused = ['INVALID_STATE', 'BUSY'].includes(toStorageError(error).code);
      throw error;
    } finally {
      if (isKnown) world.model.reverted(name);
      else if (wasRefused) takeBack();
      world.note(`revert ${name} ${isKnown ? 'done' : wasRefused ? 'refused' : 'unknown'}`);
    }
  }

  private async deleteSnapshot(serving: Serving): Promise<void> {
    const { world, rng } = this;
    const names = [...world.model.snapshots.keys()];
    if (names.length === 0) return;
    const name = rng.pick(names);
    this.deleted.add(name);
    world.note(`delete ${name}`);
    world.model.snapshots.delete(name);
    await markSnapshotsRemoved(this.connections(serving), [name]);
  }

  private async removeReplica(serving: Serving): Promise<void> {
    const { world, rng, manager } = this;
    const { engine } = serving.host;
    const readable = world.checks.readable(engine);
    if (readable.length < 2) return;
    const node = rng.pick(readable);
    manager.keptOut.add(node.host);
    void world.outside.after(rng.below(10_000_000), () => manager.keptOut.delete(node.host));
    world.note(`remove ${node.host}`);
    await removeReplica(this.connections(serving), node.address);
    world.lookAround();
  }

  /** Orderly: the manager starts the volume again. */
  private async restart(serving: Serving): Promise<void> {
    const { world, manager } = this;
    await this.quiet(serving);
    if (manager.adding !== null) return;
    if (!serving.host.process.isAlive || !serving.client.isCurrent) return;
    world.lookAround();
    world.note(`shut down ${serving.host.host}`);
    manager.isShuttingDown = true;
    try {
      await Promise.race([serving.host.engine.shutdown(), ended(serving)]);
      world.note(`shut down ${serving.host.host} done`);
    } finally {
      manager.isShuttingDown = false;
    }
  }
}

function ended({ host }: Serving): Promise<never> {
  return new Promise((_, reject) => {
    if (!host.process.isAlive) reject(new Error('the engine has ended'));
    else host.process.whenEnded(() => reject(new Error('the engine has ended')));
  });
}

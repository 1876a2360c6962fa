// What clients do: reads and writes of any size and overlap, several in flight, flushes, FUA, trims
// and zeroes, also through an engine that was left behind.

import type { Client } from './client.js';
import type { Rng } from './rng.js';
import type { World } from './world.js';

/** Virtual time after which a seed has had its chance. */
const TIME_MAX_US = 900_000_000;
const CELLS_PER_SECTOR = 8;

export class Workload {
  private readonly world: World;
  private readonly rng: Rng;
  /** Cells where most requests go, so that they meet. */
  private readonly hotSpot: number;

  constructor(world: World) {
    this.world = world;
    this.rng = world.rng.fork();
    this.hotSpot = this.rng.below(world.model.cells.length);
  }

  async run(): Promise<void> {
    const { world, rng } = this;
    const { operations, depth, pauseRate } = world.plan;
    world.whenStarted = (client) => void this.lookTwice(client);
    while (world.opsDone < operations && world.scheduler.nowUs < TIME_MAX_US) {
      if (world.violation !== null) return;
      const client = world.serving?.client ?? null;
      const burst = rng.chance(0.2) ? depth : 1;
      for (let i = 0; i < burst && client !== null && !world.isQuiet; i++) {
        if (client.inFlightCount < depth && client === world.serving?.client) this.submit(client);
      }
      for (const { client: old, host } of world.leftBehind) {
        if (host.process.isAlive && old.inFlightCount < 4 && rng.chance(0.2)) this.submitOld(old);
      }
      const pauseUs = rng.chance(pauseRate) ? rng.below(8_000_000) : rng.below(8000);
      await world.outside.sleep(client === null ? 200_000 : pauseUs);
    }
  }

  /** Looks at the same place again and again, while copies may differ after a crash (P5). */
  async lookTwice(client: Client): Promise<void> {
    const { rng, world } = this;
    for (let place = 0; place < 3; place++) {
      const first = Math.max(
        0,
        Math.min(this.hotSpot + rng.between(-48, 32), world.model.cells.length - 16),
      );
      for (let look = 0; look < 4; look++) {
        client.read(first, 16);
        await world.outside.sleep(rng.below(2000));
      }
    }
  }

  private submit(client: Client): void {
    const { rng, world } = this;
    if (rng.chance(world.plan.flushRate)) return client.flush();
    const [firstCell, count] = this.range();
    const kind = rng.next();
    if (kind < 0.35) client.read(firstCell, count);
    else if (kind < 0.85) client.write(firstCell, count, rng.chance(0.1));
    else if (kind < 0.92) client.zero(firstCell, count, rng.chance(0.1));
    else client.trim(firstCell, count);
  }

  private submitOld(client: Client): void {
    const [firstCell, count] = this.range();
    if (this.rng.chance(0.3)) client.read(firstCell, count);
    else client.write(firstCell, count, false);
  }

  private range(): [number, number] {
    const { rng, world } = this;
    const total = world.model.cells.length;
    const isAligned = rng.chance(0.7);
    const unit = isAligned ? CELLS_PER_SECTOR : 1;
    const count = Math.min(total, unit * rng.pick([1, 1, 1, 2, 4, rng.between(1, 12)]));
    const near = this.hotSpot + rng.between(-32, 32);
    const at = rng.chance(0.6) ? near : rng.below(total);
    const first = Math.min(Math.max(0, at - (at % unit)), total - count);
    return [first - (first % unit), count];
  }
}

// One seed from the first start to the last comparison: clients, owner and faults at work; then
// everything heals, all copies come back, and each of them is held against the model.

import { Admin } from './admin.js';
import { Faults } from './faults.js';
import { Manager } from './manager.js';
import type { Mutant } from './mutants/mutant.js';
import { Workload } from './workload.js';
import { World } from './world.js';

export interface SeedResult {
  readonly seed: number;
  readonly hash: number;
  readonly violation: { readonly promise: string; readonly text: string } | null;
  readonly opsDone: number;
  readonly opsAcked: number;
  readonly events: number;
  readonly virtualMs: number;
  readonly wipes: number;
  readonly lines: readonly string[] | null;
}

/** Virtual time that healing may take. */
const HEAL_MAX_US = 3_600_000_000;
/** Far more than any seed needs: an endless loop of events is a bug. */
const EVENTS_MAX = 3_000_000;

export async function runSeed(
  seed: number,
  keepsTrace = false,
  mutant: Mutant | null = null,
): Promise<SeedResult> {
  const undo = mutant?.plant() ?? null;
  const world = new World(seed, keepsTrace);
  const onRejection = (error: unknown): void => world.failed(error);
  process.on('unhandledRejection', onRejection);
  process.on('uncaughtException', onRejection);
  const manager = new Manager(world);
  try {
    let isOver = false;
    story(world, manager).then(
      () => {
        isOver = true;
      },
      (error: unknown) => {
        world.failed(error);
        isOver = true;
      },
    );
    await world.scheduler.drive(
      () => isOver || world.violation !== null || world.scheduler.eventCount > EVENTS_MAX,
    );
    if (!isOver && world.violation === null) {
      world.violated('progress', `after ${world.scheduler.eventCount} events nothing ends`);
    }
  } catch (error) {
    world.failed(error);
  } finally {
    world.dispose();
    undo?.();
    // Rejections of this turn are reported after it.
    await new Promise((resolve) => setImmediate(resolve));
    process.off('unhandledRejection', onRejection);
    process.off('uncaughtException', onRejection);
  }
  return resultOf(world, manager);
}

function resultOf(world: World, manager: Manager): SeedResult {
  const { violation, trace, scheduler } = world;
  return {
    seed: world.seed,
    hash: trace.hash,
    violation: violation === null ? null : { promise: violation.promise, text: violation.message },
    opsDone: world.opsDone,
    opsAcked: world.opsAcked,
    events: scheduler.eventCount,
    virtualMs: Math.floor(scheduler.nowUs / 1000),
    wipes: manager.wipes,
    lines: trace.lines,
  };
}

async function story(world: World, manager: Manager): Promise<void> {
  world.note(`plan ${JSON.stringify(world.plan)}`);
  const faults = new Faults(world, manager);
  const admin = new Admin(world, manager);
  const managing = manager.run();
  const meddling = [faults.run(), admin.run()];
  await new Workload(world).run();
  world.note('heal');
  world.isHealing = true;
  faults.healAll();
  manager.keptOut.clear();
  const healUntilUs = world.scheduler.nowUs + HEAL_MAX_US;
  await Promise.all(meddling);
  world.isQuiet = true;
  while (!isHealthy(world)) {
    if (world.scheduler.nowUs > healUntilUs) {
      world.violated('progress', `not healed: ${stateOf(world)}`);
      return;
    }
    await world.outside.sleep(500_000);
  }
  manager.isStopped = true;
  await managing;
  await lastComparison(world);
}

function isHealthy(world: World): boolean {
  const { serving } = world;
  if (serving === null || !serving.host.process.isAlive) return false;
  const { engine } = serving.host;
  if (world.checks.readable(engine).length < world.nodes.length) return false;
  if (world.nodes.some(({ agent }) => agent?.isPurging !== false)) return false;
  return !engine.convergence.isRunning && serving.client.inFlightCount === 0;
}

function stateOf(world: World): string {
  const { serving } = world;
  if (serving === null) return 'no engine';
  const { engine } = serving.host;
  const modes = engine.replicas.map(({ address, mode }) => `${address} ${mode}`).join(', ');
  return `${modes}${engine.convergence.isRunning ? ', converging' : ''}, ${serving.client.inFlightCount} in flight`;
}

async function lastComparison(world: World): Promise<void> {
  const { serving, checks, model, nodes } = world;
  if (serving === null) throw new Error('healthy without an engine');
  const { client, host } = serving;
  const cellCount = model.cells.length;
  world.note('compare');
  checks.alike(host.engine, 'healed');
  for (let cell = 0; cell < cellCount; cell += 64)
    client.read(cell, Math.min(64, cellCount - cell));
  client.flush();
  await client.idle();
  await host.engine.shutdown();
  for (const node of nodes) checks.holdsAll(node, 'P1', 'alone at the end');
  checks.snapshotsAlike(nodes);
  world.note('end');
}

// The promises, checked on the copies themselves: after each answer on those that the engine counts
// on, and at the end on every copy alone.

import type { Engine } from '../../src/engine/engine.js';
import type { Member } from '../../src/engine/membership.js';
import { CELL_BYTES, describe, type Entry } from './model.js';
import type { ReplicaNode } from './replica-node.js';
import type { World } from './world.js';

export class Checks {
  private readonly world: World;

  constructor(world: World) {
    this.world = world;
  }

  /** P1: every RW replica has it; P2 for FUA: durably. */
  written(
    engine: Engine,
    firstCell: number,
    entries: readonly Entry[],
    isDurable: boolean,
    text: string,
  ): void {
    const { model } = this.world;
    for (const node of this.powered(engine)) {
      const found = this.cellsOf(node, false, firstCell, entries.length, text);
      entries.forEach((entry, i) => {
        if (!model.isNewest(firstCell + i, entry) || found[i] === entry.stamp) return;
        const why = describe(firstCell + i, found[i] as number, [entry.stamp]);
        this.world.violated('P1', `acknowledged ${text}, but on ${node.host} ${why}`);
      });
      if (isDurable) this.durable(node, firstCell, entries.length, 'FUA', text);
    }
    this.rosterKnows(engine, text);
  }

  /** P2: what was answered before the flush would survive a loss of power now. */
  flushed(engine: Engine, text: string): void {
    const { model } = this.world;
    for (const node of this.powered(engine)) {
      const inDoubt = this.doubtOn(engine, node);
      this.durable(node, 0, model.cells.length, 'flush', text, inDoubt);
    }
  }

  /**
   * Where a copy may still hold what was in flight when the engine died and nobody was told of. Reads
   * do not go there; where something acknowledged may be missing, the flush itself has to wait.
   */
  private doubtOn(engine: Engine, node: ReplicaNode): (cell: number) => boolean {
    const { convergence } = engine;
    if (!convergence.isRunning || convergence.holdsFlushes) return () => false;
    if (convergence.reference()?.address === node.address) return () => false;
    return (cell) =>
      convergence.remaining.some(
        ({ beginOffset, endOffset }) =>
          beginOffset <= cell * CELL_BYTES && cell * CELL_BYTES < endOffset,
      );
  }

  private durable(
    node: ReplicaNode,
    firstCell: number,
    count: number,
    what: string,
    text: string,
    inDoubt: (cell: number) => boolean = () => false,
  ): void {
    const { model } = this.world;
    const found = this.cellsOf(node, true, firstCell, count, text);
    for (let i = 0; i < count; i++) {
      if (inDoubt(firstCell + i)) continue;
      const allowed = model.allowedDurable(firstCell + i);
      if (allowed.includes(found[i] as number)) continue;
      const why = describe(firstCell + i, found[i] as number, allowed);
      this.world.violated(
        'P2',
        `${what} acknowledged (${text}), but durable on ${node.host} ${why}`,
      );
    }
  }

  /**
   * P3: at an acknowledgement the roster on the disk of every RW replica names nobody who is not in
   * step any more.
   */
  private rosterKnows(engine: Engine, text: string): void {
    const inStep = new Set<string>();
    for (const { mode, port } of engine.replicas) {
      if (mode !== 'ERR' && port !== null) inStep.add(port.replicaId);
    }
    for (const node of this.powered(engine)) {
      const members = node.peek.rosterMembers() ?? [];
      const stale = members.find((id) => !inStep.has(id));
      if (stale === undefined) continue;
      const who = `${stale}, which has left`;
      this.world.violated('P3', `acknowledged ${text}, but ${node.host} still trusts ${who}`);
    }
  }

  /** Every copy that an engine starts with must be able to serve what was promised. */
  started(engine: Engine): void {
    for (const node of this.readable(engine)) this.holdsAll(node, 'P3', 'trusted at the start');
  }

  /** Each cell of this copy has a value that a read may return. */
  holdsAll(node: ReplicaNode, promise: string, when: string): void {
    const { model } = this.world;
    const found = this.cellsOf(node, false, 0, model.cells.length, when);
    found.forEach((value, cell) => {
      const allowed = model.allowed(cell);
      if (allowed.includes(value)) return;
      this.world.violated(promise, `${node.host} ${when}: ${describe(cell, value, allowed)}`);
    });
  }

  /** P5: nothing is in flight and nothing is being made equal, so the RW copies are alike. */
  alike(engine: Engine, when: string): void {
    if (engine.convergence.isRunning) return;
    const [first, ...others] = this.powered(engine);
    if (first === undefined) return;
    const count = this.world.model.cells.length;
    const expected = this.cellsOf(first, false, 0, count, when);
    for (const node of others) {
      const found = this.cellsOf(node, false, 0, count, when);
      const cell = found.findIndex((value, i) => value !== expected[i]);
      if (cell < 0) continue;
      const text = `cell ${cell}: ${expected[cell]} on ${first.host}, ${found[cell]} on ${node.host}`;
      this.world.violated('P5', `${when}, copies differ: ${text}`);
    }
  }

  /** Snapshots of user data have one content everywhere, and an allowed one. */
  snapshotsAlike(nodes: readonly ReplicaNode[]): void {
    const { model } = this.world;
    for (const snapshot of model.snapshots.values()) {
      const disk = `volume-snap-${snapshot.name}.img`;
      const allowed = model.snapshotCells(snapshot);
      let expected: number[] | null = null;
      for (const node of nodes) {
        if (!node.peek.snapshotDisks().includes(disk)) {
          this.world.violated('P7', `snapshot ${snapshot.name} is missing on ${node.host}`);
          continue;
        }
        const layers = node.peek.layers(false, disk);
        const found = node.peek.cells(layers, 0, Math.min(allowed.length, model.cells.length));
        const wrong = found.findIndex((value, cell) => !(allowed[cell] ?? [0]).includes(value));
        if (wrong >= 0) {
          const why = describe(wrong, found[wrong] as number, allowed[wrong] ?? [0]);
          this.world.violated('P1', `snapshot ${snapshot.name} on ${node.host}: ${why}`);
        }
        const first: number[] = expected ?? found;
        expected = first;
        const cell = found.findIndex((value, i) => value !== first[i]);
        if (cell >= 0) {
          const text = `cell ${cell}: ${first[cell]} and on ${node.host} ${found[cell]}`;
          this.world.violated('P5', `snapshot ${snapshot.name} differs: ${text}`);
        }
      }
    }
  }

  private cellsOf(
    node: ReplicaNode,
    isDurable: boolean,
    firstCell: number,
    count: number,
    when: string,
  ): number[] {
    try {
      return node.peek.cells(node.peek.layers(isDurable), firstCell, count);
    } catch (error) {
      this.world.violated('P7', `${node.host} cannot be read (${when}): ${String(error)}`);
      return new Array<number>(count).fill(0);
    }
  }

  /** Without those that lost power a moment ago, which the engine has not noticed. */
  private powered(engine: Engine): ReplicaNode[] {
    return this.readable(engine).filter((node) => !node.isDown && !node.hasLostData);
  }

  readable(engine: Engine): ReplicaNode[] {
    return engine.replicas
      .filter(({ mode, port }: Member) => mode === 'RW' && port !== null)
      .map(({ address }) => this.world.nodeAt(address));
  }
}

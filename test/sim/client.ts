// The volume's client: sends requests to an engine, tells the model what it was told, and checks at
// each answer that what was promised holds on every copy (P1, P2, P5).

import { BLOCK_OP, BlockRequest } from '../../src/core/block-device.js';
import type { StorageError } from '../../src/core/errors.js';
import { cellValue, fillCells } from './chain-peek.js';
import type { EngineHost } from './engine-host.js';
import { CELL_BYTES, type Entry, type View } from './model.js';
import type { World } from './world.js';

export type ClientOp = 'read' | 'write' | 'flush' | 'trim' | 'zero';

interface Pending {
  readonly op: ClientOp;
  readonly firstCell: number;
  readonly cellCount: number;
  readonly entries: Entry[];
  readonly view: View | null;
  readonly flushSeq: number;
  readonly text: string;
}

export class Client {
  inFlightCount = 0;
  /** False for an engine that was left behind: the volume has moved on. */
  isCurrent = true;
  /** From now on nothing it writes may ever be seen. */
  isFenced = false;
  private readonly world: World;
  private readonly host: EngineHost;
  private readonly pending = new Map<BlockRequest, Pending>();
  private whenIdle: (() => void)[] = [];

  constructor(world: World, host: EngineHost) {
    this.world = world;
    this.host = host;
    host.process.whenEnded(() => this.engineDied());
  }

  read(firstCell: number, cellCount: number): void {
    if (!this.host.process.isAlive) return;
    const view = this.world.model.viewBegan(firstCell, cellCount);
    this.submit('read', firstCell, cellCount, false, { view });
  }

  write(firstCell: number, cellCount: number, fua: boolean): void {
    const stamp = this.world.nextStamp();
    const { model } = this.world;
    const entries = this.isFenced ? [] : model.writeBegan(firstCell, cellCount, stamp);
    this.submit('write', firstCell, cellCount, fua, { entries, stamp });
  }

  zero(firstCell: number, cellCount: number, fua: boolean): void {
    const entries = this.world.model.writeBegan(firstCell, cellCount, 0);
    this.submit('zero', firstCell, cellCount, fua, { entries });
  }

  trim(firstCell: number, cellCount: number): void {
    const entries = this.world.model.writeBegan(firstCell, cellCount, 0);
    this.submit('trim', firstCell, cellCount, false, { entries });
  }

  flush(): void {
    this.submit('flush', 0, 0, false, { flushSeq: this.world.model.flushBegan() });
  }

  /** A newer engine serves the volume: what this one has in flight has landed by now, or never will. */
  volumeMovedOn(): void {
    this.isFenced = true;
    for (const { entries } of this.pending.values()) this.world.model.writeUnknown(entries);
  }

  /** Resolves when nothing is in flight. */
  idle(): Promise<void> {
    if (this.inFlightCount === 0) return Promise.resolve();
    return new Promise((resolve) => this.whenIdle.push(resolve));
  }

  private submit(
    op: ClientOp,
    firstCell: number,
    cellCount: number,
    fua: boolean,
    rest: { entries?: Entry[]; view?: View; flushSeq?: number; stamp?: number },
  ): void {
    const { slab, engine } = this.host;
    const lengthBytes = cellCount * CELL_BYTES;
    const request = new BlockRequest();
    request.op = OP[op];
    request.offsetBytes = firstCell * CELL_BYTES;
    request.lengthBytes = lengthBytes;
    request.fua = fua;
    request.bufferOffset = op === 'read' || op === 'write' ? slab.allocate(lengthBytes) : -1;
    const { entries = [], view = null, flushSeq = 0, stamp = 0 } = rest;
    if (op === 'write') fillCells(slab.bytes, request.bufferOffset, lengthBytes, stamp);
    const what = `${op}${fua ? ' fua' : ''} ${firstCell}+${cellCount}${stamp > 0 ? ` =${stamp}` : ''}`;
    const text = `${this.host.host} ${what}`;
    this.pending.set(request, { op, firstCell, cellCount, entries, view, flushSeq, text });
    this.inFlightCount++;
    this.world.trace.note(`-> ${text}`);
    request.owner = { blockRequestDone: (_, error) => this.done(request, error) };
    engine.volume.submit(request);
    if (op !== 'read' && op !== 'flush') this.world.changeSent();
  }

  private done(request: BlockRequest, error: StorageError | null): void {
    const pending = this.pending.get(request) as Pending;
    this.pending.delete(request);
    this.inFlightCount--;
    const { world } = this;
    world.trace.note(`<- ${pending.text}${error === null ? '' : ` ${error.code}`}`);
    if (error === null) this.succeeded(request, pending);
    else world.model.writeUnknown(pending.entries);
    if (request.bufferOffset >= 0) this.host.slab.release(request.bufferOffset);
    world.opsDone++;
    if (error === null) world.opsAcked++;
    this.wake();
  }

  private succeeded(request: BlockRequest, pending: Pending): void {
    const { op, firstCell, cellCount, entries, view, flushSeq, text } = pending;
    const { world } = this;
    const { model, checks } = world;
    if (op === 'read') {
      if (this.isCurrent) this.readEnded(request, view as View, cellCount, text);
    } else if (!this.isCurrent || op === 'trim') {
      // An engine that was left behind promises nothing; a trim is a hint.
      model.writeUnknown(entries);
    } else if (op === 'flush') {
      world.acknowledged();
      model.flushAcked(flushSeq);
      checks.flushed(this.host.engine, text);
    } else {
      world.acknowledged();
      model.writeAcked(firstCell, entries, request.fua);
      checks.written(this.host.engine, firstCell, entries, request.fua, text);
    }
  }

  private readEnded(request: BlockRequest, view: View, cellCount: number, text: string): void {
    const { bytes } = this.host.slab;
    const values: number[] = [];
    for (let i = 0; i < cellCount; i++) {
      values.push(cellValue(bytes, request.bufferOffset + i * CELL_BYTES));
    }
    const wrong = this.world.model.readEnded(view, values);
    if (wrong !== null) this.world.violated('P5', `${text}: ${wrong}`);
  }

  private engineDied(): void {
    for (const { entries } of this.pending.values()) this.world.model.writeUnknown(entries);
    this.pending.clear();
    this.inFlightCount = 0;
    this.wake();
  }

  private wake(): void {
    if (this.inFlightCount > 0) return;
    for (const resolve of this.whenIdle.splice(0)) resolve();
  }
}

const OP = {
  read: BLOCK_OP.read,
  write: BLOCK_OP.write,
  flush: BLOCK_OP.flush,
  trim: BLOCK_OP.unmap,
  zero: BLOCK_OP.writeZeroes,
} as const;

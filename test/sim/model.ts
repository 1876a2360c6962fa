// The oracle: for each 512-byte cell of the volume, which values a read may return, given what the
// clients were told. A write is pending until it is answered; one that failed, or whose engine died,
// may or may not be there, but once a read has shown a value no other may appear (P5). What was not
// flushed may go back when copies lose power.

export const CELL_BYTES = 512;

type EntryState = 'pending' | 'acked' | 'maybe';

export interface Entry {
  readonly stamp: number;
  readonly seq: number;
  state: EntryState;
  /** Set when acked. */
  ackSeq: number;
}

interface Cell {
  /** What it may hold after a loss of power that takes all that is in the log. */
  base: readonly number[];
  log: Entry[];
}

/** A read or snapshot that has begun: what each of its cells may give. */
export interface View {
  readonly seq: number;
  readonly firstCell: number;
  readonly candidates: { base: readonly number[]; log: Entry[] }[];
}

export interface SnapshotState {
  readonly name: string;
  /** Values per cell; the second list when power was lost since. */
  readonly cells: (readonly number[])[];
  readonly weakCells: (readonly number[])[];
  hasLostPower: boolean;
}

const ZERO: readonly number[] = [0];

export class Model {
  readonly cells: Cell[];
  readonly snapshots = new Map<string, SnapshotState>();
  private seq = 0;
  private readonly watching = new Set<View>();

  constructor(cellCount: number) {
    this.cells = Array.from({ length: cellCount }, () => ({ base: ZERO, log: [] }));
  }

  /** @returns one entry per cell. */
  writeBegan(firstCell: number, count: number, stamp: number): Entry[] {
    const seq = ++this.seq;
    const entries: Entry[] = [];
    for (let i = 0; i < count; i++) {
      const entry: Entry = { stamp, seq, state: 'pending', ackSeq: 0 };
      this.cell(firstCell + i).log.push(entry);
      for (const view of this.watching) view.candidates[firstCell + i]?.log.push(entry);
      entries.push(entry);
    }
    return entries;
  }

  /** @param isDurable FUA. */
  writeAcked(firstCell: number, entries: readonly Entry[], isDurable: boolean): void {
    const ackSeq = ++this.seq;
    entries.forEach((entry, i) => {
      entry.state = 'acked';
      entry.ackSeq = ackSeq;
      const cell = this.cell(firstCell + i);
      const at = cell.log.indexOf(entry);
      if (isDurable && at >= 0) {
        cell.base = [entry.stamp];
        cell.log = cell.log.slice(at + 1);
      }
    });
  }

  /** It failed, was a hint, or nobody lives who could tell. */
  writeUnknown(entries: readonly Entry[]): void {
    for (const entry of entries) entry.state = 'maybe';
  }

  flushBegan(): number {
    return ++this.seq;
  }

  flushAcked(flushSeq: number): void {
    for (const cell of this.cells) {
      let last = -1;
      cell.log.forEach((entry, i) => {
        if (entry.state === 'acked' && entry.ackSeq < flushSeq) last = i;
      });
      if (last < 0) continue;
      cell.base = [(cell.log[last] as Entry).stamp];
      cell.log = cell.log.slice(last + 1);
    }
  }

  viewBegan(firstCell: number, count: number): View {
    const candidates = [];
    for (let i = 0; i < count; i++) {
      const { base, log } = this.cell(firstCell + i);
      candidates.push({ base, log: [...log] });
    }
    return { seq: ++this.seq, firstCell, candidates };
  }

  /** Null when every cell has an allowed value; else what is wrong. */
  readEnded(view: View, values: readonly number[]): string | null {
    for (let i = 0; i < values.length; i++) {
      const value = values[i] as number;
      const candidate = view.candidates[i] as View['candidates'][number];
      const allowed = strongest(candidate.base, candidate.log);
      if (!allowed.includes(value)) return describe(view.firstCell + i, value, allowed);
    }
    for (let i = 0; i < values.length; i++) this.seen(view, i, values[i] as number);
    return null;
  }

  /** P5: a value that was shown stays, unless a write came in between. */
  private seen(view: View, i: number, value: number): void {
    const cell = this.cell(view.firstCell + i);
    const last = cell.log.at(-1);
    if (last === undefined && cell.base.length === 1) return;
    if (last !== undefined && last.state === 'acked' && last.stamp === value) return;
    const isQuiet = cell.log.every((entry) => entry.state !== 'pending' && entry.seq < view.seq);
    if (!isQuiet) return;
    const seq = ++this.seq;
    cell.log.push({ stamp: value, seq, state: 'acked', ackSeq: seq });
  }

  allowed(cellIndex: number): readonly number[] {
    const { base, log } = this.cell(cellIndex);
    return strongest(base, log);
  }

  /** What may be on stable storage; all of it may come back after a loss of power. */
  allowedDurable(cellIndex: number): readonly number[] {
    const { base, log } = this.cell(cellIndex);
    return [...base, ...log.map(({ stamp }) => stamp)];
  }

  hasPending(cellIndex: number): boolean {
    return this.cell(cellIndex).log.some(({ state }) => state === 'pending');
  }

  /** True when this write is the last one there was. */
  isNewest(cellIndex: number, entry: Entry): boolean {
    const { log } = this.cell(cellIndex);
    return log.length === 0 ? entry.state === 'acked' : log.at(-1) === entry;
  }

  /** Copies that serve now have lost what was not on stable storage. */
  powerLost(): void {
    for (const cell of this.cells) {
      if (cell.log.length === 0) continue;
      const pending = cell.log.filter(({ state }) => state === 'pending');
      cell.base = [...new Set([...cell.base, ...cell.log.map(({ stamp }) => stamp)])];
      cell.log = pending;
    }
    for (const snapshot of this.snapshots.values()) snapshot.hasLostPower = true;
  }

  // ---- Snapshots ----

  snapshotBegan(): View {
    const view = this.viewBegan(0, this.cells.length);
    this.watching.add(view);
    return view;
  }

  snapshotEnded(view: View, name: string, wasTaken: boolean): void {
    this.watching.delete(view);
    if (!wasTaken) return;
    const cells = view.candidates.map(({ base, log }) => inSnapshot(base, log, view.seq));
    const weakCells = view.candidates.map(({ base, log }, i) =>
      log.length === 0 ? (cells[i] as number[]) : [...base, ...log.map(({ stamp }) => stamp)],
    );
    this.snapshots.set(name, { name, cells, weakCells, hasLostPower: false });
  }

  snapshotCells(snapshot: SnapshotState): (readonly number[])[] {
    return snapshot.hasLostPower ? snapshot.weakCells : snapshot.cells;
  }

  /**
   * A revert is on its way, with no write pending: from here on it may have been done.
   * @returns takes it back, when it was refused.
   */
  revertBegan(name: string): () => void {
    const values = this.valuesOf(name);
    const before = this.cells.map(({ base, log }) => ({ base, log }));
    this.cells.forEach((cell, i) => {
      const stamps = cell.log.map(({ stamp }) => stamp);
      cell.base = [...new Set([...cell.base, ...stamps, ...(values[i] as readonly number[])])];
      cell.log = [];
    });
    return () => {
      this.cells.forEach((cell, i) => {
        Object.assign(cell, before[i]);
      });
    };
  }

  reverted(name: string): void {
    const values = this.valuesOf(name);
    this.cells.forEach((cell, i) => {
      cell.base = values[i] as readonly number[];
      cell.log = [];
    });
  }

  private valuesOf(name: string): (readonly number[])[] {
    const snapshot = this.snapshots.get(name);
    if (snapshot === undefined) throw new Error(`the model has no snapshot ${name}`);
    return this.snapshotCells(snapshot);
  }

  private cell(index: number): Cell {
    const cell = this.cells[index];
    if (cell === undefined) throw new Error(`there is no cell ${index}`);
    return cell;
  }
}

/** From the last acknowledged write on; before it nothing can be seen any more. */
function strongest(base: readonly number[], log: readonly Entry[]): readonly number[] {
  if (log.length === 0) return base;
  let last = log.length - 1;
  while (last >= 0 && (log[last] as Entry).state !== 'acked') last--;
  const stamps = log.slice(Math.max(0, last)).map(({ stamp }) => stamp);
  return last >= 0 ? stamps : [...base, ...stamps];
}

/** What came after the snapshot was asked for may be in it or not. */
function inSnapshot(
  base: readonly number[],
  log: readonly Entry[],
  seq: number,
): readonly number[] {
  if (log.length === 0) return base;
  let last = log.length - 1;
  while (last >= 0 && !((log[last] as Entry).state === 'acked' && (log[last] as Entry).seq < seq))
    last--;
  const stamps = log.slice(Math.max(0, last)).map(({ stamp }) => stamp);
  return last >= 0 ? stamps : [...base, ...stamps];
}

export function describe(cell: number, value: number, allowed: readonly number[]): string {
  const where = `offset ${cell * CELL_BYTES}`;
  return `${where} holds ${value}, allowed ${[...new Set(allowed)].slice(0, 8).join(' ')}`;
}

// What a client wrote to a volume and what it was told, block by block: the judge of every crash
// test. A block must hold the last value that a crash could not take away, or a later one that was
// sent; and once a client has read a value, no older one may come back (P1, P2, P5). It must never
// know anything that the client does not know.

export const BLOCK_BYTES = 4096;
/** The unit that a disk writes whole; each carries the stamp, so that a torn block shows. */
const UNIT_BYTES = 512;
const MAGIC = 0x6c656467;
export const NEVER = Number.POSITIVE_INFINITY;

/** A value is the number of the write that stored it; 0 is a block of zeros. */
export type Value = number;

/** One request that changes blocks, as its client saw it. Times are positions of the caller's. */
export interface Change {
  readonly firstBlock: number;
  readonly values: readonly Value[];
  readonly sentAt: number;
  acknowledgedAt: number;
  durableAt: number;
}

export class Ledger {
  readonly blockCount: number;
  private readonly changes: Change[][];
  private readonly position: () => number;
  private lastValue = 0;
  /** Acknowledged, not yet durable. */
  private volatileChanges = new Set<Change>();

  /** @param position where the world is now; never goes back. */
  constructor(sizeBytes: number, position: () => number = () => 0) {
    this.blockCount = sizeBytes / BLOCK_BYTES;
    this.changes = Array.from({ length: this.blockCount }, () => []);
    this.position = position;
  }

  nextValue(): Value {
    return ++this.lastValue;
  }

  /** Call before the request is sent. */
  send(firstBlock: number, values: readonly Value[]): Change {
    const change: Change = {
      firstBlock,
      values,
      sentAt: this.position(),
      acknowledgedAt: NEVER,
      durableAt: NEVER,
    };
    for (let i = 0; i < values.length; i++) this.at(firstBlock + i).push(change);
    return change;
  }

  acknowledge(change: Change, isDurable: boolean): void {
    change.acknowledgedAt = this.position();
    if (isDurable) change.durableAt = change.acknowledgedAt;
    else this.volatileChanges.add(change);
  }

  /** Call before a flush is sent, and what it returns once it was acknowledged. */
  flushing(): () => void {
    const covered = [...this.volatileChanges];
    return () => {
      for (const change of covered) {
        change.durableAt = Math.min(change.durableAt, this.position());
        this.volatileChanges.delete(change);
      }
    };
  }

  /** Values a block may have after a process was killed now. */
  allowed(block: number): Value[] {
    return this.allowedAfter(block, NEVER, (change) => change.acknowledgedAt);
  }

  /** Values a block may have after the power failed at a position. */
  allowedAtPowerLoss(block: number, position: number): Value[] {
    return this.allowedAfter(block, position, (change) => change.durableAt);
  }

  /** What a quiet client knows to be stored; null where it cannot know. */
  known(block: number): Value | null {
    const values = this.allowed(block);
    return values.length === 1 ? (values[0] as Value) : null;
  }

  /** Blocks with more than one allowed value. */
  uncertain(): number[] {
    const blocks: number[] = [];
    for (let block = 0; block < this.blockCount; block++) {
      if (this.allowed(block).length > 1) blocks.push(block);
    }
    return blocks;
  }

  /** A client has read this: from now on nothing else may be read. @returns a complaint or null. */
  observe(block: number, value: Value | 'torn'): string | null {
    const allowed = this.allowed(block);
    const complaint = this.judge(block, value, allowed);
    if (complaint !== null || allowed.length === 1) return complaint;
    const seen: Change = {
      firstBlock: block,
      values: [value as Value],
      sentAt: 0,
      acknowledgedAt: 0,
      durableAt: NEVER,
    };
    this.changes[block] = [seen];
    return null;
  }

  judge(block: number, value: Value | 'torn', allowed: readonly Value[]): string | null {
    if (value !== 'torn' && allowed.includes(value)) return null;
    return `block ${block} holds ${value}, allowed: ${allowed.join(' ')}`;
  }

  private allowedAfter(
    block: number,
    position: number,
    settledAt: (change: Change) => number,
  ): Value[] {
    const values: Value[] = [];
    for (const change of this.at(block).toReversed()) {
      if (change.sentAt > position) continue;
      values.push(change.values[block - change.firstBlock] as Value);
      const at = settledAt(change);
      if (at < NEVER && at <= position) return values;
    }
    return [...values, 0];
  }

  private at(block: number): Change[] {
    return this.changes[block] as Change[];
  }
}

/** The bytes of blocks with these values. */
export function contentOf(firstBlock: number, values: readonly Value[]): Buffer {
  const content = Buffer.alloc(values.length * BLOCK_BYTES);
  values.forEach((value, index) => {
    if (value === 0) return;
    const block = content.subarray(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES);
    block.fill((value * 31 + firstBlock + index) & 0xff);
    for (let at = 0; at < BLOCK_BYTES; at += UNIT_BYTES) {
      block.writeUInt32LE(MAGIC, at);
      block.writeUInt32LE(value, at + 4);
      block.writeUInt32LE(firstBlock + index, at + 8);
      block.writeUInt32LE(at, at + 12);
    }
  });
  return content;
}

const ZEROS = Buffer.alloc(BLOCK_BYTES);

/** The value of a block; 'torn' when it is no whole block of any write to this place. */
export function valueAt(block: number, content: Buffer): Value | 'torn' {
  if (content.equals(ZEROS)) return 0;
  const value = content.readUInt32LE(4);
  return value !== 0 && content.equals(contentOf(block, [value])) ? value : 'torn';
}

// A client at work: several writers that never touch the same blocks at the same time, so that the
// order of the changes of each block is known. Everything read while working is judged at once.

import { BLOCK_BYTES, contentOf, type Ledger, valueAt } from './ledger.js';
import { Refused, Unanswered, type VolumeClient } from './volume-client.js';

const BLOCKS_MAX = 8;

/** Numbers in [0, 1) that depend on the seed alone. */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export interface LoadOptions {
  readonly client: VolumeClient;
  readonly ledger: Ledger;
  readonly random: () => number;
  readonly depth: number;
  /** Only these many blocks are used; default all. */
  readonly blockCount?: number;
  /** Never asks for zeros. */
  readonly withoutZeros?: boolean;
}

export class Load {
  readonly complaints: string[] = [];
  /** Errors that the server answered with. */
  readonly refusals: Refused[] = [];
  acknowledged = 0;
  private readonly options: LoadOptions;
  private readonly blockCount: number;
  private readonly busy = new Set<number>();
  private readonly workers: Promise<void>;
  private isStopped = false;
  private wake: () => void = () => undefined;

  constructor(options: LoadOptions) {
    this.options = options;
    this.blockCount = options.blockCount ?? options.ledger.blockCount;
    this.workers = Promise.all(Array.from({ length: options.depth }, () => this.work())).then(
      () => undefined,
    );
  }

  /** Resolves once so many more changes were acknowledged, or the load has ended. */
  async acknowledges(count: number): Promise<void> {
    const goal = this.acknowledged + count;
    let ended = false;
    void this.workers.then(() => {
      ended = true;
      this.wake();
    });
    while (this.acknowledged < goal && !ended) {
      await new Promise<void>((resolve) => (this.wake = resolve));
    }
  }

  /** Lets what is in flight finish. */
  async stop(): Promise<void> {
    this.isStopped = true;
    await this.workers;
  }

  private async work(): Promise<void> {
    while (!this.isStopped) {
      try {
        await this.one();
      } catch (error) {
        if (error instanceof Unanswered) return;
        if (!(error instanceof Refused)) throw error;
        this.refusals.push(error);
        if (this.refusals.length > 1000) return;
      }
    }
  }

  private async one(): Promise<void> {
    const { random, client, ledger } = this.options;
    const kind = random();
    if (kind < 0.05) {
      const flushed = ledger.flushing();
      await client.flush();
      flushed();
      return;
    }
    const count = 1 + Math.floor(random() * BLOCKS_MAX);
    const first = Math.floor(random() * (this.blockCount - count + 1));
    const blocks = Array.from({ length: count }, (_, index) => first + index);
    if (blocks.some((block) => this.busy.has(block))) {
      // Whoever holds them gets on only when this turn of the event loop ends.
      await new Promise((resolve) => setImmediate(resolve));
      return;
    }
    for (const block of blocks) this.busy.add(block);
    try {
      if (kind < 0.25)
        this.judge(first, await client.read(first * BLOCK_BYTES, count * BLOCK_BYTES));
      else await this.change(first, count, kind);
    } finally {
      for (const block of blocks) this.busy.delete(block);
    }
  }

  private async change(first: number, count: number, kind: number): Promise<void> {
    const { client, ledger } = this.options;
    const isZero = kind < 0.32 && this.options.withoutZeros !== true;
    const isFua = kind > 0.9;
    const value = isZero ? 0 : ledger.nextValue();
    const values = Array.from({ length: count }, () => value);
    const change = ledger.send(first, values);
    const offset = first * BLOCK_BYTES;
    if (isZero) await client.zero(offset, count * BLOCK_BYTES);
    else await client.write(offset, contentOf(first, values), isFua);
    ledger.acknowledge(change, isFua);
    this.acknowledged++;
    this.wake();
  }

  private judge(first: number, content: Buffer): void {
    this.complaints.push(...judgeContent(this.options.ledger, first, content));
  }
}

/** What a client read, as observations. @returns complaints. */
export function judgeContent(ledger: Ledger, first: number, content: Buffer): string[] {
  const complaints: string[] = [];
  for (let at = 0; at < content.length; at += BLOCK_BYTES) {
    const block = first + at / BLOCK_BYTES;
    const value = valueAt(block, content.subarray(at, at + BLOCK_BYTES));
    const complaint = ledger.observe(block, value);
    if (complaint !== null) complaints.push(`read while working: ${complaint}`);
  }
  return complaints;
}

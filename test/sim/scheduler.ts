// Virtual time. Events run one at a time, by time and then in an order drawn from the seed; all
// promises that are ready run before the next event. No timer of the machine is used.

import type { Clock, Timer } from '../../src/core/clock.js';
import type { Rng } from './rng.js';
import type { Trace } from './trace.js';

/** 2026-11-24T00:00:00Z, so that generations by the clock look as in life. */
const EPOCH_MS = 1_795_478_400_000;

export interface Event extends Timer {
  readonly atUs: number;
}

class QueuedEvent implements Event {
  readonly atUs: number;
  readonly tie: number;
  run: (() => void) | null;

  constructor(atUs: number, tie: number, run: () => void) {
    this.atUs = atUs;
    this.tie = tie;
    this.run = run;
  }

  cancel(): void {
    this.run = null;
  }

  isBefore(other: QueuedEvent): boolean {
    return this.atUs < other.atUs || (this.atUs === other.atUs && this.tie < other.tie);
  }
}

export class Scheduler {
  nowUs = 0;
  eventCount = 0;
  trace: Trace | null = null;
  private readonly rng: Rng;
  private readonly heap: QueuedEvent[] = [];

  constructor(rng: Rng) {
    this.rng = rng;
  }

  /** @param delayUs 0 or more; events of the same time run in a random order. */
  after(delayUs: number, run: () => void): Event {
    const event = new QueuedEvent(
      this.nowUs + Math.max(0, Math.floor(delayUs)),
      this.rng.bits(),
      run,
    );
    this.push(event);
    return event;
  }

  wallMs(): number {
    return EPOCH_MS + Math.floor(this.nowUs / 1000);
  }

  /** Runs events until `isDone`, or nothing is left to happen. @throws what an event throws. */
  drive(isDone: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      // A microtask queued by the event runs before the next tick, and so do all that it queues.
      const tick = (): void => {
        try {
          if (isDone() || !this.runNext()) {
            resolve();
            return;
          }
        } catch (error) {
          reject(error as Error);
          return;
        }
        queueMicrotask(next);
      };
      const next = (): void => process.nextTick(tick);
      tick();
    });
  }

  private runNext(): boolean {
    for (;;) {
      const event = this.pop();
      if (event === undefined) return false;
      const { run } = event;
      if (run === null) continue;
      this.nowUs = event.atUs;
      this.eventCount++;
      this.trace?.mix(event.atUs);
      event.run = null;
      run();
      return true;
    }
  }

  private push(event: QueuedEvent): void {
    const { heap } = this;
    let at = heap.length;
    heap.push(event);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      const above = heap[parent] as QueuedEvent;
      if (!event.isBefore(above)) break;
      heap[at] = above;
      at = parent;
    }
    heap[at] = event;
  }

  private pop(): QueuedEvent | undefined {
    const { heap } = this;
    const first = heap[0];
    const last = heap.pop();
    if (first === undefined || last === undefined || heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (
        child + 1 < heap.length &&
        (heap[child + 1] as QueuedEvent).isBefore(heap[child] as QueuedEvent)
      )
        child++;
      const below = heap[child] as QueuedEvent;
      if (!below.isBefore(last)) break;
      heap[at] = below;
      at = child;
    }
    heap[at] = last;
    return first;
  }
}

/** A process: what it waits for never comes once it is dead, so its code stops where it stands. */
export class SimProcess {
  readonly name: string;
  readonly host: string;
  readonly scheduler: Scheduler;
  readonly clock: Clock;
  isAlive = true;
  private readonly rng: Rng;
  private readonly onEnd: (() => void)[] = [];

  /** @param skewMs how far its wall clock is off. */
  constructor(scheduler: Scheduler, rng: Rng, host: string, name: string, skewMs = 0) {
    this.scheduler = scheduler;
    this.rng = rng;
    this.host = host;
    this.name = name;
    this.clock = {
      nowMs: () => scheduler.nowUs / 1000,
      wallTime: () => new Date(scheduler.wallMs() + skewMs),
      after: (delayMs, callback) => this.after(delayMs * 1000, callback),
    };
  }

  /** Like setTimeout in this process. */
  after(delayUs: number, run: () => void): Timer {
    return this.scheduler.after(delayUs, () => {
      if (this.isAlive) run();
    });
  }

  sleep(delayUs: number): Promise<void> {
    return new Promise((resolve) => void this.after(delayUs, resolve));
  }

  readonly random = (): number => this.rng.next();

  readonly newId = (): string => {
    const hex = (): string => this.rng.bits().toString(16).padStart(8, '0');
    const [a, b, c, d] = [hex(), hex(), hex(), hex()];
    return `${a}-${b.slice(0, 4)}-4${b.slice(5)}-8${c.slice(1, 4)}-${c.slice(4)}${d}`;
  };

  whenEnded(run: () => void): void {
    this.onEnd.push(run);
  }

  /** SIGKILL. */
  kill(): void {
    if (!this.isAlive) return;
    this.isAlive = false;
    for (const run of this.onEnd.splice(0)) run();
  }
}

// A Clock that moves only when the test says so.

import type { Clock, Timer } from '../../src/core/clock.js';

export class ManualClock implements Clock {
  private now = 0;
  private readonly timers = new Set<{ readonly atMs: number; readonly callback: () => void }>();

  nowMs(): number {
    return this.now;
  }

  wallTime(): Date {
    return new Date(this.now);
  }

  after(delayMs: number, callback: () => void): Timer {
    const timer = { atMs: this.now + delayMs, callback };
    this.timers.add(timer);
    return { cancel: () => this.timers.delete(timer) };
  }

  /** Timers that have neither fired nor been cancelled. */
  get pendingCount(): number {
    return this.timers.size;
  }

  advance(byMs: number): void {
    this.now += byMs;
    const due = [...this.timers].filter(({ atMs }) => atMs <= this.now);
    due.sort((a, b) => a.atMs - b.atMs);
    for (const timer of due) if (this.timers.delete(timer)) timer.callback();
  }
}

// A byte budget per second for transfers: a token bucket whose depth is one second. Whoever takes
// more than is left goes into debt and waits until it is paid, so any request size is served.

import { sleepMs } from '../core/clock.js';
import type { Clock } from '../core/clock.js';

export class BandwidthLimit {
  private readonly clock: Clock;
  private readonly bytesPerSecond: number;
  private budgetBytes: number;
  private filledMs: number;

  /** @param bytesPerSecond above 0. */
  constructor(clock: Clock, bytesPerSecond: number) {
    this.clock = clock;
    this.bytesPerSecond = bytesPerSecond;
    this.budgetBytes = bytesPerSecond;
    this.filledMs = clock.nowMs();
  }

  /** Resolves when the bytes may be sent. */
  async take(bytes: number, signal?: AbortSignal): Promise<void> {
    const nowMs = this.clock.nowMs();
    const earned = ((nowMs - this.filledMs) / 1000) * this.bytesPerSecond;
    this.budgetBytes = Math.min(this.bytesPerSecond, this.budgetBytes + earned) - bytes;
    this.filledMs = nowMs;
    if (this.budgetBytes >= 0) return;
    await sleepMs(this.clock, (-this.budgetBytes / this.bytesPerSecond) * 1000, signal);
  }
}

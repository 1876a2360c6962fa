// Notices that the engine is gone. The protocol has no reconnect: an engine that lost its data
// connections has given the replica up, or is dead. A replica that stayed open would refuse the
// next engine for ever, so it is let go after a moment (an orderly engine closes it itself).

import type { Clock, Timer } from '../core/clock.js';

/** Between the last connection's end and letting go: an orderly engine sends ReplicaClose by then. */
export const ABANDON_AFTER_MS = 1000;

export class EnginePresence {
  private readonly clock: Clock;
  private readonly gone: () => void;
  private connectionCount = 0;
  private timer: Timer | null = null;

  /** @param gone called when there were data connections and none came back for ABANDON_AFTER_MS. */
  constructor(clock: Clock, gone: () => void) {
    this.clock = clock;
    this.gone = gone;
  }

  connected(): void {
    this.connectionCount++;
    this.timer?.cancel();
    this.timer = null;
  }

  disconnected(): void {
    this.connectionCount--;
    if (this.connectionCount > 0) return;
    this.timer = this.clock.after(ABANDON_AFTER_MS, () => {
      this.timer = null;
      this.gone();
    });
  }
}

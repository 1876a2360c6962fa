// Notices that the engine is gone. The protocol has no reconnect: an engine that lost its data
// connections has given the replica up, or is dead. A replica that stayed open would refuse the
// next engine for ever, so it is let go after a moment (an orderly engine closes it itself).

import type { Clock, Timer } from '../core/clock.js';

/** Between the last connection's end and letting go: an orderly engine sends ReplicaClose by then. */
export const ABANDON_AFTER_MS = 1000;

export class EnginePresence {
  private readonly clock: Clock;
  private readonly openNow: () => number;
  private readonly gone: (open: number) => void;
  private connectionCount = 0;
  private timer: Timer | null = null;

  /**
   * @param openNow counts the opens of the replica: the present one, or while closed the next one.
   * @param gone called when there were data connections and none came back for ABANDON_AFTER_MS,
   *   with the open whose engine that was: a later one has nothing to do with it.
   */
  constructor(clock: Clock, openNow: () => number, gone: (open: number) => void) {
    this.clock = clock;
    this.openNow = openNow;
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
    const open = this.openNow();
    this.timer = this.clock.after(ABANDON_AFTER_MS, () => {
      this.timer = null;
      this.gone(open);
    });
  }
}

// The machine's clock: the only place outside cli/ that touches Date and timers.

import type { Clock, Timer } from './clock.js';

export const realClock: Clock = {
  nowMs: () => performance.now(),
  wallTime: () => new Date(),
  after(delayMs, callback, options): Timer {
    const handle = setTimeout(callback, delayMs);
    if (options?.unref === true) handle.unref();
    return { cancel: () => clearTimeout(handle) };
  },
};

// Time as a parameter. Production code receives a Clock; the simulator passes one it controls.

export interface Timer {
  cancel(): void;
}

export interface Clock {
  /** Monotonic milliseconds; the origin is unspecified. */
  nowMs(): number;
  /** Wall-clock time, for records that people read. */
  wallTime(): Date;
  /** Calls back once after delayMs. The timer does not keep the process alive when unref is true. */
  after(delayMs: number, callback: () => void, options?: { unref?: boolean }): Timer;
}

/** Resolves after delayMs, or at once when the signal aborts. */
export function sleepMs(clock: Clock, delayMs: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted === true) {
      resolve();
      return;
    }
    const finish = (): void => {
      signal?.removeEventListener('abort', finish);
      timer.cancel();
      resolve();
    };
    const timer = clock.after(delayMs, finish);
    signal?.addEventListener('abort', finish, { once: true });
  });
}

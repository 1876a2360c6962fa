// Serialises asynchronous control operations in call order. Never used on the I/O path.

export class Mutex {
  private tail: Promise<void> = Promise.resolve();

  /** Runs `action` after all earlier ones have settled. */
  run<T>(action: () => Promise<T>): Promise<T> {
    const result = this.tail.then(action);
    this.tail = result.then(
      () => undefined,
      () => undefined,
    );
    return result;
  }
}

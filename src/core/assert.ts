// Assertions are for bugs in this program, never for bad input: a failed one ends the process.

export class AssertionError extends Error {
  override readonly name = 'AssertionError';
}

/** Throws when an invariant of this program does not hold. Cite its number from docs/invariants.md. */
export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new AssertionError(message);
}

/** Marks a switch arm that the types say cannot be reached. */
export function unreachable(value: never): never {
  throw new AssertionError(`unreachable: ${String(value)}`);
}

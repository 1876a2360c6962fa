// A planted bug: something the simulator must notice. It is put into the real classes from outside
// and taken out again; the program knows nothing of it.

export interface Mutant {
  readonly name: string;
  /** What a programmer could have got wrong. */
  readonly mistake: string;
  /** Puts the bug in; the result takes it out. */
  plant(): () => void;
}

type Method = (this: unknown, ...args: never[]) => unknown;

/**
 * Replaces a method of a class for all its objects.
 * @param wrap gets the real method; `this` is the object.
 * @throws when there is no such method any more: then the mutant must follow the code.
 */
export function replaceMethod<T extends object>(
  type: { readonly prototype: T },
  name: string,
  wrap: (
    real: (self: T, ...args: unknown[]) => unknown,
  ) => (self: T, ...args: unknown[]) => unknown,
): () => void {
  const prototype = type.prototype as Record<string, unknown>;
  const real = prototype[name];
  if (typeof real !== 'function') throw new Error(`nothing to mutate: ${name}`);
  const call = real as Method;
  const mutated = wrap((self, ...args) => call.apply(self, args as never[]));
  prototype[name] = function (this: T, ...args: unknown[]): unknown {
    return mutated(this, ...args);
  };
  return () => {
    prototype[name] = real;
  };
}

/** A private part of an object. @throws when it is not there any more. */
export function partOf<T>(self: object, name: string): T {
  const fields = self as Record<string, unknown>;
  if (!(name in fields)) throw new Error(`nothing to mutate: ${name}`);
  return fields[name] as T;
}

// Random changes of a byte stream and its arrival in random pieces, for tests of decoders.

import fc from 'fast-check';
import type { Slab } from '../../src/core/slab.js';
import type { MemoryConnection } from './memory-connection.js';

export interface Mutation {
  readonly at: number;
  readonly byte: number;
}

/** One to twelve bytes of the stream with other values. */
export function mutationsOf(stream: Uint8Array): fc.Arbitrary<Mutation[]> {
  const mutation = fc.record({ at: fc.nat(stream.byteLength - 1), byte: fc.nat(255) });
  return fc.array(mutation, { minLength: 1, maxLength: 12 });
}

/** Lengths of pieces, used in turn. */
export const pieces = fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 30 });

export function mutate(stream: Uint8Array, changes: readonly Mutation[]): Buffer {
  const changed = Buffer.from(stream);
  for (const { at, byte } of changes) changed[at] = byte;
  return changed;
}

/** Stops when the connection has ended. */
export function pushInPieces(
  connection: MemoryConnection,
  stream: Uint8Array,
  sizes: readonly number[],
): void {
  let at = 0;
  for (let i = 0; at < stream.byteLength && !connection.isClosed; i++) {
    const size = sizes[i % sizes.length] as number;
    connection.push(stream.subarray(at, at + size));
    at += size;
  }
}

/** Free buffers of every size, to notice that one is not given back. */
export function freeBuffers(memory: Slab): number {
  return memory.freeCounts().reduce((sum, { freeCount }) => sum + freeCount, 0);
}

// Decides what a finished fan-out write means: which replicas failed the volume and what the
// client hears. Pure; the rules are Longhorn's (facts: engine-semantics §3), ENOSPC included.

import { StorageError } from '../core/errors.js';
import type { ReplicaMode } from './replica-mode.js';

export interface WriteResult {
  readonly mode: Exclude<ReplicaMode, 'ERR'>;
  /** Null when the replica acknowledged. */
  readonly error: StorageError | null;
  /** Bytes that a replica without space had written; remote ones report 0. */
  readonly writtenBytes: number;
}

export interface WriteOutcome {
  /** Positions of the replicas that must become ERR before the client is answered. */
  readonly failed: readonly number[];
  readonly answer: 'success' | 'noSpace' | 'error';
}

function isFull(result: WriteResult): boolean {
  return result.error?.code === 'NO_SPACE';
}

/** Of replicas that all ran out of space, those that wrote less than the largest agreeing group. */
function losersOfFullVolume(results: readonly WriteResult[], full: readonly number[]): number[] {
  const groups = new Map<number, number[]>();
  for (const index of full) {
    const written = results[index]?.writtenBytes ?? 0;
    groups.set(written, [...(groups.get(written) ?? []), index]);
  }
  let keptBytes = -1;
  let keptCount = 0;
  for (const [written, members] of groups) {
    const wins =
      members.length > keptCount || (members.length === keptCount && written > keptBytes);
    if (wins) [keptBytes, keptCount] = [written, members.length];
  }
  return full.filter((index) => (results[index]?.writtenBytes ?? 0) !== keptBytes);
}

/** @param results one per replica the write was sent to, in any order. */
export function decideWriteOutcome(results: readonly WriteResult[]): WriteOutcome {
  const indexes = results.map((_, index) => index);
  const failed = indexes.filter((index) => results[index]?.error !== null);
  const readable = indexes.filter((index) => results[index]?.mode === 'RW');
  const fullReadable = readable.filter((index) => isFull(results[index] as WriteResult));
  const allFull = fullReadable.length > 0 && fullReadable.length === readable.length;
  if (allFull) {
    const losers = losersOfFullVolume(results, fullReadable);
    // A WO replica leaves whatever it answered: with the data it would differ from the readable ones.
    const others = indexes.filter((index) => !readable.includes(index));
    return { failed: [...losers, ...others].sort((a, b) => a - b), answer: 'noSpace' };
  }
  const survives = readable.some((index) => results[index]?.error === null);
  return { failed, answer: survives ? 'success' : 'error' };
}

/** What the client hears of a write that did not succeed. */
export function answerOf(answer: 'noSpace' | 'error', first: StorageError | null): StorageError {
  if (answer === 'noSpace') {
    return new StorageError('NO_SPACE', 'no space left on device', {}, first ?? undefined);
  }
  return first ?? new StorageError('NO_BACKEND', 'no backend available');
}

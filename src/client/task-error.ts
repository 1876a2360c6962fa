// One action on many replicas at once, and the error that names each replica that failed.

import { StorageError } from '../core/errors.js';
import { storageErrorOfRpc } from '../rpc/error-map.js';

export interface ReplicaFailure {
  readonly address: string;
  readonly error: StorageError;
}

/** Longhorn's TaskError text `addr: msg; addr: msg`; the code is the first failure's. */
export function taskError(failures: readonly ReplicaFailure[]): StorageError {
  const text = failures.map(({ address, error }) => `${address}: ${error.message}`).join('; ');
  const [first] = failures;
  return new StorageError(
    first?.error.code ?? 'PEER_ERROR',
    text,
    { addresses: failures.map(({ address }) => address) },
    first?.error,
  );
}

/**
 * Runs the action on all addresses together and waits for all.
 * @returns results in the order of the addresses. @throws the taskError of those that failed.
 */
export async function onEach<T>(
  addresses: readonly string[],
  action: (address: string) => Promise<T>,
): Promise<T[]> {
  const outcomes = await Promise.allSettled(addresses.map((address) => action(address)));
  const results: T[] = [];
  const failures: ReplicaFailure[] = [];
  for (const [index, outcome] of outcomes.entries()) {
    const address = addresses[index] ?? '';
    if (outcome.status === 'fulfilled') results.push(outcome.value);
    else failures.push({ address, error: storageErrorOfRpc(outcome.reason) });
  }
  if (failures.length > 0) throw taskError(failures);
  return results;
}

/**
 * Asks each address; a failure becomes that address's entry instead of hiding the others'.
 * @returns entries sorted by address, as Longhorn prints its maps.
 */
export async function statusOfEach<T>(
  addresses: readonly string[],
  ask: (address: string) => Promise<T>,
  failed: (message: string) => T,
): Promise<Record<string, T>> {
  const entries = await Promise.all(
    addresses.map(async (address): Promise<[string, T]> => {
      try {
        return [address, await ask(address)];
      } catch (error) {
        return [address, failed(storageErrorOfRpc(error).message)];
      }
    }),
  );
  return Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1)));
}

// The part of ReplicaService that is this project's own: the sync agent asks the replica to do a
// purge's data work, because only the owner of the chain can hold ranges against writes and trims
// meanwhile. The stream tells the progress; when the caller leaves, the work stops.

import type { DiskWorkProgress, ReplicaServiceDefinition } from '../api/generated/replica.js';
import type { WorkOptions } from '../image/chain.js';
import type { ServiceHandlers } from '../rpc/server.js';
import type { Replica } from './replica.js';

type DiskWorkHandlers = Required<
  Pick<ServiceHandlers<typeof ReplicaServiceDefinition>, 'diskCoalesce' | 'diskPrune'>
>;

export function diskWorkHandlers(replica: Replica): DiskWorkHandlers {
  return {
    diskCoalesce: ({ source, target }, { signal }) =>
      progressOf(signal, (options) => replica.coalesce(source, target, options)),
    diskPrune: ({ source }, { signal }) =>
      progressOf(signal, (options) => replica.prune(source, options)),
  };
}

/** Runs the work and yields its newest progress as fast as the caller takes it. */
async function* progressOf(
  signal: AbortSignal,
  work: (options: WorkOptions) => Promise<void>,
): AsyncGenerator<DiskWorkProgress> {
  let newest: DiskWorkProgress | null = null;
  let hasEnded = false;
  let wake = (): void => undefined;
  const running = work({
    signal,
    onProgress: (doneBytes, totalBytes) => {
      newest = { doneBytes, totalBytes };
      wake();
    },
  }).finally(() => {
    hasEnded = true;
    wake();
  });
  running.catch(() => undefined); // awaited below, after what is left of the progress
  while (!hasEnded) {
    const changed = new Promise<void>((resolve) => {
      wake = resolve;
    });
    const progress: DiskWorkProgress | null = newest;
    newest = null;
    if (progress !== null) yield progress;
    else await changed;
  }
  await running;
}

// add-replica: runs the rebuild, shows how far it is, and says what is left when it does not finish.

import type { Command } from 'commander';
import { addReplica, type LeftBehind } from '../client/rebuild.js';
import { StorageError } from '../core/errors.js';
import { withEngine } from './engine-session.js';
import { HintedError } from './error-report.js';
import { EXIT_CODE } from './exit-codes.js';
import { ProgressPrinter } from './progress.js';

interface AddFlags {
  readonly size: number;
  readonly currentSize: number;
  readonly restore: boolean;
  readonly fastSync: boolean;
  readonly fileSyncHttpClientTimeout: number;
  readonly grpcTimeoutSeconds: number;
  readonly bandwidthLimit: number;
  readonly quiet: boolean;
}

function leftText(left: LeftBehind, failure: StorageError): string {
  switch (left) {
    case 'none':
      return failure.code === 'CANCELLED' ? '; the replica is not in the volume' : '';
    case 'WO':
      return '; the replica stays in the volume as WO and serves nothing';
    case 'ERR':
      return '; the replica is in the volume as ERR and not used';
    case 'RW':
      return '';
  }
}

function hintOf(left: LeftBehind, failure: StorageError, address: string): string | null {
  switch (left) {
    case 'WO':
      return `Mend the cause and run the same command again, or give up with: longhorn rm-replica ${address}`;
    case 'ERR':
      return `Run longhorn rm-replica ${address}, then the same command again.`;
    case 'RW':
      return failure.code === 'ALREADY_EXISTS'
        ? 'There is nothing to do.'
        : `Its data is complete. Clear its rebuilding flag with: longhorn rm-replica ${address}, then add it again.`;
    case 'none':
      return failure.code === 'CANCELLED'
        ? 'Run the same command again to go on: what was copied already is only compared.'
        : null;
  }
}

function explained(error: unknown, address: string): unknown {
  if (!(error instanceof StorageError)) return error;
  const left = error.details['replicaMode'];
  if (left !== 'none' && left !== 'WO' && left !== 'ERR' && left !== 'RW') return error;
  const hint = hintOf(left, error, address);
  if (hint === null) return error;
  const text = `${error.message}${leftText(left, error)}`;
  return new HintedError(new StorageError(error.code, text, error.details, error), hint);
}

/** Aborts on the first SIGINT or SIGTERM; the second ends the process where it stands. */
function abortOnSignal(): { signal: AbortSignal; release: () => void } {
  const controller = new AbortController();
  const onSignal = (): void => {
    if (controller.signal.aborted) process.exit(EXIT_CODE.interrupted);
    controller.abort();
  };
  process.on('SIGINT', onSignal);
  process.on('SIGTERM', onSignal);
  return {
    signal: controller.signal,
    release: () => {
      process.off('SIGINT', onSignal);
      process.off('SIGTERM', onSignal);
    },
  };
}

export async function add(address: string, flags: AddFlags, command: Command): Promise<void> {
  const progress = new ProgressPrinter(process.stderr, address, flags.quiet);
  const { signal, release } = abortOnSignal();
  try {
    await withEngine(command, (connections) =>
      addReplica(
        connections,
        {
          address,
          sizeBytes: flags.size,
          currentSizeBytes: flags.currentSize,
          fastSync: flags.fastSync,
          isRestore: flags.restore,
          httpTimeoutSeconds: flags.fileSyncHttpClientTimeout,
          deadlineSeconds: flags.grpcTimeoutSeconds,
          bytesPerSecondMax: flags.bandwidthLimit,
        },
        { signal, onProgress: (step) => progress.show(step) },
      ),
    );
  } catch (error) {
    throw explained(error, address);
  } finally {
    progress.end();
    release();
  }
}

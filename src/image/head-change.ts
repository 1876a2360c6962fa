// What a snapshot and a revert have in common: a new head is made, volume.meta is made to name it, the
// old head goes. A change that fails is taken back; where that fails too, the chain is refused.

import { StorageError, toStorageError } from '../core/errors.js';
import type { ChainState } from './chain-state.js';
import { removeHeadFiles } from './disk-files.js';
import type { DiskRecord, VolumeMeta } from './metadata.js';

export function headRecord(name: string, parent: string, created: string): DiskRecord {
  return { name, parent, removed: false, userCreated: false, created, labels: null };
}

/** volume.meta of an open chain: Dirty is true until it is closed. */
export function writeOpenMeta(state: ChainState, meta: VolumeMeta): Promise<void> {
  return state.store.writeVolume({ ...meta, dirty: true });
}

/** Takes a failed commit back. The error tells whether that worked. */
export function undo(
  state: ChainState,
  cause: unknown,
  removeFiles: () => Promise<void>,
): Promise<StorageError> {
  return takeBack(state, cause, async () => {
    // The commit may have reached the disk although it failed: volume.meta must name the old head
    // before the new one's files go.
    await writeOpenMeta(state, state.meta);
    await removeFiles();
  });
}

export async function takeBack(
  state: ChainState,
  cause: unknown,
  steps: () => Promise<void>,
): Promise<StorageError> {
  const error = toStorageError(cause);
  try {
    await steps();
  } catch (undoError) {
    const rollbackMessage = toStorageError(undoError).message;
    // Memory and directory may differ now; only a fresh open can tell which chain is the one.
    state.io.refusal = new StorageError('INVALID_STATE', `${error.message}; ${rollbackMessage}`);
    return withRollback(error, { rollback: 'failed', rollbackMessage });
  }
  return withRollback(error, { rollback: 'succeeded' });
}

function withRollback(error: StorageError, rollback: Record<string, string>): StorageError {
  return new StorageError(error.code, error.message, { ...error.details, ...rollback }, error);
}

export async function removeOldHead(state: ChainState, headName: string): Promise<void> {
  try {
    await removeHeadFiles(state.store, headName);
  } catch (error) {
    // The next open removes it.
    state.log.warn('image.head.leftover', { headName, error });
  }
}

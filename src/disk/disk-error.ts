// Failures of the file system as StorageErrors: one table, used for errno values of the disk queue
// and for Node's own errors alike. Pure: the simulator uses it without the addon.

import { constants } from 'node:os';

import { type ErrorCode, StorageError } from '../core/errors.js';

const CODE_OF_ERRNO_NAME: Readonly<Record<string, ErrorCode>> = {
  ENOENT: 'NOT_FOUND',
  EEXIST: 'ALREADY_EXISTS',
  ENOSPC: 'NO_SPACE',
  EDQUOT: 'NO_SPACE',
  ENOTDIR: 'INVALID_ARGUMENT',
  ENOTEMPTY: 'INVALID_STATE',
};

/** Longhorn finds this text in error messages, so every full disk must say it. */
const NO_SPACE_TEXT = 'no space left on device';

/** Second names of EAGAIN and EOPNOTSUPP on Linux. */
const ALIASES: ReadonlySet<string> = new Set(['EWOULDBLOCK', 'ENOTSUP']);

const NAME_OF_ERRNO: ReadonlyMap<number, string> = new Map([
  // Corruption found by ext4 and XFS, which Node has no name for.
  [117, 'EUCLEAN'],
  ...Object.entries(constants.errno)
    .filter(([name]) => !ALIASES.has(name))
    .map(([name, errno]): [number, string] => [errno, name]),
]);

/** 'ENOSPC' for 28; 'E9999' when the number has no name. */
export function errnoName(errno: number): string {
  return NAME_OF_ERRNO.get(errno) ?? `E${errno}`;
}

/**
 * The error for a negative errno, as DiskRequest.complete() gives it.
 * @param action a verb: 'write', 'truncate'.
 */
export function diskErrorOfResult(result: number, action: string, path: string): StorageError {
  return diskErrorOfName(errnoName(-result), action, path);
}

/** The error for anything thrown by node:fs; a StorageError stays what it is. */
export function diskErrorOfThrown(thrown: unknown, action: string, path: string): StorageError {
  if (thrown instanceof StorageError) return thrown;
  const code = thrown instanceof Error ? (thrown as NodeJS.ErrnoException).code : undefined;
  return diskErrorOfName(code ?? 'EIO', action, path, thrown);
}

function diskErrorOfName(
  name: string,
  action: string,
  path: string,
  cause?: unknown,
): StorageError {
  const code = CODE_OF_ERRNO_NAME[name] ?? 'IO_ERROR';
  const reason = code === 'NO_SPACE' ? NO_SPACE_TEXT : name;
  return new StorageError(
    code,
    `cannot ${action} ${path}: ${reason}`,
    { path, errno: name },
    cause,
  );
}

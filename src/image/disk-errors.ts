// Turns what the disk queue reports (a byte count or a negative errno) into errors. The text of a
// full disk is one that Longhorn's engine looks for.

import { StorageError } from '../core/errors.js';

export const ENOSPC = 28;
export const EOPNOTSUPP = 95;
const EDQUOT = 122;

/** @param result a negative errno, or a count of bytes that is shorter than asked for. */
export function diskError(result: number, what: string, path: string): StorageError {
  const errno = -result;
  // The queue retries short transfers; a write that stays short has filled the disk.
  const isShortWrite = what === 'write' && result >= 0;
  if (errno === ENOSPC || errno === EDQUOT || isShortWrite) {
    return new StorageError('NO_SPACE', `${what} ${path}: no space left on device`, {
      path,
      errno,
    });
  }
  const reason = result < 0 ? `errno ${errno}` : `only ${result} bytes`;
  return new StorageError('IO_ERROR', `${what} ${path} failed: ${reason}`, { path, result });
}

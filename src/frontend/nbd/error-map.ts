// The one place where failures become NBD error values (proto.md, "Error values").

import type { ErrorCode, ErrorKind, StorageError } from '../../core/errors.js';
import { NBD_COMMAND, NBD_ERROR, type NbdError } from '../../wire/nbd/constants.js';

const NBD_ERROR_OF_KIND = {
  request: NBD_ERROR.EINVAL,
  protocol: NBD_ERROR.EINVAL,
  resource: NBD_ERROR.ENOSPC,
  unavailable: NBD_ERROR.EIO,
  state: NBD_ERROR.EIO,
  corruption: NBD_ERROR.EIO,
} as const satisfies Record<ErrorKind, NbdError>;

/** Codes for which the protocol has a better word than their kind's. */
const NBD_ERROR_OF_CODE: Partial<Record<ErrorCode, NbdError>> = {
  READ_ONLY: NBD_ERROR.EPERM,
  CLOSED: NBD_ERROR.ESHUTDOWN,
};

/** @param command the NBD command that failed: a write beyond the end is ENOSPC, a read EINVAL. */
export function nbdErrorOf(error: StorageError, command: number): NbdError {
  if (error.code === 'OUT_OF_RANGE') return nbdRangeErrorOf(command);
  return NBD_ERROR_OF_CODE[error.code] ?? NBD_ERROR_OF_KIND[error.kind];
}

/** The answer to a range that ends past the device. */
export function nbdRangeErrorOf(command: number): NbdError {
  return altersData(command) ? NBD_ERROR.ENOSPC : NBD_ERROR.EINVAL;
}

export function altersData(command: number): boolean {
  return (
    command === NBD_COMMAND.write ||
    command === NBD_COMMAND.trim ||
    command === NBD_COMMAND.writeZeroes
  );
}

// The one map between this program's errors and gRPC statuses. Longhorn's clients expect UNKNOWN
// with an exact text for nearly every failure, so its services do not use the kinds; our own
// clients read the stable code from an extra trailer and never look at the text.

import {
  ERROR_KIND_OF_CODE,
  StorageError,
  type ErrorCode,
  type ErrorKind,
} from '../core/errors.js';
import { RPC_STATUS, RpcError, type RpcStatus } from './status.js';

/** Trailer with the code of a StorageError. Longhorn peers ignore it. */
export const ERROR_CODE_TRAILER = 'longhorn-error-code';

const STATUS_OF_KIND = {
  request: RPC_STATUS.INVALID_ARGUMENT,
  protocol: RPC_STATUS.INTERNAL,
  resource: RPC_STATUS.RESOURCE_EXHAUSTED,
  unavailable: RPC_STATUS.UNAVAILABLE,
  state: RPC_STATUS.FAILED_PRECONDITION,
  corruption: RPC_STATUS.DATA_LOSS,
} as const satisfies Record<ErrorKind, RpcStatus>;

/** Codes for which gRPC has a closer status than their kind's. */
const STATUS_OF_CODE: Partial<Record<ErrorCode, RpcStatus>> = {
  NOT_FOUND: RPC_STATUS.NOT_FOUND,
  ALREADY_EXISTS: RPC_STATUS.ALREADY_EXISTS,
  OUT_OF_RANGE: RPC_STATUS.OUT_OF_RANGE,
  UNSUPPORTED: RPC_STATUS.UNIMPLEMENTED,
  IDENTITY_MISMATCH: RPC_STATUS.FAILED_PRECONDITION,
  TIMEOUT: RPC_STATUS.DEADLINE_EXCEEDED,
  CANCELLED: RPC_STATUS.CANCELLED,
};

/** Chooses the status a service answers a StorageError with. */
export type StatusOfError = (error: StorageError) => RpcStatus;

/** For services of our own. */
export const statusByKind: StatusOfError = (error) =>
  STATUS_OF_CODE[error.code] ?? STATUS_OF_KIND[error.kind];

/** For Longhorn's services: a plain Go error arrives as UNKNOWN. */
export const statusUnknown: StatusOfError = () => RPC_STATUS.UNKNOWN;

/** What a failed handler answers. An error that is neither of ours is a bug: INTERNAL. */
export function toRpcError(error: unknown, statusOf: StatusOfError): RpcError {
  if (error instanceof RpcError) return error;
  if (error instanceof StorageError) {
    return new RpcError(statusOf(error), error.message, error.code, error);
  }
  const text = error instanceof Error ? error.message : String(error);
  return new RpcError(RPC_STATUS.INTERNAL, text, null, error);
}

const CODE_OF_STATUS: Partial<Record<RpcStatus, ErrorCode>> = {
  [RPC_STATUS.CANCELLED]: 'CANCELLED',
  [RPC_STATUS.DEADLINE_EXCEEDED]: 'TIMEOUT',
  [RPC_STATUS.UNAVAILABLE]: 'CONNECTION_LOST',
  [RPC_STATUS.UNIMPLEMENTED]: 'UNSUPPORTED',
};

/**
 * A failed call as a StorageError: the peer's own code when it sent one, else by status, else
 * PEER_ERROR. The status stays readable in details.status.
 */
export function storageErrorOfRpc(error: unknown): StorageError {
  if (error instanceof StorageError) return error;
  if (!(error instanceof RpcError)) {
    return new StorageError(
      'PEER_ERROR',
      error instanceof Error ? error.message : String(error),
      {},
      error,
    );
  }
  const code = error.code ?? CODE_OF_STATUS[error.status] ?? 'PEER_ERROR';
  return new StorageError(code, error.message, { status: error.status }, error);
}

/** The code in a trailer, or null for none or one that this version does not know. */
export function parseErrorCode(text: unknown): ErrorCode | null {
  return typeof text === 'string' && Object.hasOwn(ERROR_KIND_OF_CODE, text)
    ? (text as ErrorCode)
    : null;
}

// How a replica's failures look to the callers of ReplicaService. Longhorn's controller reads texts,
// so the texts are Longhorn's; the codes travel beside them for our own engine.

import { StorageError, toStorageError } from '../core/errors.js';
import { RPC_STATUS, RpcError } from '../rpc/status.js';

/** Longhorn's codes of a failed multi-step operation (its pkg/types/error.go). */
const ROLLBACK_CODE = {
  none: 'FunctionFailedWithoutRollback',
  succeeded: 'FunctionFailedRollbackSucceeded',
  failed: 'FunctionFailedRollbackFailed',
} as const;

function rollbackCode(error: StorageError): string {
  const outcome = error.details['rollback'];
  return outcome === 'succeeded' || outcome === 'failed'
    ? ROLLBACK_CODE[outcome]
    : ROLLBACK_CODE.none;
}

/** Longhorn's controller parses this text: INTERNAL with {code, message, rollbackMessage}. */
export function expandError(error: unknown): RpcError {
  const failure = toStorageError(error);
  const rollbackMessage = failure.details['rollbackMessage'];
  const text = JSON.stringify({
    code: rollbackCode(failure),
    message: failure.message,
    rollbackMessage: typeof rollbackMessage === 'string' ? rollbackMessage : '',
  });
  return new RpcError(RPC_STATUS.INTERNAL, text, failure.code, failure);
}

/** A request without what it needs, refused with Longhorn's text. */
export function invalidRequest(text: string): StorageError {
  return new StorageError('INVALID_ARGUMENT', text);
}

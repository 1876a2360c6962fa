// The error catalogue: every failure a user or a peer can cause has a stable code here and an
// entry in docs/errors.md (a test compares the two). The kind says what the caller must do, the
// code says what happened. Bugs are not errors: use core/assert.ts and crash.

/** What the caller should do about a failure; protocol error maps are keyed by it. */
export type ErrorKind =
  | 'request' // fix the request; the connection lives
  | 'protocol' // the peer does not speak the protocol; drop the connection
  | 'resource' // free or add space
  | 'unavailable' // retry or fail over
  | 'state' // re-read the state, then decide
  | 'corruption'; // fence the replica and alert

/** Code to kind. Add the code to docs/errors.md in the same commit. */
export const ERROR_KIND_OF_CODE = {
  // requests
  INVALID_ARGUMENT: 'request',
  NOT_ALIGNED: 'request',
  OUT_OF_RANGE: 'request',
  READ_ONLY: 'request',
  UNSUPPORTED: 'request',
  NOT_FOUND: 'request',
  ALREADY_EXISTS: 'request',
  UNSAFE_INTEGER: 'request',
  REQUEST_TOO_LARGE: 'request',
  INVALID_NAME: 'request',
  IDENTITY_MISMATCH: 'request',
  // wire
  BAD_MAGIC: 'protocol',
  BAD_FRAME: 'protocol',
  FRAME_TOO_LARGE: 'protocol',
  HANDSHAKE_FAILED: 'protocol',
  // resources
  NO_SPACE: 'resource',
  TOO_MANY_SNAPSHOTS: 'resource',
  SNAPSHOT_SPACE_EXCEEDED: 'resource',
  LIMIT_EXCEEDED: 'resource',
  // availability
  CONNECTION_LOST: 'unavailable',
  CONNECTION_REFUSED: 'unavailable',
  TIMEOUT: 'unavailable',
  NO_BACKEND: 'unavailable',
  PEER_ERROR: 'unavailable',
  ADDRESS_IN_USE: 'unavailable',
  IO_ERROR: 'unavailable',
  CANCELLED: 'unavailable',
  // states
  INVALID_STATE: 'state',
  BUSY: 'state',
  NOT_OPEN: 'state',
  FENCED: 'state',
  CLOSED: 'state',
  // data
  BAD_METADATA: 'corruption',
  CHAIN_BROKEN: 'corruption',
  CHAIN_TOO_LONG: 'corruption',
  IMAGE_TRUNCATED: 'corruption',
  CHECKSUM_MISMATCH: 'corruption',
  EXTENTS_UNSUPPORTED: 'request',
} as const satisfies Record<string, ErrorKind>;

export type ErrorCode = keyof typeof ERROR_KIND_OF_CODE;

export type ErrorDetails = Readonly<Record<string, unknown>>;

/** The one error class for failures that are not bugs. */
export class StorageError extends Error {
  readonly code: ErrorCode;
  readonly details: ErrorDetails;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'StorageError';
    this.code = code;
    this.details = details;
  }

  get kind(): ErrorKind {
    return ERROR_KIND_OF_CODE[this.code];
  }
}

/** Any thrown value as a StorageError; what is not one already becomes IO_ERROR. */
export function toStorageError(error: unknown, code: ErrorCode = 'IO_ERROR'): StorageError {
  if (error instanceof StorageError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new StorageError(code, message, {}, error);
}

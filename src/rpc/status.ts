// gRPC status codes and the error that carries one. Nothing here knows HTTP/2 or Longhorn. Never
// decide anything by the message of an error: read its status, or its code when one came along.

import type { ErrorCode } from '../core/errors.js';

/** gRPC doc/statuscodes.md. */
export const RPC_STATUS = {
  OK: 0,
  CANCELLED: 1,
  UNKNOWN: 2,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  OUT_OF_RANGE: 11,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  DATA_LOSS: 15,
  UNAUTHENTICATED: 16,
} as const;
export type RpcStatus = (typeof RPC_STATUS)[keyof typeof RPC_STATUS];

/** A call that did not end with OK. */
export class RpcError extends Error {
  readonly status: RpcStatus;
  /** Our own stable code, when the failing side is one of ours; null from a Longhorn peer. */
  readonly code: ErrorCode | null;

  constructor(status: RpcStatus, message: string, code: ErrorCode | null = null, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'RpcError';
    this.status = status;
    this.code = code;
  }
}

/** Value of a `grpc-status` header; anything but a known number is UNKNOWN, as the spec demands. */
export function parseStatus(text: string): RpcStatus {
  const value = /^\d{1,2}$/.test(text) ? Number(text) : -1;
  return value >= RPC_STATUS.OK && value <= RPC_STATUS.UNAUTHENTICATED
    ? (value as RpcStatus)
    : RPC_STATUS.UNKNOWN;
}

/** Status of a reply that has no `grpc-status`. gRPC doc/http-grpc-status-mapping.md. */
export function statusOfHttpStatus(httpStatus: number): RpcStatus {
  switch (httpStatus) {
    case 400:
      return RPC_STATUS.INTERNAL;
    case 401:
      return RPC_STATUS.UNAUTHENTICATED;
    case 403:
      return RPC_STATUS.PERMISSION_DENIED;
    case 404:
      return RPC_STATUS.UNIMPLEMENTED;
    case 429:
    case 502:
    case 503:
    case 504:
      return RPC_STATUS.UNAVAILABLE;
    default:
      return RPC_STATUS.UNKNOWN;
  }
}

/** Status of a stream that the peer reset. PROTOCOL-HTTP2.md, "HTTP2 Transport Mapping: Errors". */
export function statusOfReset(resetCode: number): RpcStatus {
  switch (resetCode) {
    case 7: // REFUSED_STREAM: the peer did nothing
      return RPC_STATUS.UNAVAILABLE;
    case 8: // CANCEL
      return RPC_STATUS.CANCELLED;
    case 11: // ENHANCE_YOUR_CALM
      return RPC_STATUS.RESOURCE_EXHAUSTED;
    case 12: // INADEQUATE_SECURITY
      return RPC_STATUS.PERMISSION_DENIED;
    default:
      return RPC_STATUS.INTERNAL;
  }
}

// What the system's error names mean for a data connection.

import { type ErrorCode, StorageError } from '../core/errors.js';

const CONNECT_CODE: Readonly<Record<string, ErrorCode>> = {
  ECONNREFUSED: 'CONNECTION_REFUSED',
  ENOENT: 'CONNECTION_REFUSED',
  EHOSTUNREACH: 'CONNECTION_REFUSED',
  ENETUNREACH: 'CONNECTION_REFUSED',
  ECONNRESET: 'CONNECTION_REFUSED',
  ETIMEDOUT: 'TIMEOUT',
  ENAMETOOLONG: 'INVALID_ARGUMENT',
  EINVAL: 'INVALID_ARGUMENT',
  EMFILE: 'LIMIT_EXCEEDED',
  ENFILE: 'LIMIT_EXCEEDED',
  ECANCELED: 'CANCELLED',
  ENOTFOUND: 'NOT_FOUND',
};

const LISTEN_CODE: Readonly<Record<string, ErrorCode>> = {
  EADDRINUSE: 'ADDRESS_IN_USE',
  EADDRNOTAVAIL: 'INVALID_ARGUMENT',
  ENAMETOOLONG: 'INVALID_ARGUMENT',
  EINVAL: 'INVALID_ARGUMENT',
  ENOENT: 'INVALID_ARGUMENT',
  ENOTDIR: 'INVALID_ARGUMENT',
  ENOTFOUND: 'NOT_FOUND',
  ECANCELED: 'CANCELLED',
};

/** @param name such as ECONNREFUSED; @param where address or path, for people. */
export function connectError(name: string, where: string): StorageError {
  const code = CONNECT_CODE[name] ?? 'IO_ERROR';
  return new StorageError(code, `cannot connect to ${where}: ${name}`, { errno: name, where });
}

export function listenError(name: string, where: string): StorageError {
  const code = LISTEN_CODE[name] ?? 'IO_ERROR';
  return new StorageError(code, `cannot listen on ${where}: ${name}`, { errno: name, where });
}

/** A connection ended by the network or the peer's death; ETIMEDOUT: keep-alive got no answer. */
export function lostError(name: string, peer: string): StorageError {
  return new StorageError('CONNECTION_LOST', `connection to ${peer} lost: ${name}`, {
    errno: name,
    peer,
  });
}

/** The peer ended its stream where more bytes had to follow. */
export function truncatedError(peer: string): StorageError {
  return new StorageError('CONNECTION_LOST', `${peer} closed in the middle of a payload`, { peer });
}

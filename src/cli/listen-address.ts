// Where a daemon listens: the text of --listen as host and port.

import { StorageError } from '../core/errors.js';

/** Parses HOST:PORT, [V6]:PORT or :PORT. @throws INVALID_ARGUMENT. */
export function parseListenAddress(text: string): { host: string; port: number } {
  const match = /^(?:\[([^\]]+)\]|([^:/]*)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (match === null || port > 65535) {
    throw new StorageError('INVALID_ARGUMENT', `'${text}' is not HOST:PORT`);
  }
  const host = match[1] ?? match[2] ?? '';
  return { host: host === '' ? '0.0.0.0' : host, port };
}

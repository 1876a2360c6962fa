// The query strings of ssync requests, both ways. Pure; it never trusts a number it parsed before
// checking its range, and never lets a file name leave the replica's directory.
// Source: data-protocol §5.

import { StorageError } from '../core/errors.js';
import { METHOD_OF_ACTION, ROUTE_PREFIX } from './constants.js';
import type { SyncAction } from './constants.js';

/** A half-open byte range `[beginOffset, endOffset)`. */
export interface Interval {
  readonly beginOffset: number;
  readonly endOffset: number;
}

export interface SyncRequest {
  readonly action: SyncAction;
  readonly parameters: URLSearchParams;
}

/** Path and query of a request; keys in alphabetical order, like Go's url.Values. */
export function requestPath(action: SyncAction, parameters: Record<string, string> = {}): string {
  const keys = Object.keys(parameters).sort();
  if (keys.length === 0) return ROUTE_PREFIX + action;
  const pairs = keys.map((key) => `${key}=${encodeURIComponent(parameters[key] ?? '')}`);
  return `${ROUTE_PREFIX}${action}?${pairs.join('&')}`;
}

export function intervalParameters(interval: Interval): Record<string, string> {
  return { begin: String(interval.beginOffset), end: String(interval.endOffset) };
}

/**
 * The request a path names, or null when there is no such route.
 * @throws UNSUPPORTED when the route exists with another method.
 */
export function parseRequest(method: string, path: string): SyncRequest | null {
  if (!path.startsWith(ROUTE_PREFIX)) return null;
  const queryAt = path.indexOf('?');
  const name = path.slice(ROUTE_PREFIX.length, queryAt === -1 ? path.length : queryAt);
  if (!Object.hasOwn(METHOD_OF_ACTION, name)) return null;
  const action = name as SyncAction;
  if (METHOD_OF_ACTION[action] !== method) {
    throw new StorageError('UNSUPPORTED', `${action} is a ${METHOD_OF_ACTION[action]} request`);
  }
  const query = queryAt === -1 ? '' : path.slice(queryAt + 1);
  return { action, parameters: new URLSearchParams(query) };
}

const DECIMAL = /^\d{1,16}$/;

function parseOffset(parameters: URLSearchParams, key: string): number {
  const text = parameters.get(key) ?? '';
  const value = DECIMAL.test(text) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(value)) {
    throw new StorageError('INVALID_ARGUMENT', `parameter ${key} is no byte offset: '${text}'`);
  }
  return value;
}

/** @throws INVALID_ARGUMENT unless 0 <= begin <= end <= 2^53 - 1. */
export function parseInterval(parameters: URLSearchParams): Interval {
  const beginOffset = parseOffset(parameters, 'begin');
  const endOffset = parseOffset(parameters, 'end');
  if (beginOffset > endOffset) {
    throw new StorageError('INVALID_ARGUMENT', `interval ${beginOffset}-${endOffset} is reversed`);
  }
  return { beginOffset, endOffset };
}

/** @throws INVALID_ARGUMENT unless the text is true or false. */
export function parseBoolean(parameters: URLSearchParams, key: string): boolean {
  const text = parameters.get(key);
  if (text === 'true') return true;
  if (text === 'false') return false;
  throw new StorageError('INVALID_ARGUMENT', `parameter ${key} is neither true nor false`);
}

const FILE_NAME_BYTES_MAX = 255;

/**
 * Checks that a name denotes a direct entry of the replica's directory.
 * @throws INVALID_NAME for separators, NUL, dot names and names no file system takes.
 */
export function checkFileName(name: string): void {
  const isPlain = name !== '' && name !== '.' && name !== '..' && !/[/\\\0]/.test(name);
  if (!isPlain || Buffer.byteLength(name) > FILE_NAME_BYTES_MAX) {
    throw new StorageError('INVALID_NAME', `'${name.slice(0, 64)}' is no file name`);
  }
}

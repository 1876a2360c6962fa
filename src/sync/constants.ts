// Names, limits and times of ssync, Longhorn's HTTP file transfer between sync agents. The routes
// and their parameters are shared with Go peers and must not change.
// Source: sparse-tools sparse/{client.go,rest/*.go} (data-protocol §5).

import { assert } from '../core/assert.js';
import { REQUEST_BYTES_MAX } from '../core/limits.js';
import { MIB, SECTOR_BYTES } from '../core/units.js';

export const ROUTE_PREFIX = '/v1-ssync/';

/** Action name to HTTP method. */
export const METHOD_OF_ACTION = {
  open: 'GET',
  sendHole: 'POST',
  writeData: 'POST',
  getChecksum: 'GET',
  getRecordedMetadata: 'GET',
  close: 'POST',
} as const satisfies Record<string, 'GET' | 'POST'>;
export type SyncAction = keyof typeof METHOD_OF_ACTION;

/** Largest data piece of one writeData or getChecksum (512 sectors). */
export const PIECE_BYTES_MAX = 2 * MIB;
/** Slab buffers that hold one piece. */
export const PIECE_BUFFERS = PIECE_BYTES_MAX / REQUEST_BYTES_MAX;
/** Pieces one sender has in flight. */
export const SENDER_WORKERS = 4;
/** Files a rebuild receives at a time; each takes a receiver's port. */
export const FILES_AT_ONCE = 4;
/** Pieces that one agent sends at a time, of all files together. */
export const PIECES_AT_ONCE_MAX = FILES_AT_ONCE * SENDER_WORKERS;
/** Extents asked of the file system at a time while a source is walked. */
export const LAYOUT_EXTENTS_MAX = 512;

/** A receiver without any request for this long stops. */
export const RECEIVER_IDLE_MS = 300_000;
/** A body that stops arriving for this long loses its connection, so that it frees its buffers. */
export const BODY_STALL_MS = 30_000;
/** Go senders open up to 100 connections. */
export const RECEIVER_CONNECTIONS_MAX = 128;

/** Default of --file-sync-http-client-timeout. */
export const REQUEST_TIMEOUT_MS = 5_000;
/** The receiver makes the file durable before it answers close; slow disks take their time. */
export const CLOSE_TIMEOUT_MS = 120_000;
/** Transport errors of open are retried this long: the receiver may still be starting. */
export const OPEN_RETRY_MS = 120_000;
export const OPEN_RETRY_PAUSE_MS = 1_000;
/** Attempts of any other request, the first included. */
export const REQUEST_ATTEMPTS_MAX = 6;
export const RETRY_BASE_MS = 2_000;
export const RETRY_MAX_MS = 30_000;
/** Longest answer a sender reads: an error text or a checksum record. */
export const ANSWER_BYTES_MAX = 64 * 1024;

/** Largest file received in buffered mode through memory; real ones (.meta) are below 2 KiB. */
export const STAGED_FILE_BYTES_MAX = MIB;

assert(PIECE_BYTES_MAX % REQUEST_BYTES_MAX === 0, 'a piece fills whole slab buffers');
assert(REQUEST_BYTES_MAX % SECTOR_BYTES === 0, 'slab buffers hold whole sectors');

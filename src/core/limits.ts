// Every limit of the data path in one place, with the relations between them asserted at load.

import { assert } from './assert.js';
import { KIB, MIB, SECTOR_BYTES } from './units.js';

/** Largest payload of one block request inside the engine; frontends split what is larger. */
export const REQUEST_BYTES_MAX = MIB;

/** Buffer classes of a process's slab: { size of a buffer, how many }. Untouched pages cost nothing. */
export const SLAB_CLASSES = [
  { bufferBytes: 4 * KIB, count: 2048 },
  { bufferBytes: 64 * KIB, count: 256 },
  { bufferBytes: MIB, count: 48 },
] as const;

/** Buffer that goes with a BLOCK_OP.extents request: 8,192 extents. */
export const EXTENTS_BUFFER_BYTES = 64 * KIB;

/** Receive buffer of one data connection; must hold a header and the largest copied payload. */
export const RECEIVE_BUFFER_BYTES = 256 * KIB;
/** Payloads at least this long are received straight into their own buffer, without a copy. */
export const DIRECT_RECEIVE_BYTES_MIN = 16 * KIB;
/** Memory for the headers of frames queued on one data connection. */
export const SEND_HEADER_BYTES = 64 * KIB;
/** Segments queued on one data connection before its owner must stop reading requests. */
export const SEND_SEGMENTS_MAX = 4096;
/** SO_SNDBUF and SO_RCVBUF of data connections (capped by the system's own limit). */
export const SOCKET_BUFFER_BYTES = 4 * MIB;
/** Data connections one listener serves at a time. */
export const CONNECTIONS_MAX = 64;
/** Requests in flight on one data connection before it stops being read. */
export const CONNECTION_REQUESTS_MAX = 512;

/** Largest option an NBD client may send during the handshake; a longer one ends the connection. */
export const NBD_OPTION_BYTES_MAX = 64 * KIB;
/** Options one NBD handshake may take. */
export const NBD_OPTIONS_MAX = 64;
/** An NBD client that has not finished its handshake by then is dropped. */
export const NBD_HANDSHAKE_TIMEOUT_MS = 10_000;
/** Metadata context queries in one NBD option. */
export const NBD_META_QUERIES_MAX = 64;
/** Largest READ and WRITE an NBD client may ask for; announced as the maximum block size. */
export const NBD_PAYLOAD_BYTES_MAX = 32 * MIB;
/** Payload memory one NBD connection may hold, so that a client that does not read cannot take all. */
export const NBD_CONNECTION_PAYLOAD_BYTES_MAX = 8 * MIB;
/** Parts of one large NBD request that are in flight together. */
export const NBD_PARTS_MAX = 4;
/** Longest range of one unmap or write-zeroes request; longer NBD requests are split. */
export const NBD_RANGE_PART_BYTES_MAX = 64 * MIB;

/** Longest image chain: Longhorn's MaximumTotalSnapshotCount. */
export const CHAIN_LAYERS_MAX = 250;
/** Default of --snapshot-max-count. */
export const SNAPSHOT_COUNT_MAX = 250;
/** Largest metadata file that is read; Longhorn's own are under 2 KiB. */
export const METADATA_BYTES_MAX = MIB;

/** Absent replicas a roster remembers; older ones come back by comparing. */
export const ROSTER_ABSENT_MAX = 8;
/** Ranges in each of an absent replica's two lists; finer ones are joined. */
export const ROSTER_RANGES_MAX = 256;

/** Replicas of one volume; fan-out masks are 32-bit. */
export const REPLICAS_MAX = 16;

for (const slabClass of SLAB_CLASSES) {
  assert(slabClass.bufferBytes % SECTOR_BYTES === 0, 'slab buffers are whole sectors');
  assert(slabClass.bufferBytes <= REQUEST_BYTES_MAX, 'no slab buffer exceeds a request');
}
assert(SLAB_CLASSES[2].bufferBytes === REQUEST_BYTES_MAX, 'the largest class holds any request');
assert(NBD_OPTION_BYTES_MAX < RECEIVE_BUFFER_BYTES / 2, 'an NBD option fits the receive buffer');
assert(
  NBD_CONNECTION_PAYLOAD_BYTES_MAX >= REQUEST_BYTES_MAX,
  'one part of an NBD request always fits the share of its connection',
);
assert(DIRECT_RECEIVE_BYTES_MIN < RECEIVE_BUFFER_BYTES, 'copied payloads fit the receive buffer');

// The engine-replica data protocol: little-endian frames with a 26-byte header, shared by the
// replica's data server, the engine's replica client and the `socket` frontend. Field layout and
// codes are Longhorn's (its dataconn package; liblonghorn's longhorn_rpc_protocol.h).

/** Header: u16 magic, u32 seq, u32 type, i64 offset, u32 size, u32 dataLength. No padding. */
export const FRAME_HEADER_BYTES = 26;
export const FRAME_MAGIC = 0x1b01;

export const FRAME_TYPE = {
  read: 0,
  write: 1,
  response: 2,
  error: 3,
  eof: 4,
  close: 5,
  ping: 6,
  unmap: 7,
  noSpace: 8,
  // Extensions of this project. A Go peer ignores unknown types without an answer, so each is
  // used only after the replica announced its capability over gRPC.
  /** Write that is durable before it is answered. Capability `write-fua`. */
  writeFua: 0x4c01,
  /** Everything answered before is durable. Capability `flush`. */
  flush: 0x4c02,
  /** Range reads zeros afterwards. Capability `write-zeroes`. */
  writeZeroes: 0x4c03,
  /** Response data: pairs of u32 lengthBytes, u32 extent flags. Capability `extents`. */
  extents: 0x4c04,
  /**
   * First frame of an engine: offset holds its generation. From here on the connection is served
   * only while that generation has the replica open. Capability `hello`.
   */
  hello: 0x4c05,
} as const;

/** Names of the extensions in the gRPC field Replica.capabilities. */
export const CAPABILITY = {
  flush: 'flush',
  writeFua: 'write-fua',
  writeZeroes: 'write-zeroes',
  extents: 'extents',
  hello: 'hello',
  /** Rosters, checkpoints and write intents over gRPC (docs/adr/0007-roster.md). */
  roster: 'roster',
  /** The sync agent copies single ranges of a file (SyncFileInfo.ranges). */
  ranges: 'ranges',
} as const;
export const ALL_CAPABILITIES: readonly string[] = Object.values(CAPABILITY);

/** Largest payload of one frame. Longhorn sets no limit; its tgt never sends more than this. */
export const FRAME_PAYLOAD_BYTES_MAX = 16 * 1024 * 1024;
/** Longest error text that is read or sent. */
export const FRAME_ERROR_TEXT_BYTES_MAX = 16 * 1024;

/** What Longhorn's peers search error texts for to recognise a full disk. */
export const NO_SPACE_TEXT = 'no space left on device';
/** In the error text for an engine that a newer one has superseded. */
export const SUPERSEDED_TEXT = 'is superseded by';
/** Text of a read that ends past the volume (Go's io.ErrUnexpectedEOF). */
export const UNEXPECTED_EOF_TEXT = 'unexpected EOF';

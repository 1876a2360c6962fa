// Numbers of the NBD protocol, each beside the section of proto.md (NetworkBlockDevice/nbd) that
// defines it. All integers on the wire are big-endian; 64-bit magics are given as two halves.

/** "NBDMAGIC". Section "Newstyle negotiation". */
export const NBD_INIT_MAGIC = { high: 0x4e42444d, low: 0x41474943 } as const;
/** "IHAVEOPT": second word of the greeting and first word of every option. Same section. */
export const NBD_OPTION_MAGIC = { high: 0x49484156, low: 0x454f5054 } as const;
/** First word of every option reply. Section "Fixed newstyle negotiation". */
export const NBD_OPTION_REPLY_MAGIC = { high: 0x0003e889, low: 0x045565a9 } as const;
/** Section "Request message". */
export const NBD_REQUEST_MAGIC = 0x25609513;
/** Section "Simple reply message". */
export const NBD_SIMPLE_REPLY_MAGIC = 0x67446698;
/** Section "Structured reply chunk message". */
export const NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef;

/** Magic, option, length. Section "Newstyle negotiation". */
export const NBD_OPTION_HEADER_BYTES = 16;
export const NBD_OPTION_REPLY_HEADER_BYTES = 20;
export const NBD_CLIENT_FLAGS_BYTES = 4;
export const NBD_REQUEST_BYTES = 28;
export const NBD_SIMPLE_REPLY_BYTES = 16;
export const NBD_CHUNK_HEADER_BYTES = 20;
/** The offset that precedes the data of an OFFSET_DATA chunk. */
export const NBD_CHUNK_OFFSET_BYTES = 8;
/** The context id that precedes the descriptors of a BLOCK_STATUS chunk. */
export const NBD_CHUNK_CONTEXT_BYTES = 4;
/** Error and message length of an ERROR chunk without a message. */
export const NBD_CHUNK_ERROR_BYTES = 6;
/** Zeroes after the reply to EXPORT_NAME unless NO_ZEROES was agreed. */
export const NBD_EXPORT_PADDING_BYTES = 124;
/** Section "Conventions": no string is longer. */
export const NBD_STRING_BYTES_MAX = 4096;
/** IANA's port for NBD. Section "Newstyle negotiation". */
export const NBD_DEFAULT_PORT = 10809;

/** Section "Handshake flags". */
export const NBD_HANDSHAKE_FLAG = { fixedNewstyle: 1 << 0, noZeroes: 1 << 1 } as const;

/** Section "Client flags"; the same bits as the handshake flags, in 32 bits. */
export const NBD_CLIENT_FLAG = { fixedNewstyle: 1 << 0, noZeroes: 1 << 1 } as const;

/** Section "Transmission flags". */
export const NBD_TRANSMISSION_FLAG = {
  hasFlags: 1 << 0,
  readOnly: 1 << 1,
  sendFlush: 1 << 2,
  sendFua: 1 << 3,
  rotational: 1 << 4,
  sendTrim: 1 << 5,
  sendWriteZeroes: 1 << 6,
  sendDf: 1 << 7,
  canMultiConn: 1 << 8,
  sendResize: 1 << 9,
  sendCache: 1 << 10,
  sendFastZero: 1 << 11,
} as const;

/** Section "Option types". */
export const NBD_OPTION = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
  extendedHeaders: 11,
} as const;

const ERROR_BIT = 0x8000_0000;

/** Section "Option reply types". */
export const NBD_OPTION_REPLY = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  errUnsupported: ERROR_BIT + 1,
  errPolicy: ERROR_BIT + 2,
  errInvalid: ERROR_BIT + 3,
  errPlatform: ERROR_BIT + 4,
  errTlsRequired: ERROR_BIT + 5,
  errUnknown: ERROR_BIT + 6,
  errShutdown: ERROR_BIT + 7,
  errBlockSizeRequired: ERROR_BIT + 8,
  errTooBig: ERROR_BIT + 9,
} as const;
export type NbdOptionReply = (typeof NBD_OPTION_REPLY)[keyof typeof NBD_OPTION_REPLY];

/** Section "Option reply types", NBD_REP_INFO. */
export const NBD_INFO = { export: 0, name: 1, description: 2, blockSize: 3 } as const;

/** Section "Request types". */
export const NBD_COMMAND = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
} as const;

/** Section "Command flags". */
export const NBD_COMMAND_FLAG = {
  fua: 1 << 0,
  noHole: 1 << 1,
  dontFragment: 1 << 2,
  requestOne: 1 << 3,
  fastZero: 1 << 4,
} as const;

/** Section "Structured reply flags". */
export const NBD_CHUNK_FLAG = { done: 1 << 0 } as const;

/** Section "Structured reply types". */
export const NBD_CHUNK = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  error: 0x8000 + 1,
  errorOffset: 0x8000 + 2,
} as const;

/** Section "Error values". */
export const NBD_ERROR = {
  none: 0,
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;
export type NbdError = (typeof NBD_ERROR)[keyof typeof NBD_ERROR];

/** Section "`base:allocation` metadata context". */
export const NBD_ALLOCATION_CONTEXT = 'base:allocation';
/** Wildcard that LIST_META_CONTEXT knows. Section "The `base:` metadata namespace". */
export const NBD_BASE_NAMESPACE = 'base:';
/** Our id for base:allocation; any number will do, clients treat it as opaque. */
export const NBD_ALLOCATION_CONTEXT_ID = 1;

/** Section "Block size constraints": what the server announces, except for the maximum. */
export const NBD_BLOCK_BYTES_MIN = 1;
export const NBD_BLOCK_BYTES_PREFERRED = 4096;

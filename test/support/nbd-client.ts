// The client's half of NBD for tests: builds options and requests, and takes replies apart. It is
// written from proto.md on its own, with numbers instead of the server's constants, so that a
// wrong constant there does not agree with itself here.

export const OPT = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structured: 8,
  listMeta: 9,
  setMeta: 10,
  extended: 11,
};
export const CMD = {
  read: 0,
  write: 1,
  disc: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  zeroes: 6,
  status: 7,
};
export const FLAG = { fua: 1, noHole: 2, df: 4, reqOne: 8, fastZero: 16 };

export function clientFlags(flags = 3): Buffer {
  return u32(flags);
}

export function option(type: number, data: Uint8Array = Buffer.alloc(0)): Buffer {
  return Buffer.concat([Buffer.from('IHAVEOPT'), u32(type), u32(data.byteLength), data]);
}

export function infoData(name: string, infoTypes: number[] = []): Buffer {
  return Buffer.concat([text(name), u16(infoTypes.length), ...infoTypes.map(u16)]);
}

export function metaData(name: string, queries: string[]): Buffer {
  return Buffer.concat([text(name), u32(queries.length), ...queries.map(text)]);
}

/** Client flags and options that enter transmission with structured replies and block status. */
export function structuredHandshake(name: string): Buffer {
  return Buffer.concat([
    clientFlags(),
    option(OPT.structured),
    option(OPT.setMeta, metaData(name, ['base:allocation'])),
    option(OPT.go, infoData(name)),
  ]);
}

export interface RequestFields {
  readonly command: number;
  readonly flags?: number;
  readonly cookie: number;
  readonly offset?: number | bigint;
  readonly length?: number;
  readonly payload?: Uint8Array;
}

export function request(fields: RequestFields): Buffer {
  const header = Buffer.alloc(28);
  header.writeUInt32BE(0x25609513, 0);
  header.writeUInt16BE(fields.flags ?? 0, 4);
  header.writeUInt16BE(fields.command, 6);
  header.writeBigUInt64BE(0xc0ffee00_00000000n + BigInt(fields.cookie), 8);
  header.writeBigUInt64BE(BigInt(fields.offset ?? 0), 16);
  header.writeUInt32BE(fields.length ?? fields.payload?.byteLength ?? 0, 24);
  return fields.payload === undefined ? header : Buffer.concat([header, fields.payload]);
}

export interface OptionReply {
  readonly option: number;
  readonly type: number;
  readonly data: Buffer;
}

/** Option replies up to the end of the bytes; throws on a bad magic or a cut reply. */
export function parseOptionReplies(bytes: Buffer): OptionReply[] {
  const replies: OptionReply[] = [];
  let at = 0;
  while (at < bytes.byteLength) {
    if (bytes.readBigUInt64BE(at) !== 0x3e889045565a9n) throw new Error('no reply magic');
    const dataBytes = bytes.readUInt32BE(at + 16);
    replies.push({
      option: bytes.readUInt32BE(at + 8),
      type: bytes.readUInt32BE(at + 12),
      data: bytes.subarray(at + 20, at + 20 + dataBytes),
    });
    at += 20 + dataBytes;
  }
  if (at !== bytes.byteLength) throw new Error('a reply was cut');
  return replies;
}

export interface Reply {
  readonly cookie: number;
  /** NBD error; 0 on success. */
  readonly error: number;
  readonly data: Buffer | null;
  /** Block status descriptors. */
  readonly extents: { length: number; flags: number }[] | null;
  readonly chunks: number;
}

/** What a client must remember of a read to understand a simple reply to it. */
export type ReadLengths = ReadonlyMap<number, { offset: number; length: number }>;

/** Takes transmission replies apart; throws when the bytes are no whole replies. */
export function parseReplies(bytes: Buffer, reads: ReadLengths, structured: boolean): Reply[] {
  const replies = new Map<number, Reply>();
  const finished: Reply[] = [];
  let at = 0;
  while (at < bytes.byteLength) {
    const magic = bytes.readUInt32BE(at);
    const cookie = Number(bytes.readBigUInt64BE(at + 8) - 0xc0ffee00_00000000n);
    const read = reads.get(cookie);
    if (magic === 0x67446698) {
      const error = bytes.readUInt32BE(at + 4);
      if (structured && read !== undefined) throw new Error('a simple reply to a read');
      const dataBytes = error === 0 ? (read?.length ?? 0) : 0;
      at += 16;
      const data = dataBytes > 0 ? bytes.subarray(at, at + dataBytes) : null;
      at += dataBytes;
      finished.push({ cookie, error, data, extents: null, chunks: 0 });
      continue;
    }
    if (magic !== 0x668e33ef || !structured) throw new Error(`no reply at ${at}`);
    const flags = bytes.readUInt16BE(at + 4);
    const type = bytes.readUInt16BE(at + 6);
    const length = bytes.readUInt32BE(at + 16);
    const payload = bytes.subarray(at + 20, at + 20 + length);
    if (payload.byteLength !== length) throw new Error('a chunk was cut');
    at += 20 + length;
    const before = replies.get(cookie) ?? {
      cookie,
      error: 0,
      data: read === undefined ? null : Buffer.alloc(read.length),
      extents: null,
      chunks: 0,
    };
    const after = {
      ...applyChunk(before, type, payload, read?.offset ?? 0),
      chunks: before.chunks + 1,
    };
    replies.set(cookie, after);
    if ((flags & 1) !== 0) {
      replies.delete(cookie);
      finished.push(after);
    }
  }
  if (at !== bytes.byteLength) throw new Error('a reply was cut');
  if (replies.size > 0) throw new Error('a structured reply has no end');
  return finished;
}

function applyChunk(reply: Reply, type: number, payload: Buffer, readOffset: number): Reply {
  switch (type) {
    case 0:
      return reply;
    case 1: {
      const offset = Number(payload.readBigUInt64BE(0)) - readOffset;
      reply.data?.set(payload.subarray(8), offset);
      return reply;
    }
    case 5: {
      const extents: { length: number; flags: number }[] = [];
      for (let at = 4; at < payload.byteLength; at += 8) {
        extents.push({ length: payload.readUInt32BE(at), flags: payload.readUInt32BE(at + 4) });
      }
      return { ...reply, extents };
    }
    case 0x8001:
      return { ...reply, error: payload.readUInt32BE(0), data: null };
    default:
      throw new Error(`chunk type ${type}`);
  }
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value);
  return Buffer.concat([u32(bytes.byteLength), bytes]);
}

function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

// Writes what an NBD server sends. Handshake messages are new byte arrays (a handful per
// connection); replies of the transmission phase are written straight into the view of the
// memory that is sent. Pure: nothing here knows a connection.

import { highHalf, lowHalf } from '../../core/units.js';
import {
  NBD_CHUNK,
  NBD_CHUNK_CONTEXT_BYTES,
  NBD_CHUNK_ERROR_BYTES,
  NBD_CHUNK_FLAG,
  NBD_CHUNK_OFFSET_BYTES,
  NBD_EXPORT_PADDING_BYTES,
  NBD_INFO,
  NBD_INIT_MAGIC,
  NBD_OPTION_MAGIC,
  NBD_OPTION_REPLY,
  NBD_OPTION_REPLY_HEADER_BYTES,
  NBD_OPTION_REPLY_MAGIC,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_MAGIC,
  type NbdError,
  type NbdOptionReply,
} from './constants.js';

const utf8 = new TextEncoder();
const NO_DATA = new Uint8Array(0);

/** Section "Newstyle negotiation": the server's first 18 bytes. */
export function encodeGreeting(handshakeFlags: number): Uint8Array {
  const bytes = new Uint8Array(18);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, NBD_INIT_MAGIC.high);
  view.setUint32(4, NBD_INIT_MAGIC.low);
  view.setUint32(8, NBD_OPTION_MAGIC.high);
  view.setUint32(12, NBD_OPTION_MAGIC.low);
  view.setUint16(16, handshakeFlags);
  return bytes;
}

/** Section "Fixed newstyle negotiation". */
export function encodeOptionReply(
  option: number,
  reply: NbdOptionReply,
  data: Uint8Array = NO_DATA,
): Uint8Array {
  const bytes = new Uint8Array(NBD_OPTION_REPLY_HEADER_BYTES + data.byteLength);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, NBD_OPTION_REPLY_MAGIC.high);
  view.setUint32(4, NBD_OPTION_REPLY_MAGIC.low);
  view.setUint32(8, option);
  view.setUint32(12, reply);
  view.setUint32(16, data.byteLength);
  bytes.set(data, NBD_OPTION_REPLY_HEADER_BYTES);
  return bytes;
}

/** An error reply; the message is for people. */
export function encodeOptionError(
  option: number,
  reply: NbdOptionReply,
  message: string,
): Uint8Array {
  return encodeOptionReply(option, reply, utf8.encode(message));
}

/** One entry of LIST. */
export function encodeServerReply(option: number, name: string, description: string): Uint8Array {
  const nameBytes = utf8.encode(name);
  const data = joinBytes([new Uint8Array(4), nameBytes, utf8.encode(description)]);
  new DataView(data.buffer).setUint32(0, nameBytes.byteLength);
  return encodeOptionReply(option, NBD_OPTION_REPLY.server, data);
}

export function encodeInfoExport(
  option: number,
  sizeBytes: number,
  transmissionFlags: number,
): Uint8Array {
  const data = new Uint8Array(12);
  const view = new DataView(data.buffer);
  view.setUint16(0, NBD_INFO.export);
  setU64(view, 2, sizeBytes);
  view.setUint16(10, transmissionFlags);
  return encodeOptionReply(option, NBD_OPTION_REPLY.info, data);
}

/** NBD_INFO_NAME or NBD_INFO_DESCRIPTION. */
export function encodeInfoText(option: number, infoType: number, text: string): Uint8Array {
  const data = joinBytes([new Uint8Array(2), utf8.encode(text)]);
  new DataView(data.buffer).setUint16(0, infoType);
  return encodeOptionReply(option, NBD_OPTION_REPLY.info, data);
}

export function encodeInfoBlockSize(
  option: number,
  minimumBytes: number,
  preferredBytes: number,
  maximumBytes: number,
): Uint8Array {
  const data = new Uint8Array(14);
  const view = new DataView(data.buffer);
  view.setUint16(0, NBD_INFO.blockSize);
  view.setUint32(2, minimumBytes);
  view.setUint32(6, preferredBytes);
  view.setUint32(10, maximumBytes);
  return encodeOptionReply(option, NBD_OPTION_REPLY.info, data);
}

export function encodeMetaContextReply(option: number, id: number, name: string): Uint8Array {
  const data = joinBytes([new Uint8Array(4), utf8.encode(name)]);
  new DataView(data.buffer).setUint32(0, id);
  return encodeOptionReply(option, NBD_OPTION_REPLY.metaContext, data);
}

/** The answer to EXPORT_NAME, which has no header. Section "Newstyle negotiation". */
export function encodeExportNameReply(
  sizeBytes: number,
  transmissionFlags: number,
  withPadding: boolean,
): Uint8Array {
  const bytes = new Uint8Array(10 + (withPadding ? NBD_EXPORT_PADDING_BYTES : 0));
  const view = new DataView(bytes.buffer);
  setU64(view, 0, sizeBytes);
  view.setUint16(8, transmissionFlags);
  return bytes;
}

/** Section "Simple reply message"; NBD_SIMPLE_REPLY_BYTES at the position. */
export function writeSimpleReply(
  view: DataView,
  position: number,
  error: NbdError,
  cookieHigh: number,
  cookieLow: number,
): void {
  view.setUint32(position, NBD_SIMPLE_REPLY_MAGIC);
  view.setUint32(position + 4, error);
  view.setUint32(position + 8, cookieHigh);
  view.setUint32(position + 12, cookieLow);
}

/** Section "Structured reply chunk message": NBD_CHUNK_HEADER_BYTES at the position. */
function writeChunkHeader(
  view: DataView,
  position: number,
  flags: number,
  type: number,
  cookieHigh: number,
  cookieLow: number,
  payloadBytes: number,
): void {
  view.setUint32(position, NBD_STRUCTURED_REPLY_MAGIC);
  view.setUint16(position + 4, flags);
  view.setUint16(position + 6, type);
  view.setUint32(position + 8, cookieHigh);
  view.setUint32(position + 12, cookieLow);
  view.setUint32(position + 16, payloadBytes);
}

/** Header of an OFFSET_DATA chunk; dataBytes of content follow it. 28 bytes at the position. */
export function writeDataChunkHeader(
  view: DataView,
  position: number,
  isLast: boolean,
  cookieHigh: number,
  cookieLow: number,
  offsetBytes: number,
  dataBytes: number,
): void {
  const flags = isLast ? NBD_CHUNK_FLAG.done : 0;
  const payloadBytes = NBD_CHUNK_OFFSET_BYTES + dataBytes;
  writeChunkHeader(
    view,
    position,
    flags,
    NBD_CHUNK.offsetData,
    cookieHigh,
    cookieLow,
    payloadBytes,
  );
  setU64(view, position + 20, offsetBytes);
}

/** Header of the only BLOCK_STATUS chunk; the descriptors follow it. 24 bytes at the position. */
export function writeBlockStatusHeader(
  view: DataView,
  position: number,
  cookieHigh: number,
  cookieLow: number,
  contextId: number,
  descriptorBytes: number,
): void {
  const { done } = NBD_CHUNK_FLAG;
  const payloadBytes = NBD_CHUNK_CONTEXT_BYTES + descriptorBytes;
  writeChunkHeader(
    view,
    position,
    done,
    NBD_CHUNK.blockStatus,
    cookieHigh,
    cookieLow,
    payloadBytes,
  );
  view.setUint32(position + 20, contextId);
}

/** A final ERROR chunk without a message. 26 bytes at the position. */
export function writeErrorChunk(
  view: DataView,
  position: number,
  error: NbdError,
  cookieHigh: number,
  cookieLow: number,
): void {
  const { done } = NBD_CHUNK_FLAG;
  writeChunkHeader(
    view,
    position,
    done,
    NBD_CHUNK.error,
    cookieHigh,
    cookieLow,
    NBD_CHUNK_ERROR_BYTES,
  );
  view.setUint32(position + 20, error);
  view.setUint16(position + 24, 0);
}

export function joinBytes(parts: readonly Uint8Array[]): Uint8Array {
  const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.byteLength, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.byteLength;
  }
  return joined;
}

function setU64(view: DataView, position: number, value: number): void {
  view.setUint32(position, highHalf(value));
  view.setUint32(position + 4, lowHalf(value));
}

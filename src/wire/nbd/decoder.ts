// Reads what an NBD client sends: options of the handshake and request headers. Pure: bytes in,
// values out. Lengths that the peer claims are compared with what is there before anything is
// allocated; a malformed option gives null, never an exception.

import { NBD_META_QUERIES_MAX } from '../../core/limits.js';
import {
  NBD_OPTION_HEADER_BYTES,
  NBD_OPTION_MAGIC,
  NBD_REQUEST_MAGIC,
  NBD_STRING_BYTES_MAX,
} from './constants.js';

/** Section "Newstyle negotiation": a header whose data has not been looked at. */
export interface NbdOptionHeader {
  readonly hasMagic: boolean;
  readonly option: number;
  readonly dataBytes: number;
}

/** @param bytes at least NBD_OPTION_HEADER_BYTES long. */
export function decodeOptionHeader(bytes: Uint8Array): NbdOptionHeader {
  const view = viewOf(bytes.subarray(0, NBD_OPTION_HEADER_BYTES));
  return {
    hasMagic:
      view.getUint32(0) === NBD_OPTION_MAGIC.high && view.getUint32(4) === NBD_OPTION_MAGIC.low,
    option: view.getUint32(8),
    dataBytes: view.getUint32(12),
  };
}

/** Data of INFO and GO. Section "Option types". */
export interface NbdInfoRequest {
  readonly exportName: string;
  readonly infoTypes: readonly number[];
}

/** @returns null when malformed. */
export function decodeInfoRequest(data: Uint8Array): NbdInfoRequest | null {
  const reader = new OptionReader(data);
  const exportName = reader.string();
  const count = reader.u16();
  if (exportName === null || count === null || reader.remaining !== count * 2) return null;
  const infoTypes: number[] = [];
  for (let i = 0; i < count; i++) infoTypes.push(reader.u16() as number);
  return { exportName, infoTypes };
}

/** Data of LIST_META_CONTEXT and SET_META_CONTEXT. Section "Option types". */
export interface NbdMetaContextRequest {
  readonly exportName: string;
  readonly queries: readonly string[];
}

/** @returns null when malformed, 'tooMany' above NBD_META_QUERIES_MAX queries. */
export function decodeMetaContextRequest(
  data: Uint8Array,
): NbdMetaContextRequest | 'tooMany' | null {
  const reader = new OptionReader(data);
  const exportName = reader.string();
  const count = reader.u32();
  if (exportName === null || count === null) return null;
  if (count > NBD_META_QUERIES_MAX) return 'tooMany';
  const queries: string[] = [];
  for (let i = 0; i < count; i++) {
    const query = reader.string();
    if (query === null) return null;
    queries.push(query);
  }
  return reader.remaining === 0 ? { exportName, queries } : null;
}

/**
 * A string of the protocol: UTF-8 without NUL, at most NBD_STRING_BYTES_MAX bytes.
 * @returns null when it is none. Section "Conventions".
 */
export function decodeString(bytes: Uint8Array): string | null {
  if (bytes.byteLength > NBD_STRING_BYTES_MAX || bytes.includes(0)) return null;
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null; // not UTF-8
  }
}

class OptionReader {
  private readonly data: Uint8Array;
  private readonly view: DataView;
  private at = 0;

  constructor(data: Uint8Array) {
    this.data = data;
    this.view = viewOf(data);
  }

  get remaining(): number {
    return this.data.byteLength - this.at;
  }

  u16(): number | null {
    if (this.remaining < 2) return null;
    this.at += 2;
    return this.view.getUint16(this.at - 2);
  }

  u32(): number | null {
    if (this.remaining < 4) return null;
    this.at += 4;
    return this.view.getUint32(this.at - 4);
  }

  /** A 32-bit length and that many bytes of string. */
  string(): string | null {
    const lengthBytes = this.u32();
    if (lengthBytes === null || lengthBytes > this.remaining) return null;
    this.at += lengthBytes;
    return decodeString(this.data.subarray(this.at - lengthBytes, this.at));
  }
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** A request's fixed fields, reused for each request. Section "Request message". */
export class NbdRequestHeader {
  flags = 0;
  command = 0;
  cookieHigh = 0;
  cookieLow = 0;
  offsetHigh = 0;
  offsetLow = 0;
  lengthBytes = 0;

  /** Reads NBD_REQUEST_BYTES at a position of the view; false when they do not start a request. */
  decode(view: DataView, position: number): boolean {
    if (view.getUint32(position) !== NBD_REQUEST_MAGIC) return false;
    this.flags = view.getUint16(position + 4);
    this.command = view.getUint16(position + 6);
    this.cookieHigh = view.getUint32(position + 8);
    this.cookieLow = view.getUint32(position + 12);
    this.offsetHigh = view.getUint32(position + 16);
    this.offsetLow = view.getUint32(position + 20);
    this.lengthBytes = view.getUint32(position + 24);
    return true;
  }
}

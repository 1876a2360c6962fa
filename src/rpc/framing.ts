// The parts of "gRPC over HTTP/2" that are plain bytes and text: length-prefixed messages, the
// grpc-timeout header and the percent-encoded grpc-message header. Pure: no stream, no clock. A
// length is checked before anything of that length is buffered.
// Source: grpc/grpc doc/PROTOCOL-HTTP2.md.

import { RPC_STATUS, RpcError } from './status.js';

/** One byte of flags, then a big-endian u32 length. */
export const MESSAGE_PREFIX_BYTES = 5;
/** Largest message accepted unless a server or channel says otherwise; gRPC's usual default. */
export const MESSAGE_BYTES_MAX = 4 * 1024 * 1024;

const COMPRESSED_FLAG = 1;

/** A message with its prefix. */
export function frameMessage(payload: Uint8Array): Buffer {
  const frame = Buffer.allocUnsafe(MESSAGE_PREFIX_BYTES + payload.length);
  frame[0] = 0;
  frame.writeUInt32BE(payload.length, 1);
  frame.set(payload, MESSAGE_PREFIX_BYTES);
  return frame;
}

/** Cuts a stream of bytes into messages. */
export class MessageDecoder {
  private readonly messageBytesMax: number;
  private readonly prefix = Buffer.alloc(MESSAGE_PREFIX_BYTES);
  private prefixFill = 0;
  /** The message being filled, or null while its prefix is incomplete. */
  private message: Buffer | null = null;
  private messageFill = 0;

  constructor(messageBytesMax: number) {
    this.messageBytesMax = messageBytesMax;
  }

  /** True between messages. */
  get isAtBoundary(): boolean {
    return this.message === null && this.prefixFill === 0;
  }

  /**
   * Takes bytes, returns the messages they complete.
   * @throws RpcError RESOURCE_EXHAUSTED (too long) or INTERNAL (compressed, bad flags).
   */
  push(chunk: Uint8Array): Buffer[] {
    const messages: Buffer[] = [];
    let at = 0;
    while (at < chunk.length || this.message?.length === 0) {
      if (this.message === null) {
        const take = Math.min(MESSAGE_PREFIX_BYTES - this.prefixFill, chunk.length - at);
        this.prefix.set(chunk.subarray(at, at + take), this.prefixFill);
        this.prefixFill += take;
        at += take;
        if (this.prefixFill === MESSAGE_PREFIX_BYTES) this.beginMessage();
        continue;
      }
      const take = Math.min(this.message.length - this.messageFill, chunk.length - at);
      this.message.set(chunk.subarray(at, at + take), this.messageFill);
      this.messageFill += take;
      at += take;
      if (this.messageFill === this.message.length) {
        messages.push(this.message);
        this.message = null;
        this.prefixFill = 0;
      }
    }
    return messages;
  }

  private beginMessage(): void {
    const flags = this.prefix[0];
    const lengthBytes = this.prefix.readUInt32BE(1);
    if (flags === COMPRESSED_FLAG) {
      throw new RpcError(RPC_STATUS.INTERNAL, 'compressed message without a grpc-encoding');
    }
    if (flags !== 0) {
      throw new RpcError(RPC_STATUS.INTERNAL, `unknown message flags ${flags}`, 'BAD_FRAME');
    }
    if (lengthBytes > this.messageBytesMax) {
      throw new RpcError(
        RPC_STATUS.RESOURCE_EXHAUSTED,
        `received message larger than max (${lengthBytes} vs. ${this.messageBytesMax})`,
        'REQUEST_TOO_LARGE',
      );
    }
    this.message = Buffer.allocUnsafe(lengthBytes);
    this.messageFill = 0;
  }
}

const TIMEOUT_UNIT_MS: Record<string, number> = {
  H: 3_600_000,
  M: 60_000,
  S: 1000,
  m: 1,
  u: 1e-3,
  n: 1e-6,
};
/** Digits allowed in a grpc-timeout. */
const TIMEOUT_VALUE_MAX = 99_999_999;

/** Milliseconds of a grpc-timeout header, or null when it is malformed. */
export function parseTimeoutMs(text: string): number | null {
  const match = /^(\d{1,8})([HMSmun])$/.exec(text);
  const unitMs = TIMEOUT_UNIT_MS[match?.[2] ?? ''];
  return match === null || unitMs === undefined ? null : Number(match[1]) * unitMs;
}

/** The grpc-timeout header for a wait; never shorter than the wait. */
export function formatTimeout(timeoutMs: number): string {
  const wholeMs = Math.max(0, Math.ceil(timeoutMs));
  if (wholeMs <= TIMEOUT_VALUE_MAX) return `${wholeMs}m`;
  return `${Math.min(Math.ceil(wholeMs / 1000), TIMEOUT_VALUE_MAX)}S`;
}

/** Node's timers fire at once when asked for more than this; 24 days are as good as never. */
const TIMER_MS_MAX = 0x7fff_ffff;

/** A wait as a timer can keep it. */
export function timerMs(timeoutMs: number): number {
  return Math.min(Math.max(0, timeoutMs), TIMER_MS_MAX);
}

/** Longest text put into a header: peers limit the size of all headers together. */
const STATUS_TEXT_MAX = 4096;

/** Value of grpc-message: UTF-8 with everything but printable ASCII percent-encoded. */
export function encodeStatusText(text: string): string {
  const short = text.length > STATUS_TEXT_MAX ? `${text.slice(0, STATUS_TEXT_MAX)}...` : text;
  let encoded = '';
  for (const byte of Buffer.from(short, 'utf8')) {
    const isPlain = byte >= 0x20 && byte <= 0x7e && byte !== 0x25;
    encoded += isPlain
      ? String.fromCharCode(byte)
      : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`;
  }
  return encoded;
}

/** Text of a grpc-message header. Broken escapes stay as they are: the text is for people. */
export function decodeStatusText(encoded: string): string {
  if (!encoded.includes('%')) return encoded;
  const bytes: number[] = [];
  for (let i = 0; i < encoded.length; i++) {
    const hex = /^%([0-9a-fA-F]{2})/.exec(encoded.slice(i, i + 3));
    if (hex === null) {
      bytes.push(encoded.charCodeAt(i) & 0xff);
      continue;
    }
    bytes.push(Number.parseInt(hex[1] as string, 16));
    i += 2;
  }
  return Buffer.from(bytes).toString('utf8');
}

// The client's half of the data protocol on a Node socket, for tests. It is written from the
// protocol's facts with numbers of its own, so that a wrong constant in the product does not agree
// with itself here.

import { connect, type Socket } from 'node:net';

export const TYPE = {
  read: 0,
  write: 1,
  response: 2,
  error: 3,
  eof: 4,
  close: 5,
  ping: 6,
  unmap: 7,
  noSpace: 8,
} as const;

const HEADER_BYTES = 26;
const MAGIC = 0x1b01;

export interface FrameFields {
  readonly seq: number;
  readonly type: number;
  readonly offset?: number | bigint;
  readonly size?: number;
  readonly data?: Uint8Array;
  readonly magic?: number;
  /** What the header says of the data; default its real length. */
  readonly dataBytes?: number;
}

export function frame(fields: FrameFields): Buffer {
  const data = fields.data ?? Buffer.alloc(0);
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt16LE(fields.magic ?? MAGIC, 0);
  header.writeUInt32LE(fields.seq, 2);
  header.writeUInt32LE(fields.type, 6);
  header.writeBigInt64LE(BigInt(fields.offset ?? 0), 10);
  header.writeUInt32LE(fields.size ?? data.byteLength, 18);
  header.writeUInt32LE(fields.dataBytes ?? data.byteLength, 22);
  return Buffer.concat([header, data]);
}

export interface Frame {
  readonly seq: number;
  readonly type: number;
  readonly offset: bigint;
  readonly size: number;
  readonly data: Buffer;
  /** The whole frame as it came. */
  readonly bytes: Buffer;
}

/** Whole frames at the begin of the stream; `restBytes` counts what follows them. */
export function parseFrames(stream: Buffer): { frames: Frame[]; restBytes: number } {
  const frames: Frame[] = [];
  let at = 0;
  while (stream.byteLength - at >= HEADER_BYTES) {
    const end = at + HEADER_BYTES + stream.readUInt32LE(at + 22);
    if (end > stream.byteLength) break;
    frames.push({
      seq: stream.readUInt32LE(at + 2),
      type: stream.readUInt32LE(at + 6),
      offset: stream.readBigInt64LE(at + 10),
      size: stream.readUInt32LE(at + 18),
      data: stream.subarray(at + HEADER_BYTES, end),
      bytes: stream.subarray(at, end),
    });
    at = end;
  }
  return { frames, restBytes: stream.byteLength - at };
}

export class FrameClient {
  readonly socket: Socket;
  /** Every frame received, in order. */
  readonly frames: Frame[] = [];
  /** Resolves at the end of the connection, however it ended. */
  readonly ended: Promise<void>;
  private rest = Buffer.alloc(0);
  private hasEnded = false;
  private waiters: (() => void)[] = [];

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on('error', () => undefined);
    socket.on('data', (chunk: Buffer) => {
      this.rest = Buffer.concat([this.rest, chunk]);
      const { frames, restBytes } = parseFrames(this.rest);
      this.frames.push(...frames);
      this.rest = this.rest.subarray(this.rest.byteLength - restBytes);
      this.wake();
    });
    this.ended = new Promise((resolve) => {
      socket.on('close', () => {
        this.hasEnded = true;
        this.wake();
        resolve();
      });
    });
  }

  static connect(where: { path: string } | { port: number }): Promise<FrameClient> {
    return new Promise((resolve, reject) => {
      const socket = connect({ ...where, allowHalfOpen: false }, () => {
        resolve(new FrameClient(socket));
      });
      socket.once('error', reject);
    });
  }

  write(bytes: Uint8Array): void {
    this.socket.write(bytes);
  }

  /** The first answer with this sequence number. @throws when the connection ends before. */
  async answer(seq: number): Promise<Frame> {
    for (;;) {
      const found = this.frames.find((candidate) => candidate.seq === seq);
      if (found !== undefined) return found;
      if (this.hasEnded) throw new Error(`the connection ended before the answer to ${seq}`);
      await new Promise<void>((resolve) => this.waiters.push(resolve));
    }
  }

  /** Sends one request and waits for its answer. */
  async request(fields: FrameFields): Promise<Frame> {
    this.write(frame(fields));
    return this.answer(fields.seq);
  }

  destroy(): void {
    this.socket.destroy();
  }

  private wake(): void {
    const { waiters } = this;
    this.waiters = [];
    for (const resolve of waiters) resolve();
  }
}

// An NBD client on a Node socket: writes bytes and waits for a number of bytes to come back.

import { connect, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';

export class RawClient {
  readonly stream: Duplex;
  /** Resolves when the connection has ended, for whatever reason. */
  readonly closed: Promise<void>;
  private received = Buffer.alloc(0);
  private wake: (() => void) | null = null;
  private isClosed = false;

  constructor(stream: Duplex) {
    this.stream = stream;
    stream.on('data', (chunk: Buffer) => {
      this.received = Buffer.concat([this.received, chunk]);
      this.wake?.();
    });
    stream.on('error', () => undefined);
    this.closed = new Promise((resolve) => {
      stream.on('close', () => {
        this.isClosed = true;
        this.wake?.();
        resolve();
      });
    });
  }

  static async connect(where: { path: string } | { port: number }): Promise<RawClient> {
    const socket: Socket = await new Promise((resolve, reject) => {
      const dialed = connect(where, () => resolve(dialed));
      dialed.once('error', reject);
    });
    return new RawClient(socket);
  }

  write(bytes: Uint8Array): void {
    this.stream.write(bytes);
  }

  /** The next count bytes; throws when the connection ends before. */
  async read(count: number): Promise<Buffer> {
    while (this.received.byteLength < count) {
      if (this.isClosed) throw new Error('the connection ended');
      await new Promise<void>((resolve) => (this.wake = resolve));
    }
    const bytes = this.received.subarray(0, count);
    this.received = this.received.subarray(count);
    return bytes;
  }

  /** The next option reply. */
  async readOptionReply(): Promise<{ type: number; data: Buffer }> {
    const header = await this.read(20);
    const data = await this.read(header.readUInt32BE(16));
    return { type: header.readUInt32BE(12), data };
  }

  destroy(): void {
    this.stream.destroy();
  }
}

// An NBD client that keeps many requests in flight and tells exactly what became of each: answered,
// refused with an error, or never answered because the connection ended. Simple replies only.

import { connect, type Socket } from 'node:net';
import { CMD, clientFlags, FLAG, infoData, OPT, option, request } from '../support/nbd-client.js';

const HANDSHAKE_BYTES = 18;
const OPTION_REPLY_BYTES = 20;
const REPLY_ACK = 1;
const REPLY_INFO = 3;
const COOKIE_BASE = 0xc0ffee00_00000000n;

/** The server answered with an NBD error number. */
export class Refused extends Error {
  readonly errno: number;

  constructor(errno: number) {
    super(`the server answered with error ${errno}`);
    this.errno = errno;
  }
}

/** Nobody knows what became of the request. */
export class Unanswered extends Error {}

interface Pending {
  readonly readBytes: number;
  resolve(data: Buffer): void;
  reject(error: Error): void;
}

export class VolumeClient {
  private readonly socket: Socket;
  private readonly pending = new Map<number, Pending>();
  private received: Buffer = Buffer.alloc(0);
  private cookie = 0;
  private isReady = false;
  private onReady: () => void = () => undefined;
  private onEnd: () => void = () => undefined;
  private hasEnded = false;

  /** @throws when the server is not there or refuses the export. */
  static async connect(path: string, exportName: string): Promise<VolumeClient> {
    const socket = connect({ path });
    const client = new VolumeClient(socket);
    await new Promise<void>((resolve, reject) => {
      client.onReady = resolve;
      client.onEnd = () => reject(new Unanswered('the connection ended during the handshake'));
      socket.write(Buffer.concat([clientFlags(), option(OPT.go, infoData(exportName))]));
    });
    return client;
  }

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on('error', () => undefined);
    socket.on('data', (chunk: Buffer) => {
      this.received = this.received.length === 0 ? chunk : Buffer.concat([this.received, chunk]);
      this.take();
    });
    socket.on('close', () => {
      this.hasEnded = true;
      const all = [...this.pending.values()];
      this.pending.clear();
      for (const each of all) each.reject(new Unanswered('the connection ended'));
      this.onEnd();
    });
  }

  async write(offset: number, payload: Buffer, isFua = false): Promise<void> {
    await this.ask(CMD.write, { offset, payload, flags: isFua ? FLAG.fua : 0 });
  }

  async zero(offset: number, length: number): Promise<void> {
    await this.ask(CMD.zeroes, { offset, length });
  }

  read(offset: number, length: number): Promise<Buffer> {
    return this.ask(CMD.read, { offset, length });
  }

  async flush(): Promise<void> {
    await this.ask(CMD.flush, {});
  }

  close(): void {
    this.socket.destroy();
  }

  private ask(
    command: number,
    fields: { offset?: number; length?: number; payload?: Buffer; flags?: number },
  ): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      if (this.hasEnded) {
        reject(new Unanswered('the connection has ended'));
        return;
      }
      const cookie = ++this.cookie;
      const readBytes = command === CMD.read ? (fields.length ?? 0) : 0;
      this.pending.set(cookie, { readBytes, resolve, reject });
      this.socket.write(request({ command, cookie, ...fields }));
    });
  }

  private take(): void {
    if (!this.isReady && !this.takeHandshake()) return;
    let at = 0;
    while (this.received.length - at >= 16) {
      if (this.received.readUInt32BE(at) !== 0x67446698) throw new Error('no simple reply');
      const errno = this.received.readUInt32BE(at + 4);
      const cookie = Number(this.received.readBigUInt64BE(at + 8) - COOKIE_BASE);
      const pending = this.pending.get(cookie);
      if (pending === undefined) throw new Error(`an answer to nothing: ${cookie}`);
      const dataBytes = errno === 0 ? pending.readBytes : 0;
      if (this.received.length - at < 16 + dataBytes) break;
      this.pending.delete(cookie);
      if (errno === 0) {
        pending.resolve(Buffer.from(this.received.subarray(at + 16, at + 16 + dataBytes)));
      } else pending.reject(new Refused(errno));
      at += 16 + dataBytes;
    }
    this.received = this.received.subarray(at);
  }

  /** @returns true when transmission begins. */
  private takeHandshake(): boolean {
    let at = HANDSHAKE_BYTES;
    while (this.received.length - at >= OPTION_REPLY_BYTES) {
      const type = this.received.readUInt32BE(at + 12);
      const end = at + OPTION_REPLY_BYTES + this.received.readUInt32BE(at + 16);
      if (end > this.received.length) return false;
      at = end;
      if (type === REPLY_INFO) continue;
      if (type !== REPLY_ACK) this.socket.destroy();
      else {
        this.received = this.received.subarray(at);
        this.isReady = true;
        this.onReady();
        return true;
      }
    }
    return false;
  }
}

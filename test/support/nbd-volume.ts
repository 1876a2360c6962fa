// A client of a served NBD export, one request at a time, with the bytes of nbd-client.ts.

import { clientFlags, CMD, FLAG, infoData, OPT, option, request } from './nbd-client.js';
import { RawClient } from './raw-client.js';

const NBD_REP_ACK = 1;

/** An error that the server answered a request with. */
export class NbdError extends Error {
  /** As in the protocol: 5 EIO, 22 EINVAL, 28 ENOSPC. */
  readonly nbdError: number;

  constructor(nbdError: number) {
    super(`NBD error ${nbdError}`);
    this.nbdError = nbdError;
  }
}

export class NbdVolume {
  private readonly connection: RawClient;
  private cookie = 0;

  private constructor(connection: RawClient) {
    this.connection = connection;
  }

  static async connect(socketPath: string, name: string): Promise<NbdVolume> {
    const connection = await RawClient.connect({ path: socketPath });
    await connection.read(18);
    connection.write(Buffer.concat([clientFlags(), option(OPT.go, infoData(name))]));
    for (;;) {
      const { type, data } = await connection.readOptionReply();
      if (type === NBD_REP_ACK) return new NbdVolume(connection);
      if (type >= 0x8000_0000) throw new Error(`the export was refused: ${data.toString()}`);
    }
  }

  async write(offset: number, payload: Uint8Array, flags = 0): Promise<void> {
    await this.run(CMD.write, offset, payload.byteLength, flags, payload);
  }

  read(offset: number, length: number): Promise<Buffer> {
    return this.run(CMD.read, offset, length);
  }

  async trim(offset: number, length: number): Promise<void> {
    await this.run(CMD.trim, offset, length);
  }

  async writeZeroes(offset: number, length: number): Promise<void> {
    await this.run(CMD.zeroes, offset, length, FLAG.noHole);
  }

  async flush(): Promise<void> {
    await this.run(CMD.flush, 0, 0);
  }

  close(): void {
    this.connection.destroy();
  }

  private async run(
    command: number,
    offset: number,
    length: number,
    flags = 0,
    payload?: Uint8Array,
  ): Promise<Buffer> {
    const cookie = ++this.cookie;
    const fields = { command, flags, cookie, offset, length };
    this.connection.write(request(payload === undefined ? fields : { ...fields, payload }));
    const header = await this.connection.read(16);
    const error = header.readUInt32BE(4);
    if (error !== 0) throw new NbdError(error);
    return command === CMD.read ? this.connection.read(length) : Buffer.alloc(0);
  }
}

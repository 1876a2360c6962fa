// An NBD server without a socket: a memory device behind a memory connection, and a client that
// speaks bytes.

import type { Test } from 'tap';
import type { StorageError } from '../../src/core/errors.js';
import type { Slab } from '../../src/core/slab.js';
import type { NbdExports } from '../../src/frontend/nbd/export.js';
import type { TlsMode } from '../../src/frontend/nbd/negotiation.js';
import { serveConnection, type ServedConnection } from '../../src/frontend/nbd/serve-connection.js';
import { ManualClock } from './manual-clock.js';
import { MemoryConnection, createTestSlab } from './memory-connection.js';
import { MemoryDevice } from './memory-device.js';
import {
  CMD,
  OPT,
  clientFlags,
  infoData,
  option,
  parseReplies,
  request,
  structuredHandshake,
  type Reply,
  type RequestFields,
} from './nbd-client.js';

export interface World {
  readonly slab: Slab;
  readonly device: MemoryDevice;
  readonly exports: NbdExports;
  readonly clock: ManualClock;
  /** Buffers in use; 0 when nothing leaked. */
  buffersInUse(): number;
}

export interface WorldOptions {
  readonly sizeBytes?: number;
  readonly readOnly?: boolean;
  readonly zeroesFast?: boolean;
  readonly withoutExtents?: boolean;
  readonly connections?: number;
}

export function createWorld(options: WorldOptions = {}): World {
  const slab = createTestSlab(options.connections);
  const device = new MemoryDevice({
    slab,
    sizeBytes: options.sizeBytes ?? 1024 * 1024,
    withoutExtents: options.withoutExtents ?? false,
  });
  const exported = {
    device,
    description: 'test volume',
    readOnly: options.readOnly ?? false,
    zeroesFast: options.zeroesFast ?? false,
  };
  return {
    slab,
    device,
    exports: new Map([['vol', exported]]),
    clock: new ManualClock(),
    buffersInUse: () =>
      slab.freeCounts().reduce((sum, { count, freeCount }) => sum + count - freeCount, 0),
  };
}

export class TestClient {
  readonly connection: MemoryConnection;
  readonly served: ServedConnection;
  /** undefined until the server is done with the connection. */
  ended: StorageError | null | undefined = undefined;
  private readonly structured: boolean;
  private readonly reads = new Map<number, { offset: number; length: number }>();

  constructor(world: World, structured = true, tlsMode: TlsMode = 'off') {
    this.structured = structured;
    this.connection = new MemoryConnection(world.slab);
    this.served = serveConnection({
      connection: this.connection,
      rules: { exports: world.exports, tlsMode },
      clock: world.clock,
      ended: (error) => (this.ended = error),
    });
  }

  /** Enters transmission on export 'vol'. */
  static open(world: World, structured = true): TestClient {
    const client = new TestClient(world, structured);
    const simple = Buffer.concat([clientFlags(), option(OPT.go, infoData('vol'))]);
    client.connection.push(structured ? structuredHandshake('vol') : simple);
    client.connection.take();
    return client;
  }

  send(fields: RequestFields): void {
    this.expect(fields);
    this.connection.push(request(fields));
  }

  /** Remembers what a reply to this request looks like. */
  expect(fields: RequestFields): void {
    if (fields.command !== CMD.read) this.reads.delete(fields.cookie);
    else
      this.reads.set(fields.cookie, { offset: Number(fields.offset), length: fields.length ?? 0 });
  }

  /** All replies that are there once nothing moves. */
  replies(): Reply[] {
    return this.parse(this.connection.take() as Buffer);
  }

  parse(bytes: Buffer): Reply[] {
    return parseReplies(bytes, this.reads, this.structured);
  }

  /** Sends one request and returns the only reply. */
  call(fields: RequestFields): Reply {
    this.send(fields);
    const replies = this.replies();
    const [reply] = replies;
    if (replies.length !== 1 || reply === undefined) throw new Error(`${replies.length} replies`);
    return reply;
  }
}

/** NBD error values, from proto.md. */
export const ERRNO = {
  EPERM: 1,
  EIO: 5,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
};

/** Bytes that differ between seeds and within a sector. */
export function pattern(length: number, seed = 1): Buffer {
  const bytes = Buffer.alloc(length);
  for (let i = 0; i < length; i++) bytes[i] = (i * 31 + seed * 17 + (i >> 8)) & 0xff;
  return bytes;
}

/** Ends the clients and checks that every buffer came back. */
export function checkClean(t: Test, world: World, ...clients: TestClient[]): void {
  for (const client of clients) {
    client.connection.vanish();
    t.not(client.ended, undefined, 'the connection ended');
  }
  t.equal(world.buffersInUse(), 0, 'no buffer leaked');
}

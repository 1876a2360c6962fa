// Two connected ends of every kind of Connection, and a handler that records what happens.

import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { addon } from '../../src/addon/addon.js';
import { realClock } from '../../src/core/clock-real.js';
import type { StorageError } from '../../src/core/errors.js';
import { Slab, SLAB_BYTES } from '../../src/core/slab.js';
import type { Connection, ConnectionHandler, Endpoint } from '../../src/transport/connection.js';
import { ConnectionRegions } from '../../src/transport/connection-memory.js';
import {
  createNativeTransport,
  nativeTransportBytes,
  type NativeTransport,
} from '../../src/transport/native-transport.js';
import { wrapStream } from '../../src/transport/stream-connection.js';

/** Memory and transport of one process, and a directory for its sockets. */
export class Bench {
  readonly slab: Slab;
  readonly regions: ConnectionRegions;
  readonly transport: NativeTransport;
  readonly directory = mkdtempSync(join(tmpdir(), 'longhorn-transport-'));
  private socketCount = 0;

  constructor(connectionsMax = 24) {
    this.slab = new Slab(addon.allocateSlab(SLAB_BYTES + nativeTransportBytes(connectionsMax)));
    this.regions = new ConnectionRegions(this.slab, connectionsMax);
    const { slab, regions } = this;
    this.transport = createNativeTransport({ slab, clock: realClock, regions });
  }

  socketPath(): string {
    return join(this.directory, `s${this.socketCount++}`);
  }

  async close(): Promise<void> {
    await this.transport.shutdown();
    rmSync(this.directory, { recursive: true });
  }
}

export interface Deferred<T> {
  readonly promise: Promise<T>;
  readonly resolve: (value: T) => void;
}

export function deferred<T>(): Deferred<T> {
  let resolve: (value: T) => void = () => undefined;
  const promise = new Promise<T>((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}

export interface Pair {
  readonly left: Connection;
  readonly right: Connection;
}

export interface PairKind {
  readonly name: string;
  readonly open: (bench: Bench) => Promise<Pair>;
}

export async function openNativePair(bench: Bench, endpoint: Endpoint): Promise<Pair> {
  const accepted = deferred<Connection>();
  const listener = await bench.transport.listen(endpoint, accepted.resolve);
  const left = await bench.transport.connect(listener.address, 5000);
  const right = await accepted.promise;
  await listener.close();
  return { left, right };
}

async function openStreamPair(bench: Bench, path: string | null): Promise<Pair> {
  const accepted = deferred<net.Socket>();
  const server = net.createServer(accepted.resolve);
  await new Promise<void>((resolve) => {
    if (path === null) server.listen(0, '127.0.0.1', resolve);
    else server.listen(path, resolve);
  });
  const port = (server.address() as net.AddressInfo).port;
  const client = path === null ? net.connect(port, '127.0.0.1') : net.connect(path);
  const [serverSocket] = await Promise.all([
    accepted.promise,
    new Promise((resolve) => client.once('connect', resolve)),
  ]);
  server.close();
  const wrap = (stream: net.Socket): Connection =>
    wrapStream({ stream, regions: bench.regions, clock: realClock, peer: 'test peer' });
  return { left: wrap(client), right: wrap(serverSocket) };
}

export const PAIR_KINDS: readonly PairKind[] = [
  {
    name: 'native unix',
    open: (bench) => openNativePair(bench, { kind: 'unix', path: bench.socketPath() }),
  },
  {
    name: 'native TCP',
    open: (bench) => openNativePair(bench, { kind: 'tcp', host: '127.0.0.1', port: 0 }),
  },
  { name: 'stream unix', open: (bench) => openStreamPair(bench, bench.socketPath()) },
  { name: 'stream TCP', open: (bench) => openStreamPair(bench, null) },
];

/** Records events; `take` decides how many offered bytes are consumed (all, unless replaced). */
export class RecordingHandler implements ConnectionHandler {
  readonly chunks: Buffer[] = [];
  readonly tokens: number[] = [];
  readonly ends: (StorageError | null)[] = [];
  receivedBytes = 0;
  filledCount = 0;
  offers = 0;
  isInside = false;
  wasReentered = false;
  private readonly waiters: { condition: () => boolean; resolve: () => void }[] = [];
  readonly connection: Connection;
  onReceived: (beginOffset: number, endOffset: number) => number;
  onFilled: () => void = () => undefined;
  onSent: (token: number) => void = () => undefined;

  constructor(connection: Connection) {
    this.connection = connection;
    this.onReceived = (begin, end) => this.keep(begin, end);
    connection.start(this);
  }

  /** Copies and consumes a range. */
  keep(begin: number, end: number): number {
    this.chunks.push(Buffer.from(this.connection.slab.bytes.slice(begin, end)));
    this.receivedBytes += end - begin;
    return end - begin;
  }

  bytes(): Buffer {
    return Buffer.concat(this.chunks);
  }

  /** Resolves when the condition holds; it is looked at after every event. */
  until(condition: () => boolean): Promise<void> {
    if (condition()) return Promise.resolve();
    return new Promise((resolve) => this.waiters.push({ condition, resolve }));
  }

  closedWith(): Promise<StorageError | null> {
    return this.until(() => this.ends.length > 0).then(() => this.ends[0] ?? null);
  }

  received(beginOffset: number, endOffset: number): number {
    this.offers++;
    return this.inside(() => this.onReceived(beginOffset, endOffset));
  }

  targetFilled(): void {
    this.filledCount++;
    this.inside(() => this.onFilled());
  }

  sent(token: number): void {
    this.tokens.push(token);
    this.inside(() => this.onSent(token));
  }

  closed(error: StorageError | null): void {
    this.ends.push(error);
    this.inside(() => undefined);
  }

  private inside<T>(call: () => T): T {
    if (this.isInside) this.wasReentered = true;
    this.isInside = true;
    const result = call();
    this.isInside = false;
    for (const waiter of this.waiters.splice(0)) {
      if (waiter.condition()) waiter.resolve();
      else this.waiters.push(waiter);
    }
    return result;
  }
}

/** Queues bytes from fresh slab memory, released when they are sent; the token is the buffer. */
export function sendBytes(handler: RecordingHandler, bytes: Uint8Array): void {
  const { connection } = handler;
  const offset = connection.slab.allocate(bytes.length);
  connection.slab.bytes.set(bytes, offset);
  const release = handler.onSent;
  handler.onSent = (token) => {
    if (token === offset + 1) connection.slab.release(offset);
    else release(token);
  };
  connection.send(offset, bytes.length, offset + 1);
}

/** Bytes that tell their position. */
export function patternBytes(lengthBytes: number, seed = 0): Buffer {
  const bytes = Buffer.alloc(lengthBytes);
  for (let i = 0; i < lengthBytes; i++) bytes[i] = (i * 31 + (i >>> 8) + seed) & 0xff;
  return bytes;
}

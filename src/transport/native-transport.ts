// Transport over the addon's sockets: the fast path between engine, replicas and clients. Also the
// only receiver of the addon's socket events, which it hands to the connection they belong to.

import { lookup } from 'node:dns/promises';
import { getSystemErrorName } from 'node:util';

import { addon, type NativeSocketEvents, type NativeSocketSet } from '../addon/addon.js';
import { assert } from '../core/assert.js';
import { type Clock, sleepMs } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import { CONNECTIONS_MAX, SOCKET_BUFFER_BYTES } from '../core/limits.js';
import type { Slab } from '../core/slab.js';
import {
  type Connection,
  describeEndpoint,
  type Endpoint,
  type Listener,
  type Transport,
} from './connection.js';
import { connectionRegionsBytes, ConnectionRegions } from './connection-memory.js';
import { type FlushList, NativeConnection } from './native-connection.js';
import { connectError, listenError, lostError, truncatedError } from './socket-errors.js';

/** Longest path of a unix socket: sun_path less its terminating zero. */
const UNIX_PATH_BYTES_MAX = 107;
/** A unix listener whose backlog is full answers EAGAIN at once; ask again after this. */
const BACKLOG_RETRY_MS = 10;

export interface NativeTransportOptions {
  readonly slab: Slab;
  readonly clock: Clock;
  /** Shared by everything that makes connections in the process; its own for CONNECTIONS_MAX else. */
  readonly regions?: ConnectionRegions;
}

export interface NativeTransport extends Transport {
  /** Closes every listener and connection now; handlers are told, with null. */
  shutdown(): Promise<void>;
}

/** Slab memory, beyond SLAB_BYTES, for a transport of connectionsMax connections. */
export function nativeTransportBytes(connectionsMax: number = CONNECTIONS_MAX): number {
  return connectionRegionsBytes(connectionsMax) + SocketLists.bytes(connectionsMax);
}

export function createNativeTransport(options: NativeTransportOptions): NativeTransport {
  return new SocketTransport(options);
}

/** Lists shared with the addon: struct SocketLists of native/socket_hub.h. */
class SocketLists implements FlushList {
  readonly offset: number;
  private readonly words: Int32Array;
  private readonly base: number;
  private readonly socketsMax: number;

  static bytes(socketsMax: number): number {
    return 4 * (2 + 2 * socketsMax) + 4096;
  }

  constructor(regions: ConnectionRegions, socketsMax: number) {
    this.offset = regions.slab.reserve(SocketLists.bytes(socketsMax) - 4096);
    this.words = regions.words;
    this.base = this.offset / 4;
    this.socketsMax = socketsMax;
  }

  /** Beyond socketsMax entries only the count grows: the addon then looks at every connection. */
  add(id: number): void {
    const count = this.words[this.base] as number;
    if (count < this.socketsMax) this.words[this.base + 2 + count] = id;
    this.words[this.base] = count + 1;
  }

  sentCount(): number {
    return this.words[this.base + 1] as number;
  }

  sentId(index: number): number {
    return this.words[this.base + 2 + this.socketsMax + index] as number;
  }
}

interface Dial {
  readonly peer: string;
  connected(connection: Connection): void;
  failed(error: StorageError): void;
}

interface Acceptor {
  readonly endpoint: Endpoint;
  readonly accepted: (connection: Connection) => void;
}

class SocketTransport implements NativeTransport, NativeSocketEvents {
  private readonly clock: Clock;
  private readonly regions: ConnectionRegions;
  private readonly lists: SocketLists;
  private readonly sockets: NativeSocketSet;
  /** By socket number. */
  private readonly connections: (NativeConnection | null)[] = [];
  private readonly dials = new Map<number, Dial>();
  private readonly acceptors = new Map<number, Acceptor>();
  private readonly release = (id: number): void => {
    this.connections[id] = null;
  };

  constructor(options: NativeTransportOptions) {
    this.clock = options.clock;
    this.regions = options.regions ?? new ConnectionRegions(options.slab, CONNECTIONS_MAX);
    assert(this.regions.slab === options.slab, 'connection memory is of the same slab');
    const socketsMax = this.regions.regionsMax;
    this.lists = new SocketLists(this.regions, socketsMax);
    this.sockets = new addon.SocketSet(
      options.slab.memory,
      this.lists.offset,
      socketsMax,
      SOCKET_BUFFER_BYTES,
      this,
    );
  }

  async connect(endpoint: Endpoint, timeoutMs: number): Promise<Connection> {
    const deadlineMs = this.clock.nowMs() + timeoutMs;
    if (endpoint.kind === 'unix') {
      checkUnixPath(endpoint.path);
      return this.dial(endpoint, () => this.sockets.connectUnix(endpoint.path), deadlineMs);
    }
    const where = describeEndpoint(endpoint);
    const resolved = resolve(endpoint.host, (name) => connectError(name, where));
    let failure = connectError('ENOTFOUND', where);
    for (const ip of await this.before(deadlineMs, where, resolved)) {
      try {
        const start = (): number => this.sockets.connectTcp(ip, endpoint.port);
        return await this.dial(endpoint, start, deadlineMs);
      } catch (error) {
        if (!(error instanceof StorageError)) throw error;
        failure = error;
        if (this.clock.nowMs() >= deadlineMs) break;
      }
    }
    throw failure;
  }

  async listen(endpoint: Endpoint, accepted: (connection: Connection) => void): Promise<Listener> {
    const where = describeEndpoint(endpoint);
    let id: number;
    if (endpoint.kind === 'unix') {
      checkUnixPath(endpoint.path);
      id = this.sockets.listenUnix(endpoint.path);
    } else {
      const ips = await resolve(endpoint.host, (name) => listenError(name, where));
      id = this.sockets.listenTcp(ips[0] as string, endpoint.port);
    }
    if (id < 0) throw listenError(getSystemErrorName(id), where);
    const address: Endpoint =
      endpoint.kind === 'unix' ? endpoint : { ...endpoint, port: this.sockets.listenerPort(id) };
    const acceptor: Acceptor = { endpoint: address, accepted };
    this.acceptors.set(id, acceptor);
    const close = async (): Promise<void> => {
      // Numbers are reused: a second close must not hit another listener.
      if (this.acceptors.get(id) !== acceptor) return;
      this.acceptors.delete(id);
      this.sockets.closeListener(id);
    };
    return { address, close };
  }

  async shutdown(): Promise<void> {
    for (const dial of this.dials.values()) {
      dial.failed(new StorageError('CANCELLED', `connecting to ${dial.peer} was cancelled`));
    }
    this.dials.clear();
    this.acceptors.clear();
    for (const connection of this.connections) connection?.destroy();
    this.sockets.shutdown();
    // The handlers are told in microtasks that are queued by now.
    await Promise.resolve();
  }

  // Events of the addon

  connected(id: number, errno: number): void {
    const dial = this.dials.get(id);
    if (dial === undefined) return;
    this.dials.delete(id);
    if (errno !== 0) {
      dial.failed(connectError(getSystemErrorName(-errno), dial.peer));
      return;
    }
    const connection = this.adopt(id, dial.peer);
    if (connection !== null) dial.connected(connection);
    else dial.failed(new StorageError('LIMIT_EXCEEDED', 'no memory for one more connection'));
  }

  accepted(listenerId: number, id: number, peer: string): void {
    const acceptor = this.acceptors.get(listenerId);
    if (acceptor === undefined) {
      this.sockets.close(id);
      return;
    }
    const connection = this.adopt(id, peer === '' ? describeEndpoint(acceptor.endpoint) : peer);
    if (connection !== null) acceptor.accepted(connection);
  }

  received(id: number, byteCount: number): void {
    this.connections[id]?.landed(byteCount);
  }

  sent(): void {
    for (let i = 0, count = this.lists.sentCount(); i < count; i++) {
      this.connections[this.lists.sentId(i)]?.collectSent();
    }
  }

  closed(id: number, errno: number): void {
    const connection = this.connections[id];
    if (connection === undefined || connection === null) return;
    let error: StorageError | null = null;
    if (errno !== 0) error = lostError(getSystemErrorName(-errno), connection.peer);
    else if (connection.awaitsTarget()) error = truncatedError(connection.peer);
    connection.socketClosed(error);
  }

  /** Gives a socket its memory; without any left, closes it. */
  private adopt(id: number, peer: string): NativeConnection | null {
    const region = this.regions.take();
    if (region === null) {
      this.sockets.close(id);
      return null;
    }
    const connection = new NativeConnection({
      id,
      peer,
      region,
      regions: this.regions,
      sockets: this.sockets,
      flushList: this.lists,
      clock: this.clock,
      released: this.release,
    });
    this.connections[id] = connection;
    return connection;
  }

  private async dial(
    endpoint: Endpoint,
    start: () => number,
    deadlineMs: number,
  ): Promise<Connection> {
    const peer = describeEndpoint(endpoint);
    for (;;) {
      const id = start();
      if (id >= 0) return this.outcome(id, peer, deadlineMs);
      const name = getSystemErrorName(id);
      if (name !== 'EAGAIN') throw connectError(name, peer);
      if (this.clock.nowMs() >= deadlineMs) throw connectError('ETIMEDOUT', peer);
      await sleepMs(this.clock, BACKLOG_RETRY_MS);
    }
  }

  private outcome(id: number, peer: string, deadlineMs: number): Promise<Connection> {
    return new Promise((resolve, reject) => {
      const timer = this.clock.after(Math.max(0, deadlineMs - this.clock.nowMs()), () => {
        this.dials.delete(id);
        this.sockets.close(id);
        reject(connectError('ETIMEDOUT', peer));
      });
      const connected = (connection: Connection): void => {
        timer.cancel();
        resolve(connection);
      };
      const failed = (error: StorageError): void => {
        timer.cancel();
        reject(error);
      };
      this.dials.set(id, { peer, connected, failed });
    });
  }

  /** The promise's value, or TIMEOUT at the deadline. */
  private before<T>(deadlineMs: number, where: string, promise: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const waitMs = Math.max(0, deadlineMs - this.clock.nowMs());
      const timer = this.clock.after(waitMs, () => reject(connectError('ETIMEDOUT', where)));
      promise.then(resolve, reject).finally(() => timer.cancel());
    });
  }
}

function checkUnixPath(path: string): void {
  const pathBytes = Buffer.byteLength(path);
  if (pathBytes > 0 && pathBytes <= UNIX_PATH_BYTES_MAX && !path.includes('\0')) return;
  throw new StorageError(
    'INVALID_ARGUMENT',
    `a unix socket path has 1 to ${UNIX_PATH_BYTES_MAX} bytes, not ${pathBytes}: ${path}`,
    { path, pathBytes },
  );
}

/** Numeric addresses of a host, in the resolver's order. */
async function resolve(
  host: string,
  toError: (name: string) => StorageError,
): Promise<readonly string[]> {
  try {
    return (await lookup(host, { all: true })).map((found) => found.address);
  } catch (error) {
    const name = (error as NodeJS.ErrnoException).code ?? 'EIO';
    throw toError(name === 'EAI_AGAIN' ? 'ENOTFOUND' : name);
  }
}

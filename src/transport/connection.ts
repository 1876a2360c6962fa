// Byte streams as the data path wants them: received bytes land in slab memory, payloads of any
// size can be steered into their final buffer, and sending queues slab ranges without copying.
// Implementations: native sockets (fast path), Node streams (TLS), the simulator's network.

import type { StorageError } from '../core/errors.js';
import type { Slab } from '../core/slab.js';

/** What a protocol endpoint does with a connection's bytes. Methods must not throw. */
export interface ConnectionHandler {
  /**
   * New bytes arrived: all unconsumed ones are slab bytes [beginOffset, endOffset). Returns how
   * many were consumed; the rest is offered again with the next bytes. To have the payload that
   * follows the consumed bytes delivered elsewhere, call connection.receiveInto() first: then
   * everything offered must be consumed.
   */
  received(beginOffset: number, endOffset: number): number;
  /** The range given to receiveInto() is full. */
  targetFilled(): void;
  /** A segment queued with a non-zero token was handed to the kernel; its memory may be reused. */
  sent(token: number): void;
  /** The end, exactly once: null for a clean end by either side, else why. Queued sends are dropped. */
  closed(error: StorageError | null): void;
}

export interface Connection {
  readonly slab: Slab;
  /** For logs: address or path of the peer. */
  readonly peer: string;
  /** Sets who receives events; nothing is read before this call. */
  start(handler: ConnectionHandler): void;
  /** The next lengthBytes received go to this slab range, then handler.targetFilled(). */
  receiveInto(bufferOffset: number, lengthBytes: number): void;
  /** Stops reading (backpressure) until resume(). Bytes already offered stay offered. */
  pause(): void;
  /** Reads again, and offers unconsumed bytes at once. May be called from anywhere but received(). */
  resume(): void;
  /**
   * Slab offset of lengthBytes (at most 64) of header memory, to be filled and queued at once with
   * send(); it is recycled by itself when sent. NO_BUFFER when full: the peer does not read.
   */
  header(lengthBytes: number): number;
  /**
   * Queues a slab range; all queued in one event-loop turn leave in one system call. A non-zero
   * token comes back through handler.sent(). Ranges leave in the order of the calls.
   */
  send(bufferOffset: number, lengthBytes: number, token: number): void;
  /** Bytes queued and not yet handed to the kernel. */
  queuedBytes(): number;
  /** Sends what is queued, then closes. */
  end(): void;
  /** Closes now. handler.closed() follows with the error given (null by default). */
  destroy(error?: StorageError): void;
}

export interface Listener {
  /** Real address: the port when 0 was asked for. */
  readonly address: Endpoint;
  close(): Promise<void>;
}

/** Where a data connection goes. */
export type Endpoint =
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }
  | { readonly kind: 'unix'; readonly path: string };

/** Dials and listens. The caller owns accepted connections from `accepted` on. */
export interface Transport {
  /** @throws CONNECTION_REFUSED, TIMEOUT, NOT_FOUND. */
  connect(endpoint: Endpoint, timeoutMs: number): Promise<Connection>;
  /**
   * Starts accepting. A stale unix socket file (nobody answers) is removed first.
   * @throws ADDRESS_IN_USE, INVALID_ARGUMENT (unix path longer than 107 bytes).
   */
  listen(endpoint: Endpoint, accepted: (connection: Connection) => void): Promise<Listener>;
}

export function describeEndpoint(endpoint: Endpoint): string {
  return endpoint.kind === 'tcp' ? `${endpoint.host}:${endpoint.port}` : endpoint.path;
}

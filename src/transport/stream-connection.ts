// Any Node duplex stream (a tls.TLSSocket, a net.Socket) as a Connection. Received bytes are
// copied into the slab once; sent ranges are written as views, so their memory must stay as it is
// until handler.sent(), exactly as on a native socket.

import type { Duplex } from 'node:stream';

import type { Clock, Timer } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import { NO_BUFFER, type Slab } from '../core/slab.js';
import type { Connection, ConnectionHandler } from './connection.js';
import type { ConnectionRegion, ConnectionRegions } from './connection-memory.js';
import { Inbox } from './inbox.js';
import { LINGER_MS } from './native-connection.js';
import { SendQueue } from './send-queue.js';
import { lostError, truncatedError } from './socket-errors.js';

export interface StreamConnectionOptions {
  /** Nobody else may read it, or have read from it. */
  readonly stream: Duplex;
  readonly regions: ConnectionRegions;
  readonly clock: Clock;
  /** For logs: address or path of the peer. */
  readonly peer: string;
}

/** @throws LIMIT_EXCEEDED when the process has no memory for one more connection. */
export function wrapStream(options: StreamConnectionOptions): Connection {
  const region = options.regions.take();
  if (region === null) {
    throw new StorageError('LIMIT_EXCEEDED', 'no memory for one more connection');
  }
  return new StreamConnection(options, region);
}

class StreamConnection implements Connection {
  readonly slab: Slab;
  readonly peer: string;
  private readonly stream: Duplex;
  private readonly options: StreamConnectionOptions;
  private readonly region: ConnectionRegion;
  private readonly inbox: Inbox;
  private readonly queue: SendQueue;
  private handler: ConnectionHandler | null = null;
  private state: 'open' | 'ending' | 'closed' = 'open';
  /** Rest of a chunk that arrived before pause(). */
  private chunk: Uint8Array | null = null;
  private isFlushDue = false;
  private closeError: StorageError | null = null;
  private isClosedTold = false;
  private lingerTimer: Timer | null = null;
  private readonly writeRange = (offset: number, lengthBytes: number): void => {
    this.stream.write(Buffer.from(this.slab.memory, offset, lengthBytes), this.written);
  };
  private readonly written = (error?: Error | null): void => {
    if (this.state === 'closed' || (error !== undefined && error !== null)) return;
    this.queue.noteSent();
    if (this.handler !== null) this.queue.collect(this.handler);
  };
  private readonly flush = (): void => {
    this.isFlushDue = false;
    if (this.state === 'closed') return;
    this.stream.cork();
    this.queue.take(this.writeRange);
    this.stream.uncork();
    if (this.state === 'ending') this.stream.end();
  };

  constructor(options: StreamConnectionOptions, region: ConnectionRegion) {
    this.options = options;
    this.region = region;
    this.stream = options.stream;
    this.slab = options.regions.slab;
    this.peer = options.peer;
    this.inbox = new Inbox(options.regions, region);
    this.queue = new SendQueue(options.regions, region);
    this.stream.pause();
    this.stream.on('error', (error: NodeJS.ErrnoException) => {
      this.finish(lostError(error.code ?? error.message, this.peer));
    });
    this.stream.on('end', () => this.peerEnded());
    this.stream.on('finish', () => this.linger());
    this.stream.on('close', () => this.peerEnded());
  }

  start(handler: ConnectionHandler): void {
    this.handler = handler;
    this.inbox.start(handler);
    if (this.state === 'closed') {
      queueMicrotask(() => this.tellClosed());
      return;
    }
    this.stream.on('data', (chunk: Uint8Array) => this.take(chunk));
    if (!this.inbox.isPaused()) this.stream.resume();
  }

  receiveInto(bufferOffset: number, lengthBytes: number): void {
    if (this.state === 'open') this.inbox.receiveInto(bufferOffset, lengthBytes);
  }

  pause(): void {
    if (this.state !== 'open') return;
    this.inbox.pause();
    this.stream.pause();
  }

  resume(): void {
    if (this.state !== 'open' || !this.inbox.isPaused()) return;
    if (!this.inbox.resume()) {
      // Inside one of the handler's calls: take() goes on after it.
      if (!this.inbox.isPaused() && this.chunk === null) this.stream.resume();
      return;
    }
    const { chunk } = this;
    this.chunk = null;
    if (chunk !== null) this.take(chunk);
    if (!this.inbox.isPaused()) this.stream.resume();
  }

  header(lengthBytes: number): number {
    return this.state === 'open' ? this.queue.header(lengthBytes) : NO_BUFFER;
  }

  send(bufferOffset: number, lengthBytes: number, token: number): void {
    if (this.state !== 'open') return;
    this.queue.push(bufferOffset, lengthBytes, token);
    this.requestFlush();
  }

  queuedBytes(): number {
    return this.queue.queuedBytes;
  }

  end(): void {
    if (this.state !== 'open') return;
    this.state = 'ending';
    this.inbox.stop();
    this.chunk = null;
    // What still arrives is dropped, so that the peer can finish sending and read our last bytes.
    this.stream.resume();
    this.requestFlush();
  }

  destroy(error?: StorageError): void {
    if (this.state === 'closed') return;
    this.finish(error ?? null);
  }

  private take(chunk: Uint8Array): void {
    let at = 0;
    while (at < chunk.length && this.state === 'open') {
      if (this.inbox.isPaused()) {
        this.chunk = chunk.subarray(at);
        return;
      }
      at += this.inbox.copyIn(chunk, at);
    }
  }

  private requestFlush(): void {
    if (this.isFlushDue) return;
    this.isFlushDue = true;
    queueMicrotask(this.flush);
  }

  private peerEnded(): void {
    const isCut = this.state === 'open' && this.inbox.awaitsTarget();
    if (this.state === 'ending' && !this.stream.destroyed) return;
    this.finish(isCut ? truncatedError(this.peer) : null);
  }

  private linger(): void {
    if (this.state !== 'ending') return;
    const { clock } = this.options;
    this.lingerTimer = clock.after(LINGER_MS, () => this.destroy(), { unref: true });
  }

  private finish(error: StorageError | null): void {
    if (this.state === 'closed') return;
    this.state = 'closed';
    this.closeError = error;
    this.inbox.stop();
    this.lingerTimer?.cancel();
    this.stream.destroy();
    // Not now: the caller may be in the middle of a handler's method, still reading its bytes.
    queueMicrotask(() => {
      this.options.regions.give(this.region);
      if (this.handler !== null) this.tellClosed();
    });
  }

  private tellClosed(): void {
    if (this.isClosedTold) return;
    this.isClosedTold = true;
    this.handler?.closed(this.closeError);
  }
}

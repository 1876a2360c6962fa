// A data connection on a native socket. Queuing a frame is a few stores into shared memory; the
// addon sends everything queued when the event-loop turn ends.

import type { NativeSocketSet } from '../addon/addon.js';
import type { Clock, Timer } from '../core/clock.js';
import type { StorageError } from '../core/errors.js';
import { NO_BUFFER, type Slab } from '../core/slab.js';
import type { Connection, ConnectionHandler } from './connection.js';
import { BLOCK_WORD, type ConnectionRegion, type ConnectionRegions } from './connection-memory.js';
import { Inbox } from './inbox.js';
import { SendQueue } from './send-queue.js';

/** How long end() waits, after the last byte, for the peer to close its side. */
export const LINGER_MS = 2_000;

/** The shared list of connections with something to send; see native/socket_hub.h. */
export interface FlushList {
  add(id: number): void;
}

export interface NativeConnectionOptions {
  readonly id: number;
  readonly peer: string;
  readonly sockets: NativeSocketSet;
  readonly regions: ConnectionRegions;
  readonly region: ConnectionRegion;
  readonly flushList: FlushList;
  readonly clock: Clock;
  /** Called once when the socket's number is free again. */
  readonly released: (id: number) => void;
}

export class NativeConnection implements Connection {
  readonly slab: Slab;
  readonly peer: string;
  private readonly options: NativeConnectionOptions;
  private readonly id: number;
  private readonly words: Int32Array;
  private readonly dirtyWord: number;
  private readonly flushList: FlushList;
  private readonly inbox: Inbox;
  private readonly queue: SendQueue;
  private handler: ConnectionHandler | null = null;
  private state: 'open' | 'ending' | 'closed' = 'open';
  private hasSocket = true;
  private closeError: StorageError | null = null;
  private isClosedTold = false;
  private lingerTimer: Timer | null = null;

  constructor(options: NativeConnectionOptions) {
    const { regions, region } = options;
    this.options = options;
    this.slab = regions.slab;
    this.peer = options.peer;
    this.id = options.id;
    this.words = regions.words;
    this.dirtyWord = region.blockWord + BLOCK_WORD.isDirty;
    this.flushList = options.flushList;
    this.inbox = new Inbox(regions, region);
    this.queue = new SendQueue(regions, region);
    options.sockets.attach(options.id, region.offset);
  }

  start(handler: ConnectionHandler): void {
    this.handler = handler;
    this.inbox.start(handler);
    if (this.hasSocket) this.options.sockets.start(this.id);
    if (this.state === 'closed') queueMicrotask(() => this.tellClosed());
  }

  receiveInto(bufferOffset: number, lengthBytes: number): void {
    if (this.state === 'open') this.inbox.receiveInto(bufferOffset, lengthBytes);
  }

  pause(): void {
    if (this.state === 'open') this.inbox.pause();
  }

  resume(): void {
    if (this.state !== 'open' || !this.inbox.isPaused()) return;
    const isAllOffered = this.inbox.resume();
    if (this.hasSocket) this.options.sockets.resume(this.id);
    else if (isAllOffered) this.finish(null);
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
    if (!this.hasSocket) {
      this.finish(null);
      return;
    }
    this.words[this.options.region.blockWord + BLOCK_WORD.isEnding] = 1;
    this.requestFlush();
    this.lingerIfFlushed();
  }

  destroy(error?: StorageError): void {
    if (this.state === 'closed') return;
    this.releaseSocket();
    this.finish(error ?? null);
  }

  /** byteCount bytes arrived. For the transport. */
  landed(byteCount: number): void {
    this.inbox.landed(byteCount);
  }

  /** Segments were sent. For the transport. */
  collectSent(): void {
    if (this.handler === null || this.state === 'closed') return;
    this.queue.collect(this.handler);
    this.lingerIfFlushed();
  }

  /** The socket closed by itself. For the transport. */
  socketClosed(error: StorageError | null): void {
    this.hasSocket = false;
    this.options.released(this.id);
    // An orderly end is told after all bytes that came before it.
    const isWaiting = this.state === 'open' && this.inbox.isPaused() && this.inbox.hasUnconsumed();
    if (error === null && isWaiting) return;
    this.finish(error);
  }

  /** An orderly end now would cut a payload. For the transport. */
  awaitsTarget(): boolean {
    return this.state === 'open' && this.inbox.awaitsTarget();
  }

  private requestFlush(): void {
    if (this.words[this.dirtyWord] !== 0) return;
    this.words[this.dirtyWord] = 1;
    this.flushList.add(this.id);
  }

  private lingerIfFlushed(): void {
    if (this.state !== 'ending' || this.queue.queuedBytes > 0 || this.lingerTimer !== null) return;
    this.lingerTimer = this.options.clock.after(LINGER_MS, () => this.destroy(), { unref: true });
  }

  private releaseSocket(): void {
    if (!this.hasSocket) return;
    this.hasSocket = false;
    this.options.sockets.close(this.id);
    this.options.released(this.id);
  }

  private finish(error: StorageError | null): void {
    if (this.state === 'closed') return;
    this.state = 'closed';
    this.closeError = error;
    this.inbox.stop();
    this.lingerTimer?.cancel();
    // Not now: the caller may be in the middle of a handler's method, still reading its bytes.
    queueMicrotask(() => {
      this.options.regions.give(this.options.region);
      if (this.handler !== null) this.tellClosed();
    });
  }

  private tellClosed(): void {
    if (this.isClosedTold) return;
    this.isClosedTold = true;
    this.handler?.closed(this.closeError);
  }
}

// Drives the negotiation over a data connection, then hands the connection's bytes to a session.
// It bounds what a client may do before it is known: a time limit, and nothing read ahead of
// replies that have not been queued.

import type { Clock, Timer } from '../../core/clock.js';
import { StorageError } from '../../core/errors.js';
import { NBD_HANDSHAKE_TIMEOUT_MS } from '../../core/limits.js';
import { NO_BUFFER } from '../../core/slab.js';
import { KIB } from '../../core/units.js';
import type { Connection, ConnectionHandler } from '../../transport/connection.js';
import {
  NEGOTIATION_START,
  negotiationGreeting,
  stepNegotiation,
  type Agreement,
  type NegotiationOutcome,
  type NegotiationRules,
  type NegotiationState,
} from './negotiation.js';

/** Handshake replies are sent in pieces of a slab buffer this large. */
const REPLY_PIECE_BYTES = 4 * KIB;
/** Tokens of handshake replies; a session's are small numbers. */
const REPLY_TOKEN_BASE = 0x4000_0000;

export interface HandshakeOptions {
  readonly connection: Connection;
  readonly rules: NegotiationRules;
  readonly clock: Clock;
  /** The client entered transmission: makes the handler for all that follows. */
  readonly agreed: (agreement: Agreement) => ConnectionHandler;
  /** The connection closed before that. */
  readonly ended: (error: StorageError | null) => void;
}

export class Handshake implements ConnectionHandler {
  private readonly options: HandshakeOptions;
  private readonly connection: Connection;
  private readonly timer: Timer;
  private state: NegotiationState = NEGOTIATION_START;
  private outcome: NegotiationOutcome = { kind: 'continue' };
  /** Reply bytes that are not in a slab buffer yet. */
  private unsent: Uint8Array = negotiationGreeting();
  /** Slab buffers of reply pieces that have not left, by token - REPLY_TOKEN_BASE. */
  private readonly pieces: number[] = [];
  private next: ConnectionHandler | null = null;
  private isClosed = false;

  constructor(options: HandshakeOptions) {
    this.options = options;
    this.connection = options.connection;
    this.timer = options.clock.after(NBD_HANDSHAKE_TIMEOUT_MS, () => this.timedOut());
  }

  /** Greets the client and begins to listen. */
  start(): void {
    this.connection.start(this);
    this.flush();
  }

  received(beginOffset: number, endOffset: number): number {
    if (this.next !== null) return this.next.received(beginOffset, endOffset);
    const at = this.negotiate(beginOffset, endOffset);
    return at - beginOffset + this.passOn(at, endOffset);
  }

  /** Takes options while it can; returns where it stopped. */
  private negotiate(beginOffset: number, endOffset: number): number {
    const { bytes } = this.connection.slab;
    let at = beginOffset;
    while (this.outcome.kind === 'continue' && !this.isClosed) {
      if (this.unsent.byteLength > 0) {
        this.connection.pause();
        break;
      }
      const step = stepNegotiation(this.state, bytes.subarray(at, endOffset), this.options.rules);
      if (step.outcome.kind === 'needBytes') break;
      this.state = step.state;
      this.outcome = step.outcome;
      this.unsent = step.reply;
      at += step.consumedBytes;
      this.flush();
    }
    return at;
  }

  /** What the client sent right behind its last option belongs to the next handler. */
  private passOn(beginOffset: number, endOffset: number): number {
    if (this.next !== null) return this.next.received(beginOffset, endOffset);
    // Replies that are not queued yet go first.
    if (this.outcome.kind === 'transmission') this.connection.pause();
    return 0;
  }

  targetFilled(): void {
    this.next?.targetFilled();
  }

  sent(token: number): void {
    if (token < REPLY_TOKEN_BASE) {
      this.next?.sent(token);
      return;
    }
    const index = token - REPLY_TOKEN_BASE;
    const bufferOffset = this.pieces[index] as number;
    this.pieces[index] = NO_BUFFER;
    this.connection.slab.release(bufferOffset);
  }

  closed(error: StorageError | null): void {
    this.isClosed = true;
    this.timer.cancel();
    for (const bufferOffset of this.pieces.splice(0)) {
      if (bufferOffset !== NO_BUFFER) this.connection.slab.release(bufferOffset);
    }
    if (this.next !== null) this.next.closed(error);
    else this.options.ended(error);
  }

  private timedOut(): void {
    const timeoutMs = NBD_HANDSHAKE_TIMEOUT_MS;
    this.connection.destroy(new StorageError('TIMEOUT', 'NBD handshake timed out', { timeoutMs }));
  }

  /** Queues reply bytes; acts on the outcome once all of them are queued. */
  private flush(): void {
    const { slab } = this.connection;
    while (this.unsent.byteLength > 0) {
      const bufferOffset = slab.allocate(REPLY_PIECE_BYTES);
      if (bufferOffset === NO_BUFFER) {
        slab.whenReleased(() => this.flushLater());
        return;
      }
      const piece = this.unsent.subarray(0, REPLY_PIECE_BYTES);
      slab.bytes.set(piece, bufferOffset);
      this.unsent = this.unsent.subarray(piece.byteLength);
      this.connection.send(bufferOffset, piece.byteLength, this.tokenFor(bufferOffset));
    }
    this.act();
  }

  private flushLater(): void {
    if (this.isClosed) return;
    this.flush();
    if (this.unsent.byteLength === 0) this.connection.resume();
  }

  private tokenFor(bufferOffset: number): number {
    const free = this.pieces.indexOf(NO_BUFFER);
    const index = free < 0 ? this.pieces.length : free;
    this.pieces[index] = bufferOffset;
    return REPLY_TOKEN_BASE + index;
  }

  private act(): void {
    const { outcome } = this;
    if (outcome.kind === 'transmission') {
      this.timer.cancel();
      this.next = this.options.agreed(outcome.agreement);
    } else if (outcome.kind === 'end') {
      this.connection.end();
    } else if (outcome.kind === 'disconnect') {
      this.connection.destroy(outcome.error);
    }
  }
}

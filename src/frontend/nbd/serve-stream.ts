// One client on a Node socket that may be upgraded to TLS: negotiates on the stream itself, in the
// clear and then over TLS, and hands the stream to a session once transmission begins.

import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { createServer, type TLSSocket } from 'node:tls';
import type { Clock, Timer } from '../../core/clock.js';
import { StorageError, toStorageError } from '../../core/errors.js';
import { NBD_HANDSHAKE_TIMEOUT_MS, NBD_OPTION_BYTES_MAX } from '../../core/limits.js';
import type { ConnectionRegions } from '../../transport/connection-memory.js';
import { lostError } from '../../transport/socket-errors.js';
import { wrapStream } from '../../transport/stream-connection.js';
import { NBD_OPTION_HEADER_BYTES } from '../../wire/nbd/constants.js';
import {
  NEGOTIATION_START,
  negotiationGreeting,
  stepNegotiation,
  type Agreement,
  type NegotiationOutcome,
  type NegotiationRules,
  type NegotiationState,
} from './negotiation.js';
import type { ServedConnection } from './serve-connection.js';
import { NbdSession } from './session.js';

export interface NbdTls {
  readonly mode: 'off' | 'allow' | 'require';
  /** PEM, with intermediates if there are any. */
  readonly certificate: string | Buffer;
  /** PEM. */
  readonly key: string | Buffer;
  /** PEM: clients must show a certificate that one of these signed. */
  readonly clientCa?: string | Buffer;
}

export interface ServeStreamOptions {
  readonly socket: Socket;
  readonly peer: string;
  readonly tls: NbdTls;
  readonly rules: NegotiationRules;
  readonly clock: Clock;
  readonly regions: ConnectionRegions;
  readonly agreed: (agreement: Agreement) => void;
  /** Called once: the stream is closed and nothing of it is in flight. */
  readonly ended: (error: StorageError | null) => void;
}

export function serveStream(options: ServeStreamOptions): ServedConnection {
  return new StreamClient(options);
}

class StreamClient implements ServedConnection {
  private readonly options: ServeStreamOptions;
  private readonly timer: Timer;
  private stream: Duplex;
  private session: NbdSession | null = null;
  private state: NegotiationState = NEGOTIATION_START;
  /** Bytes of the client that no step has consumed; an option always fits. */
  private readonly buffer = Buffer.allocUnsafe(NBD_OPTION_HEADER_BYTES + NBD_OPTION_BYTES_MAX);
  private bufferedBytes = 0;
  private isOver = false;
  private breakSession: () => void = () => undefined;
  private readonly onData = (chunk: Buffer): void => this.take(chunk);
  private readonly onError = (error: NodeJS.ErrnoException): void => {
    this.finish(lostError(error.code ?? error.message, this.options.peer));
  };
  private readonly onClose = (): void => this.finish(null);

  constructor(options: ServeStreamOptions) {
    this.options = options;
    this.stream = options.socket;
    const timeoutMs = NBD_HANDSHAKE_TIMEOUT_MS;
    this.timer = options.clock.after(timeoutMs, () => {
      this.finish(new StorageError('TIMEOUT', 'NBD handshake timed out', { timeoutMs }));
    });
    this.attach();
    this.stream.write(negotiationGreeting());
  }

  stop(): void {
    if (this.session === null) this.finish(null);
    else this.session.stop();
  }

  destroy(): void {
    if (this.session === null) this.finish(null);
    else this.breakSession();
  }

  private attach(): void {
    this.stream.on('data', this.onData).on('error', this.onError).on('close', this.onClose);
  }

  private detach(): void {
    this.stream.off('data', this.onData).off('error', this.onError).off('close', this.onClose);
    this.stream.pause();
  }

  private take(chunk: Buffer): void {
    let at = 0;
    let outcome: NegotiationOutcome = { kind: 'continue' };
    while (outcome.kind === 'continue' && !this.isOver) {
      const copied = chunk.copy(this.buffer, this.bufferedBytes, at);
      at += copied;
      this.bufferedBytes += copied;
      const buffered = this.buffer.subarray(0, this.bufferedBytes);
      const step = stepNegotiation(this.state, buffered, this.options.rules);
      this.state = step.state;
      outcome = step.outcome;
      this.buffer.copyWithin(0, step.consumedBytes, this.bufferedBytes);
      this.bufferedBytes -= step.consumedBytes;
      if (step.reply.byteLength > 0) this.stream.write(step.reply);
    }
    this.act(outcome, chunk.subarray(at));
  }

  private act(outcome: NegotiationOutcome, rest: Buffer): void {
    const leftover = Buffer.concat([this.buffer.subarray(0, this.bufferedBytes), rest]);
    if (outcome.kind === 'transmission') this.transmit(outcome.agreement, leftover);
    else if (outcome.kind === 'startTls') this.secure(leftover);
    else if (outcome.kind === 'end') this.stream.end();
    else if (outcome.kind === 'disconnect') this.finish(outcome.error);
  }

  private secure(leftover: Buffer): void {
    if (leftover.byteLength > 0) {
      // It was sent in the clear, perhaps by somebody in between, and must not count as secured.
      this.finish(new StorageError('HANDSHAKE_FAILED', 'NBD handshake: bytes before TLS', {}));
      return;
    }
    this.detach();
    const socket = this.stream as Socket;
    socket.on('error', this.onError);
    upgrade(socket, this.options.tls, (secured) => {
      if (secured instanceof StorageError) {
        this.finish(secured);
      } else if (this.isOver) {
        secured.destroy();
      } else {
        this.stream = secured;
        this.attach();
      }
    });
  }

  private transmit(agreement: Agreement, leftover: Buffer): void {
    const { regions, clock, peer } = this.options;
    this.timer.cancel();
    this.detach();
    if (leftover.byteLength > 0) this.stream.unshift(leftover);
    try {
      const connection = wrapStream({ stream: this.stream, regions, clock, peer });
      this.breakSession = () => connection.destroy();
      this.options.agreed(agreement);
      this.session = new NbdSession({ connection, agreement, ended: this.options.ended });
      connection.start(this.session);
    } catch (error) {
      this.finish(toStorageError(error));
    }
  }

  /** The end of a client that never got to transmission. */
  private finish(error: StorageError | null): void {
    if (this.isOver) return;
    this.isOver = true;
    this.timer.cancel();
    this.stream.destroy();
    this.options.ended(error);
  }
}

/**
 * TLS over the socket, as the server. A tls.Server of its own checks the client's certificate
 * exactly as Node's servers do; it never listens.
 */
function upgrade(
  socket: Socket,
  tls: NbdTls,
  done: (secured: TLSSocket | StorageError) => void,
): void {
  const server = createServer(
    {
      cert: tls.certificate,
      key: tls.key,
      minVersion: 'TLSv1.2',
      ...(tls.clientCa !== undefined && {
        ca: tls.clientCa,
        requestCert: true,
        rejectUnauthorized: true,
      }),
    },
    (secured) => done(secured),
  );
  server.on('tlsClientError', (error) => {
    const text = `NBD handshake: TLS failed: ${error.message}`;
    done(new StorageError('HANDSHAKE_FAILED', text, {}, error));
  });
  server.emit('connection', socket);
}

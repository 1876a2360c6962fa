// One call on the server's side: reads the request from its HTTP/2 stream, answers with messages
// and a status. It answers exactly once, whatever handler, deadline and peer do, and never throws
// into the stream's events.

import { constants, type IncomingHttpHeaders, type ServerHttp2Stream } from 'node:http2';
import type { Clock, Timer } from '../core/clock.js';
import { GRPC_CONTENT_TYPE } from './definition.js';
import { ERROR_CODE_TRAILER } from './error-map.js';
import {
  encodeStatusText,
  frameMessage,
  MessageDecoder,
  parseTimeoutMs,
  timerMs,
} from './framing.js';
import { RPC_STATUS, RpcError } from './status.js';

/** What a handler sees of its call. */
export interface RpcCall {
  /** A request header, by lower-case name; the first one when it was sent several times. */
  metadata(name: string): string | undefined;
  /** Aborts when the caller left, the deadline passed or the server closes. */
  readonly signal: AbortSignal;
}

export class ServerCall implements RpcCall {
  private readonly stream: ServerHttp2Stream;
  private readonly headers: IncomingHttpHeaders;
  private readonly abortion = new AbortController();
  private deadline: Timer | null = null;
  private isHeaderSent = false;
  private isAnswered = false;

  constructor(stream: ServerHttp2Stream, headers: IncomingHttpHeaders) {
    this.stream = stream;
    this.headers = headers;
    // Without a listener a reset by the peer would end the process.
    stream.on('error', () => undefined);
    stream.once('close', () => this.abandon());
  }

  get signal(): AbortSignal {
    return this.abortion.signal;
  }

  metadata(name: string): string | undefined {
    const value = this.headers[name];
    return Array.isArray(value) ? value[0] : value;
  }

  /** Starts the deadline that the caller asked for. @throws RpcError for a malformed one. */
  startDeadline(clock: Clock): void {
    const text = this.metadata('grpc-timeout');
    if (text === undefined) return;
    const timeoutMs = parseTimeoutMs(text);
    if (timeoutMs === null) {
      throw new RpcError(RPC_STATUS.INTERNAL, `malformed grpc-timeout: ${text}`);
    }
    const expire = (): void =>
      this.fail(new RpcError(RPC_STATUS.DEADLINE_EXCEEDED, 'context deadline exceeded', 'TIMEOUT'));
    this.deadline = clock.after(timerMs(timeoutMs), expire, { unref: true });
  }

  /** The one message of a request. Resolves with null when the call ended before it was complete. */
  readRequest(messageBytesMax: number): Promise<Buffer | null> {
    return new Promise((resolve, reject) => {
      const decoder = new MessageDecoder(messageBytesMax);
      let request: Buffer | null = null;
      const refuse = (error: unknown): void => {
        this.stream.removeAllListeners('data');
        reject(error);
      };
      this.stream.on('data', (chunk: Buffer) => {
        try {
          for (const message of decoder.push(chunk)) {
            if (request !== null) throw new RpcError(RPC_STATUS.INTERNAL, 'more than one request');
            request = message;
          }
        } catch (error) {
          refuse(error);
        }
      });
      this.stream.once('end', () => {
        if (request !== null && decoder.isAtBoundary) resolve(request);
        else refuse(new RpcError(RPC_STATUS.INTERNAL, 'the request message is not complete'));
      });
      this.signal.addEventListener('abort', () => resolve(null), { once: true });
    });
  }

  /** Sends one message. Resolves when the next may follow; false when nobody listens any more. */
  async send(payload: Uint8Array): Promise<boolean> {
    if (this.isAnswered || this.stream.destroyed) return false;
    this.sendHeaders();
    if (this.stream.write(frameMessage(payload))) return true;
    await new Promise<void>((resolve) => {
      const go = (): void => {
        this.stream.off('drain', go);
        this.signal.removeEventListener('abort', go);
        resolve();
      };
      this.stream.on('drain', go);
      this.signal.addEventListener('abort', go);
    });
    return !this.isAnswered && !this.stream.destroyed;
  }

  /** Ends the call with OK. */
  finish(): void {
    if (!this.beginAnswer()) return;
    this.sendHeaders();
    this.sendTrailers({ 'grpc-status': RPC_STATUS.OK });
    this.stream.end();
  }

  /** Ends the call with an error; before any message as headers alone ("trailers-only"). */
  fail(error: RpcError): void {
    if (!this.beginAnswer()) return;
    const trailers = {
      'grpc-status': error.status,
      'grpc-message': encodeStatusText(error.message),
      ...(error.code === null ? {} : { [ERROR_CODE_TRAILER]: error.code }),
      ...(error.status === RPC_STATUS.UNIMPLEMENTED ? { 'grpc-accept-encoding': 'identity' } : {}),
    };
    if (this.isHeaderSent) {
      this.sendTrailers(trailers);
      this.stream.end();
    } else {
      this.stream.respond(
        { ':status': 200, 'content-type': GRPC_CONTENT_TYPE, ...trailers },
        { endStream: true },
      );
    }
    this.abortion.abort();
    this.dropUnreadRequest();
  }

  /** Answers what is not gRPC at all. */
  refuseHttp(httpStatus: number): void {
    if (!this.beginAnswer()) return;
    this.stream.respond({ ':status': httpStatus }, { endStream: true });
    this.dropUnreadRequest();
  }

  /** What the peer still sends is not wanted: the reset tells it to stop, after the whole answer. */
  private dropUnreadRequest(): void {
    if (this.stream.readableEnded) return;
    this.stream.resume();
    this.stream.close(constants.NGHTTP2_NO_ERROR);
  }

  private sendHeaders(): void {
    if (this.isHeaderSent) return;
    this.isHeaderSent = true;
    this.stream.respond(
      { ':status': 200, 'content-type': GRPC_CONTENT_TYPE },
      { waitForTrailers: true },
    );
  }

  private sendTrailers(trailers: Record<string, string | number>): void {
    this.stream.once('wantTrailers', () => this.stream.sendTrailers(trailers));
  }

  private beginAnswer(): boolean {
    if (this.isAnswered || this.stream.destroyed || this.stream.closed) return false;
    this.isAnswered = true;
    this.deadline?.cancel();
    return true;
  }

  private abandon(): void {
    this.deadline?.cancel();
    this.isAnswered = true;
    this.abortion.abort();
  }
}

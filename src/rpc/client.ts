// A gRPC client over node:http2: typed calls from a generated definition, a deadline for every
// call, a connection made when the first call needs it and made again after it was lost. A call is
// repeated only when the peer said that it had not begun it.

import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect as connectHttp2,
  constants,
  type IncomingHttpHeaders,
  type OutgoingHttpHeaders,
} from 'node:http2';
import { connect as connectSocket, type Socket } from 'node:net';
import type { Clock } from '../core/clock.js';
import {
  GRPC_CONTENT_TYPE,
  isGrpcContentType,
  type MethodDefinition,
  methodPath,
  type RequestOf,
  type ResponseOf,
  type ServiceDefinition,
} from './definition.js';
import { ERROR_CODE_TRAILER, parseErrorCode } from './error-map.js';
import {
  decodeStatusText,
  formatTimeout,
  frameMessage,
  MESSAGE_BYTES_MAX,
  MessageDecoder,
  timerMs,
} from './framing.js';
import { type Identity, identityMetadata } from './identity.js';
import { parseStatus, RPC_STATUS, RpcError, statusOfHttpStatus, statusOfReset } from './status.js';

/** Longhorn's common limit for a call (GRPCServiceCommonTimeout). */
export const CALL_DEADLINE_MS = 180_000;
/** Longhorn's limit for calls that copy files: sync, clone, export. */
export const LONG_CALL_DEADLINE_MS = 24 * 3_600_000;
const CONNECT_TIMEOUT_MS = 10_000;
/** System errors that say that nobody can be reached at the address. */
const NOBODY_THERE = new Set(['ECONNREFUSED', 'ENOENT', 'ENOTFOUND', 'EHOSTUNREACH']);
const TCP_KEEPALIVE_MS = 30_000;

export type RpcAddress =
  | { readonly host: string; readonly port: number }
  | { readonly path: string };

export interface ChannelOptions {
  readonly clock: Clock;
  /** Whom the caller means to reach; sent with every call. */
  readonly identity?: Identity;
  /** Request headers of every call, lower-case names. */
  readonly metadata?: Readonly<Record<string, string>>;
  readonly messageBytesMax?: number;
  readonly connectTimeoutMs?: number;
}

export interface CallOptions {
  /** Time for the whole call. Default CALL_DEADLINE_MS. */
  readonly deadlineMs?: number;
  /** Extra request headers, lower-case names. */
  readonly metadata?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
}

/** One function per method. Each rejects with RpcError and nothing else. */
export type RpcClient<S extends ServiceDefinition> = {
  readonly [K in keyof S['methods']]: S['methods'][K]['responseStream'] extends true
    ? (
        request: RequestOf<S['methods'][K]>,
        options?: CallOptions,
      ) => AsyncGenerator<ResponseOf<S['methods'][K]>, void, undefined>
    : (
        request: RequestOf<S['methods'][K]>,
        options?: CallOptions,
      ) => Promise<ResponseOf<S['methods'][K]>>;
};

/** A connection to one address that comes and goes as calls need it. */
export class RpcChannel {
  readonly options: ChannelOptions;
  private readonly address: RpcAddress;
  private session: ClientHttp2Session | null = null;
  private isClosed = false;

  constructor(address: RpcAddress, options: ChannelOptions) {
    this.address = address;
    this.options = options;
  }

  /** Opens a stream on a live connection. @throws RpcError UNAVAILABLE. */
  openStream(headers: OutgoingHttpHeaders): ClientHttp2Stream {
    if (this.isClosed) throw new RpcError(RPC_STATUS.CANCELLED, 'the channel is closed', 'CLOSED');
    let session = this.session;
    // A session that the peer asked to end (GOAWAY) finishes its calls but takes no new ones.
    if (session === null || session.closed || session.destroyed) {
      session = this.connect();
      this.session = session;
    }
    try {
      return session.request(headers);
    } catch (error) {
      throw new RpcError(RPC_STATUS.UNAVAILABLE, errorText(error), 'CONNECTION_LOST', error);
    }
  }

  /** Ends the connection; running calls fail. Idempotent. */
  close(): void {
    this.isClosed = true;
    this.session?.destroy();
    this.session = null;
  }

  private connect(): ClientHttp2Session {
    const { address, options } = this;
    const socket: Socket = 'path' in address ? connectSocket(address.path) : connectSocket(address);
    socket.setNoDelay(true);
    socket.setKeepAlive(true, TCP_KEEPALIVE_MS);
    const authority =
      'path' in address ? 'localhost' : `${bracketed(address.host)}:${address.port}`;
    const session = connectHttp2(`http://${authority}`, {
      createConnection: () => socket,
      settings: { enablePush: false },
    });
    const timeoutMs = options.connectTimeoutMs ?? CONNECT_TIMEOUT_MS;
    const timer = options.clock.after(
      timeoutMs,
      () => session.destroy(new Error(`connecting to ${authority} took over ${timeoutMs} ms`)),
      { unref: true },
    );
    session.once('connect', () => timer.cancel());
    session.once('close', () => {
      timer.cancel();
      if (this.session === session) this.session = null;
    });
    // Its streams fail with the same error and report it to their callers.
    session.on('error', () => undefined);
    return session;
  }
}

export function createChannel(address: RpcAddress, options: ChannelOptions): RpcChannel {
  return new RpcChannel(address, options);
}

/** Parses `host:port`, `tcp://host:port`, `unix:///path` or `unix:path`. @throws RpcError INVALID_ARGUMENT. */
export function parseRpcAddress(text: string): RpcAddress {
  const path = /^unix:(?:\/\/)?(.+)$/.exec(text)?.[1];
  if (path !== undefined) return { path };
  const match = /^(?:tcp:\/\/)?(?:\[([^\]]+)\]|([^:/]+)):(\d{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host === undefined || port < 1 || port > 65535) {
    throw new RpcError(RPC_STATUS.INVALID_ARGUMENT, `'${text}' is not an address host:port`);
  }
  return { host, port };
}

export function createClient<S extends ServiceDefinition>(
  service: S,
  channel: RpcChannel,
): RpcClient<S> {
  const client: Record<string, unknown> = {};
  for (const [key, method] of Object.entries(service.methods)) {
    const path = methodPath(service, method);
    client[key] = method.responseStream
      ? (request: unknown, options?: CallOptions) => call(channel, path, method, request, options)
      : (request: unknown, options?: CallOptions) =>
          callUnary(channel, path, method, request, options);
  }
  // The mapped type says for each method what the loop builds.
  return client as RpcClient<S>;
}

async function callUnary(
  channel: RpcChannel,
  path: string,
  method: MethodDefinition,
  request: unknown,
  options: CallOptions = {},
): Promise<unknown> {
  let response: { message: unknown } | null = null;
  for await (const message of call(channel, path, method, request, options)) {
    if (response !== null) throw new RpcError(RPC_STATUS.INTERNAL, 'more than one response');
    response = { message };
  }
  if (response === null) throw new RpcError(RPC_STATUS.INTERNAL, 'OK without a response');
  return response.message;
}

/** The messages of one call; ends when the status is OK. @throws RpcError. */
async function* call(
  channel: RpcChannel,
  path: string,
  method: MethodDefinition,
  request: unknown,
  options: CallOptions = {},
): AsyncGenerator<unknown, void, undefined> {
  const body = frameMessage(method.requestType.encode(request).finish());
  const deadlineMs = options.deadlineMs ?? CALL_DEADLINE_MS;
  const { clock } = channel.options;
  const startedMs = clock.nowMs();
  for (let attempt = 0; ; attempt++) {
    const remainingMs = deadlineMs - (clock.nowMs() - startedMs);
    const exchange = new Exchange(channel, path, body, remainingMs, options);
    try {
      for await (const payload of exchange.messages()) yield decodeResponse(method, payload, path);
      return;
    } catch (error) {
      // Refused before it began, for example because the peer is ending this connection.
      if (!exchange.wasRefused || attempt > 0) throw error;
    } finally {
      exchange.end();
    }
  }
}

/** One attempt of a call: a stream, its deadline and what its headers and trailers said. */
class Exchange {
  private readonly stream: ClientHttp2Stream;
  private readonly messageBytesMax: number;
  private readonly stopListening: () => void;
  /** Why this side gave up; outranks whatever the stream then reports. */
  private verdict: RpcError | null = null;
  private headers: IncomingHttpHeaders | null = null;
  private trailers: IncomingHttpHeaders | null = null;
  private streamError: unknown = null;

  constructor(
    channel: RpcChannel,
    path: string,
    body: Buffer,
    timeoutMs: number,
    options: CallOptions,
  ) {
    const { clock, identity, metadata, messageBytesMax } = channel.options;
    this.messageBytesMax = messageBytesMax ?? MESSAGE_BYTES_MAX;
    if (options.signal?.aborted === true) throw cancelled();
    this.stream = channel.openStream({
      ':method': 'POST',
      ':path': path,
      'content-type': GRPC_CONTENT_TYPE,
      te: 'trailers',
      'grpc-timeout': formatTimeout(timeoutMs),
      ...(identity === undefined ? {} : identityMetadata(identity)),
      ...metadata,
      ...options.metadata,
    });
    const timer = clock.after(timerMs(timeoutMs), () => this.giveUp(deadlineExceeded()));
    const onAbort = (): void => this.giveUp(cancelled());
    options.signal?.addEventListener('abort', onAbort);
    this.stopListening = () => {
      timer.cancel();
      options.signal?.removeEventListener('abort', onAbort);
    };
    this.stream.on('response', (headers) => {
      this.headers = headers;
    });
    this.stream.on('trailers', (trailers) => {
      this.trailers = trailers;
    });
    this.stream.on('error', (error) => {
      this.streamError = error;
    });
    this.stream.end(body);
  }

  /** The peer said that it did nothing with this call. */
  get wasRefused(): boolean {
    return this.verdict === null && this.stream.rstCode === constants.NGHTTP2_REFUSED_STREAM;
  }

  async *messages(): AsyncGenerator<Buffer, void, undefined> {
    const decoder = new MessageDecoder(this.messageBytesMax);
    try {
      for await (const chunk of this.stream) yield* decoder.push(chunk as Buffer);
    } catch (error) {
      if (error instanceof RpcError) throw error;
      this.streamError ??= error;
    }
    const failure = this.failure();
    if (failure !== null) throw failure;
    if (!decoder.isAtBoundary) throw new RpcError(RPC_STATUS.INTERNAL, 'a response is cut off');
  }

  /** Frees the stream whatever its state. */
  end(): void {
    this.stopListening();
    const isOver = this.stream.readableEnded && this.stream.writableFinished;
    if (!isOver && !this.stream.closed) this.stream.close(constants.NGHTTP2_CANCEL);
  }

  private giveUp(verdict: RpcError): void {
    this.verdict ??= verdict;
    this.stream.close(constants.NGHTTP2_CANCEL);
    this.stream.destroy();
  }

  /** How the call ended, once its stream is over; null for OK. */
  private failure(): RpcError | null {
    if (this.verdict !== null) return this.verdict;
    const last = this.trailers ?? this.headers;
    const status = last?.['grpc-status'];
    if (typeof status === 'string') return errorOfTrailers(last as IncomingHttpHeaders, status);
    const httpStatus = Number(this.headers?.[':status'] ?? 200);
    if (httpStatus !== 200) {
      const text = `unexpected HTTP status code received from server: ${httpStatus}`;
      return new RpcError(statusOfHttpStatus(httpStatus), text);
    }
    if (this.headers !== null && !isGrpcContentType(this.headers['content-type'])) {
      return new RpcError(RPC_STATUS.UNKNOWN, 'the peer does not speak gRPC', 'BAD_FRAME');
    }
    return this.connectionFailure();
  }

  private connectionFailure(): RpcError {
    // A stream that waits for its connection reports the connection's error as its cause.
    const cause = this.streamError instanceof Error ? this.streamError.cause : undefined;
    const error = cause ?? this.streamError;
    const resetCode = this.stream.rstCode;
    const systemCode = (error as NodeJS.ErrnoException | null)?.code ?? '';
    if (systemCode === 'ERR_HTTP2_STREAM_ERROR' && resetCode !== undefined) {
      const text = `the peer reset the call with code ${resetCode}`;
      return new RpcError(statusOfReset(resetCode), text, null, error);
    }
    const wasRefused = NOBODY_THERE.has(systemCode);
    return new RpcError(
      RPC_STATUS.UNAVAILABLE,
      error === null ? 'the connection was lost' : errorText(error),
      wasRefused ? 'CONNECTION_REFUSED' : 'CONNECTION_LOST',
      error,
    );
  }
}

function errorOfTrailers(trailers: IncomingHttpHeaders, statusText: string): RpcError | null {
  const status = parseStatus(statusText);
  if (status === RPC_STATUS.OK) return null;
  const message = trailers['grpc-message'];
  const text = typeof message === 'string' ? decodeStatusText(message) : '';
  return new RpcError(status, text, parseErrorCode(trailers[ERROR_CODE_TRAILER]));
}

function decodeResponse(method: MethodDefinition, payload: Buffer, path: string): unknown {
  try {
    return method.responseType.decode(payload);
  } catch (error) {
    const text = `cannot decode the response of ${path}: ${errorText(error)}`;
    throw new RpcError(RPC_STATUS.INTERNAL, text, 'BAD_FRAME', error);
  }
}

function deadlineExceeded(): RpcError {
  return new RpcError(RPC_STATUS.DEADLINE_EXCEEDED, 'context deadline exceeded', 'TIMEOUT');
}

function cancelled(): RpcError {
  return new RpcError(RPC_STATUS.CANCELLED, 'context canceled', 'CANCELLED');
}

function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function bracketed(host: string): string {
  return host.includes(':') ? `[${host}]` : host;
}

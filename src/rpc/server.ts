// A gRPC server over node:http2, driven by generated service definitions: unary and
// server-streaming calls, deadlines, an identity check and the health service. It exists because
// @grpc/grpc-js alone costs more memory than a whole idle engine may use (docs/adr/0001).
// A peer that sends nonsense loses its own connection and nothing else.

import {
  createServer,
  type Http2Server,
  type IncomingHttpHeaders,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from 'node:http2';
import type { AddressInfo, Socket } from 'node:net';
import { AssertionError, assert } from '../core/assert.js';
import type { Clock, Timer } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import {
  isGrpcContentType,
  type MethodDefinition,
  methodPath,
  type RequestOf,
  type ResponseOf,
  type ServiceDefinition,
} from './definition.js';
import { type StatusOfError, statusByKind, toRpcError } from './error-map.js';
import { MESSAGE_BYTES_MAX } from './framing.js';
import { addHealthService, HealthStatuses } from './health.js';
import { checkIdentity, type ServerIdentity } from './identity.js';
import { type RpcCall, ServerCall } from './server-call.js';
import { RPC_STATUS, RpcError } from './status.js';

/** Connections served at a time; more are dropped at once. */
const SESSIONS_MAX = 256;
/** Calls in flight on one connection; further ones wait in the client. */
const CALLS_PER_SESSION_MAX = 128;
/** All headers of one request together. */
const HEADER_BYTES_MAX = 16 * 1024;
/** Time for a new connection to send its HTTP/2 preface. */
const PREFACE_TIMEOUT_MS = 10_000;
/**
 * A connection without a call for this long is told to go (GOAWAY): clients connect again when they
 * need to. It also frees connections that broke the protocol, which Node leaves half open.
 */
const IDLE_SESSION_MS = 300_000;
/** Idle time after which TCP probes whether the peer still exists. */
const TCP_KEEPALIVE_MS = 30_000;

export type UnaryHandler<M extends MethodDefinition> = (
  request: RequestOf<M>,
  call: RpcCall,
) => ResponseOf<M> | Promise<ResponseOf<M>>;
export type StreamHandler<M extends MethodDefinition> = (
  request: RequestOf<M>,
  call: RpcCall,
) => AsyncIterable<ResponseOf<M>>;

/** A handler per method; one left out answers UNIMPLEMENTED. */
export type ServiceHandlers<S extends ServiceDefinition> = {
  readonly [K in keyof S['methods']]?: S['methods'][K]['responseStream'] extends true
    ? StreamHandler<S['methods'][K]>
    : UnaryHandler<S['methods'][K]>;
};

export interface RpcServerOptions {
  readonly clock: Clock;
  readonly log: Logger;
  /** Refuses unary calls meant for another volume or instance. */
  readonly identity?: ServerIdentity;
  readonly messageBytesMax?: number;
  /** Default IDLE_SESSION_MS. */
  readonly idleSessionMs?: number;
}

export interface ServiceOptions {
  /** Default: by the error's kind. */
  readonly statusOf?: StatusOfError;
  /** False for services that anyone may call, whoever they mean. Default true. */
  readonly checksIdentity?: boolean;
}

interface Method {
  readonly definition: MethodDefinition;
  readonly handler: ((request: unknown, call: RpcCall) => unknown) | undefined;
  readonly statusOf: StatusOfError;
  readonly checksIdentity: boolean;
}

export class RpcServer {
  /** What the health service answers. */
  readonly health = new HealthStatuses();
  private readonly options: RpcServerOptions;
  private readonly http: Http2Server;
  private readonly methods = new Map<string, Method>();
  private readonly serviceNames = new Set<string>();
  private readonly sessions = new Set<ServerHttp2Session>();
  private readonly streamingCalls = new Set<ServerCall>();

  constructor(options: RpcServerOptions) {
    this.options = options;
    this.http = createServer({
      settings: {
        maxConcurrentStreams: CALLS_PER_SESSION_MAX,
        maxHeaderListSize: HEADER_BYTES_MAX,
        enablePush: false,
      },
    });
    this.http.maxConnections = SESSIONS_MAX;
    // Before HTTP/2 takes the socket over: a peer that vanished must not hold a connection for ever.
    this.http.prependListener('connection', (socket: Socket) =>
      socket.setKeepAlive(true, TCP_KEEPALIVE_MS),
    );
    this.http.on('session', (session) => this.welcome(session));
    this.http.on('stream', (stream: ServerHttp2Stream, headers) => this.answer(stream, headers));
    this.http.on('sessionError', (error) => options.log.debug('rpc.session.error', { error }));
    addHealthService(this);
  }

  addService<S extends ServiceDefinition>(
    service: S,
    handlers: ServiceHandlers<S>,
    options: ServiceOptions = {},
  ): this {
    this.serviceNames.add(service.fullName);
    for (const [key, definition] of Object.entries(service.methods)) {
      assert(!definition.requestStream, 'no method streams its request');
      this.methods.set(methodPath(service, definition), {
        definition,
        // The mapped type above ties each handler to its method; a path lookup cannot.
        handler: handlers[key] as Method['handler'],
        statusOf: options.statusOf ?? statusByKind,
        checksIdentity: options.checksIdentity ?? true,
      });
    }
    return this;
  }

  /** Port really bound; asked-for port 0 takes a free one. Empty host: all addresses. @throws ADDRESS_IN_USE, INVALID_ARGUMENT. */
  async listen(host: string, port: number): Promise<number> {
    await this.bind({ ...(host === '' ? {} : { host }), port });
    return (this.http.address() as AddressInfo).port;
  }

  /** @throws ADDRESS_IN_USE, INVALID_ARGUMENT. */
  listenUnix(path: string): Promise<void> {
    return this.bind({ path });
  }

  /**
   * Refuses new calls, lets running ones finish and cuts what is left after graceMs. Streaming
   * calls end at once. Idempotent.
   */
  async close(graceMs: number): Promise<void> {
    this.health.shutDown();
    const stopped = new Promise<void>((resolve) => {
      if (this.http.listening) this.http.close(() => resolve());
      else resolve();
    });
    for (const call of this.streamingCalls) {
      call.fail(new RpcError(RPC_STATUS.UNAVAILABLE, 'the server is shutting down'));
    }
    for (const session of this.sessions) session.close();
    const timer = this.options.clock.after(graceMs, () => {
      for (const session of this.sessions) session.destroy();
    });
    await stopped;
    timer.cancel();
  }

  private bind(options: { host?: string; port?: number; path?: string }): Promise<void> {
    return new Promise((resolve, reject) => {
      const failed = (error: NodeJS.ErrnoException): void => {
        const code = error.code === 'EADDRINUSE' ? 'ADDRESS_IN_USE' : 'INVALID_ARGUMENT';
        const where = options.path ?? `${options.host ?? ''}:${options.port}`;
        reject(
          new StorageError(code, `cannot listen on ${where}: ${error.message}`, options, error),
        );
      };
      this.http.once('error', failed);
      this.http.listen(options, () => {
        this.http.off('error', failed);
        this.http.on('error', (error) => this.options.log.warn('rpc.server.error', { error }));
        resolve();
      });
    });
  }

  private welcome(session: ServerHttp2Session): void {
    this.sessions.add(session);
    const preface: Timer = this.options.clock.after(PREFACE_TIMEOUT_MS, () => session.destroy(), {
      unref: true,
    });
    session.setTimeout(this.options.idleSessionMs ?? IDLE_SESSION_MS, () => session.close());
    session.once('remoteSettings', () => preface.cancel());
    session.once('close', () => {
      preface.cancel();
      this.sessions.delete(session);
    });
  }

  private answer(stream: ServerHttp2Stream, headers: IncomingHttpHeaders): void {
    const call = new ServerCall(stream, headers);
    if (headers[':method'] !== 'POST') return call.refuseHttp(405);
    if (!isGrpcContentType(headers['content-type'])) return call.refuseHttp(415);
    const path = headers[':path'] ?? '';
    const method = this.methods.get(path);
    if (method?.handler === undefined) return call.fail(this.unimplemented(path, method));
    this.run(call, path, method).catch((error: unknown) => {
      // A broken promise of our own code must not live on as an answer: crash where it happened.
      if (error instanceof AssertionError) throw error;
      const rpcError = toRpcError(error, method.statusOf);
      if (rpcError.status === RPC_STATUS.INTERNAL) {
        this.options.log.error('rpc.call.failed', { path, error: rpcError });
      }
      call.fail(rpcError);
    });
  }

  private async run(call: ServerCall, path: string, method: Method): Promise<void> {
    const { definition, handler } = method;
    const encoding = call.metadata('grpc-encoding') ?? 'identity';
    if (encoding !== 'identity') {
      throw new RpcError(RPC_STATUS.UNIMPLEMENTED, `grpc-encoding ${encoding} is not supported`);
    }
    call.startDeadline(this.options.clock);
    const isUnary = !definition.responseStream;
    if (isUnary && method.checksIdentity && this.options.identity !== undefined) {
      checkIdentity(this.options.identity, (name) => call.metadata(name));
    }
    const payload = await call.readRequest(this.options.messageBytesMax ?? MESSAGE_BYTES_MAX);
    if (payload === null) return;
    const response = handler?.(decodeRequest(definition, payload, path), call);
    if (isUnary) {
      await call.send(definition.responseType.encode(await response).finish());
    } else {
      await this.stream(call, definition, response as AsyncIterable<unknown>);
    }
    call.finish();
  }

  private async stream(
    call: ServerCall,
    definition: MethodDefinition,
    responses: AsyncIterable<unknown>,
  ): Promise<void> {
    this.streamingCalls.add(call);
    try {
      for await (const response of responses) {
        if (!(await call.send(definition.responseType.encode(response).finish()))) return;
      }
    } finally {
      this.streamingCalls.delete(call);
    }
  }

  /** Texts as grpc-go's, which Longhorn's clients log. */
  private unimplemented(path: string, method: Method | undefined): RpcError {
    const [, service = '', name = ''] = path.split('/');
    let text = `unknown service ${service}`;
    if (this.serviceNames.has(service)) text = `unknown method ${name} for service ${service}`;
    if (method !== undefined) text = `method ${name} not implemented`;
    return new RpcError(RPC_STATUS.UNIMPLEMENTED, text);
  }
}

function decodeRequest(definition: MethodDefinition, payload: Buffer, path: string): unknown {
  try {
    return definition.requestType.decode(payload);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new RpcError(
      RPC_STATUS.INTERNAL,
      `cannot decode the request of ${path}: ${why}`,
      'BAD_FRAME',
      error,
    );
  }
}

export function createRpcServer(options: RpcServerOptions): RpcServer {
  return new RpcServer(options);
}

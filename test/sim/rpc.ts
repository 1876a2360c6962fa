// gRPC without sockets: the real handlers, the real messages (encoded and decoded on both ways) and
// the real clients' types over the simulated network. A call may be lost before or after it was
// carried out; calls of one client arrive in order.

import { AssertionError } from '../../src/core/assert.js';
import { StorageError } from '../../src/core/errors.js';
import { CALL_DEADLINE_MS, type CallOptions, type RpcClient } from '../../src/rpc/client.js';
import type { MethodDefinition, ServiceDefinition } from '../../src/rpc/definition.js';
import { statusUnknown, toRpcError } from '../../src/rpc/error-map.js';
import type { RpcCall } from '../../src/rpc/server-call.js';
import type { ServiceHandlers } from '../../src/rpc/server.js';
import { RPC_STATUS, RpcError } from '../../src/rpc/status.js';
import { type Pipe, Ports, type SimNetwork } from './network.js';
import type { SimProcess } from './scheduler.js';

type AnyHandler = (request: unknown, call: RpcCall) => unknown;

interface RpcListener {
  readonly handlers: Map<string, AnyHandler>;
}

export interface RpcFaults {
  /** A call's request is lost with its connection. */
  requestLoss: number;
  /** Carried out, but the caller hears of a lost connection. */
  answerLoss: number;
}

const CONNECT_TIMEOUT_US = 10_000_000;
/** From when TCP gives up a peer that went silent. */
const SILENCE_US = { least: 30_000_000, most: 90_000_000 } as const;

export class SimRpc {
  readonly faults: RpcFaults = { requestLoss: 0, answerLoss: 0 };
  private readonly network: SimNetwork;
  private readonly ports = new Ports<RpcListener>();
  private readonly bug: (error: unknown) => void;

  /** @param bug told of what no handler may throw. */
  constructor(network: SimNetwork, bug: (error: unknown) => void) {
    this.network = network;
    this.bug = bug;
  }

  serve<S extends ServiceDefinition>(
    process: SimProcess,
    port: number,
    service: S,
    handlers: ServiceHandlers<S>,
  ): void {
    const map = new Map<string, AnyHandler>();
    for (const [name, handler] of Object.entries(handlers)) {
      map.set(`${service.fullName}/${name}`, handler as AnyHandler);
    }
    this.ports.listen(process, port, { handlers: map });
  }

  client<S extends ServiceDefinition>(
    caller: SimProcess,
    host: string,
    port: number,
    service: S,
    metadata: Readonly<Record<string, string>> = {},
  ): RpcClient<S> {
    const channel: Channel = {
      host,
      port,
      metadata,
      there: this.network.pipe(caller.host, host),
      back: this.network.pipe(host, caller.host),
    };
    const client: Record<string, unknown> = {};
    for (const [name, method] of Object.entries(service.methods)) {
      const path = `${service.fullName}/${name}`;
      client[name] = method.responseStream
        ? (request: unknown, options?: CallOptions) =>
            this.stream(caller, channel, path, method, request, options)
        : async (request: unknown, options?: CallOptions) =>
            (await this.call(caller, channel, path, method, request, options))[0];
    }
    return client as RpcClient<S>;
  }

  private async *stream(
    caller: SimProcess,
    channel: Channel,
    path: string,
    method: MethodDefinition,
    request: unknown,
    options?: CallOptions,
  ): AsyncGenerator<unknown, void, undefined> {
    yield* await this.call(caller, channel, path, method, request, options);
  }

  private call(
    caller: SimProcess,
    channel: Channel,
    path: string,
    method: MethodDefinition,
    request: unknown,
    options: CallOptions = {},
  ): Promise<unknown[]> {
    const { network } = this;
    const body = method.requestType.encode(request).finish();
    return new Promise((resolve, reject) => {
      const exchange = new Exchange(caller, resolve, reject);
      const deadlineUs = (options.deadlineMs ?? CALL_DEADLINE_MS) * 1000;
      exchange.failAfter(deadlineUs, deadlineExceeded());
      const onAbort = (): void => exchange.fail(cancelled());
      if (options.signal?.aborted === true) return onAbort();
      options.signal?.addEventListener('abort', onAbort, { once: true });
      exchange.whenOver = () => options.signal?.removeEventListener('abort', onAbort);
      if (network.rng.chance(this.faults.requestLoss)) {
        exchange.failAfter(network.rng.below(20_000), lost('the connection was lost'));
        return;
      }
      if (network.isCut(caller.host, channel.host) || network.isDown(channel.host)) {
        const isNew = network.rng.chance(0.5);
        const { least, most } = SILENCE_US;
        exchange.failAfter(
          isNew ? CONNECT_TIMEOUT_US : network.rng.between(least, most),
          lost('timed out'),
        );
        if (isNew) return;
      }
      channel.there.push(() => this.arrive(exchange, channel, path, method, body));
    });
  }

  private arrive(
    exchange: Exchange,
    channel: Channel,
    path: string,
    method: MethodDefinition,
    body: Uint8Array,
  ): void {
    const { network } = this;
    const listener = this.ports.at(channel.host, channel.port);
    if (listener === undefined) {
      channel.back.push(() => exchange.fail(refused(channel)));
      return;
    }
    const server = listener.process;
    const handler = listener.what.handlers.get(path);
    if (handler === undefined) {
      channel.back.push(() => exchange.fail(new RpcError(RPC_STATUS.UNIMPLEMENTED, path)));
      return;
    }
    server.whenEnded(() => {
      if (network.isDown(server.host)) {
        exchange.failAfter(
          network.rng.between(SILENCE_US.least, SILENCE_US.most),
          lost('timed out'),
        );
      } else channel.back.push(() => exchange.fail(lost('the peer has ended')));
    });
    const isAnswerLost = network.rng.chance(this.faults.answerLoss);
    const answer = (deliver: () => void): void => {
      if (!server.isAlive) return;
      channel.back.push(
        isAnswerLost ? () => exchange.fail(lost('the connection was lost')) : deliver,
      );
    };
    void this.handle(handler, channel, method, body, exchange).then(
      (payloads) =>
        answer(() => exchange.succeed(payloads.map((bytes) => method.responseType.decode(bytes)))),
      (error: unknown) => {
        if (error instanceof AssertionError || !isExpected(error)) this.bug(error);
        const failure = toRpcError(error, statusUnknown);
        answer(() => exchange.fail(new RpcError(failure.status, failure.message, failure.code)));
      },
    );
  }

  private async handle(
    handler: AnyHandler,
    channel: Channel,
    method: MethodDefinition,
    body: Uint8Array,
    exchange: Exchange,
  ): Promise<Uint8Array[]> {
    const call: RpcCall = {
      metadata: (name) => channel.metadata[name],
      get signal() {
        return exchange.signal;
      },
    };
    const response = handler(method.requestType.decode(body), call);
    const payloads: Uint8Array[] = [];
    if (method.responseStream) {
      for await (const message of response as AsyncIterable<unknown>) {
        payloads.push(method.responseType.encode(message).finish());
      }
    } else payloads.push(method.responseType.encode(await response).finish());
    return payloads;
  }
}

interface Channel {
  readonly host: string;
  readonly port: number;
  readonly metadata: Readonly<Record<string, string>>;
  readonly there: Pipe;
  readonly back: Pipe;
}

class Exchange {
  whenOver: () => void = () => undefined;
  private readonly caller: SimProcess;
  /** Made when a handler asks for it, which few do. */
  private abortion: AbortController | null = null;
  private readonly resolve: (messages: unknown[]) => void;
  private readonly reject: (error: RpcError) => void;
  private timers: { cancel(): void }[] = [];
  private isOver = false;

  constructor(
    caller: SimProcess,
    resolve: (messages: unknown[]) => void,
    reject: (error: RpcError) => void,
  ) {
    this.caller = caller;
    this.resolve = resolve;
    this.reject = reject;
    caller.whenEnded(() => this.abortion?.abort());
  }

  get signal(): AbortSignal {
    this.abortion ??= new AbortController();
    if (this.isOver || !this.caller.isAlive) this.abortion.abort();
    return this.abortion.signal;
  }

  succeed(messages: unknown[]): void {
    if (this.end()) this.resolve(messages);
  }

  fail(error: RpcError): void {
    if (this.end()) this.reject(error);
  }

  failAfter(delayUs: number, error: RpcError): void {
    if (this.isOver || !this.caller.isAlive) return;
    this.timers.push(this.caller.after(delayUs, () => this.fail(error)));
  }

  private end(): boolean {
    if (this.isOver || !this.caller.isAlive) return false;
    this.isOver = true;
    for (const timer of this.timers) timer.cancel();
    this.whenOver();
    this.abortion?.abort();
    return true;
  }
}

function isExpected(error: unknown): boolean {
  return error instanceof StorageError || error instanceof RpcError;
}

function lost(text: string): RpcError {
  return new RpcError(RPC_STATUS.UNAVAILABLE, text, 'CONNECTION_LOST');
}

function refused({ host, port }: Channel): RpcError {
  return new RpcError(
    RPC_STATUS.UNAVAILABLE,
    `connect ECONNREFUSED ${host}:${port}`,
    'CONNECTION_REFUSED',
  );
}

function deadlineExceeded(): RpcError {
  return new RpcError(RPC_STATUS.DEADLINE_EXCEEDED, 'context deadline exceeded', 'TIMEOUT');
}

function cancelled(): RpcError {
  return new RpcError(RPC_STATUS.CANCELLED, 'context canceled', 'CANCELLED');
}

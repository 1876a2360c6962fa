// HTTP requests of the sending side: keep-alive connections, a time limit for every attempt and
// retries with back-off. Payload is sent from slab memory without a copy, so a request settles
// only when neither Node nor the kernel reads that memory any more.

import { Agent, request as httpRequest } from 'node:http';
import type { ClientRequest, IncomingMessage } from 'node:http';

import type { Clock } from '../core/clock.js';
import { sleepMs } from '../core/clock.js';
import { StorageError, toStorageError } from '../core/errors.js';
import {
  ANSWER_BYTES_MAX,
  METHOD_OF_ACTION,
  OPEN_RETRY_MS,
  OPEN_RETRY_PAUSE_MS,
  REQUEST_ATTEMPTS_MAX,
  RETRY_BASE_MS,
  RETRY_MAX_MS,
  SENDER_WORKERS,
} from './constants.js';
import type { SyncAction } from './constants.js';
import { requestPath } from './query.js';

export interface SyncClientOptions {
  readonly clock: Clock;
  readonly host: string;
  readonly port: number;
  /** Limit of one attempt, from its start to the end of its answer. */
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
}

export interface SyncAnswer {
  readonly status: number;
  readonly body: Buffer;
}

export interface SyncCall {
  readonly action: SyncAction;
  readonly parameters?: Record<string, string>;
  readonly body?: readonly Buffer[];
  /** Overrides the client's. */
  readonly timeoutMs?: number;
  /** Answers below 300 and these are returned, all others are errors. */
  readonly acceptedStatus?: number;
}

export class SyncClient {
  private readonly options: SyncClientOptions;
  private readonly agent = new Agent({ keepAlive: true, maxSockets: SENDER_WORKERS });

  constructor(options: SyncClientOptions) {
    this.options = options;
  }

  destroy(): void {
    this.agent.destroy();
  }

  /** Tries like upstream: again after a lost connection, a time-out, 429 or 5xx. */
  async call(call: SyncCall): Promise<Buffer> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.attempt(call);
      } catch (error) {
        const failure = toStorageError(error, 'CONNECTION_LOST');
        if (attempt >= REQUEST_ATTEMPTS_MAX || !isWorthRetrying(failure)) throw failure;
        const delayMs = Math.min(RETRY_BASE_MS * 2 ** (attempt - 1), RETRY_MAX_MS);
        await this.pause(delayMs);
      }
    }
  }

  /** Waits for the receiver to appear: transport errors are retried at once, then each second. */
  async callWhenUp(call: SyncCall): Promise<Buffer> {
    const { clock } = this.options;
    const stopMs = clock.nowMs() + OPEN_RETRY_MS;
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.attempt(call);
      } catch (error) {
        const failure = toStorageError(error, 'CONNECTION_LOST');
        const isTransport = failure.kind === 'unavailable' && failure.code !== 'PEER_ERROR';
        if (!isTransport || failure.code === 'CANCELLED' || clock.nowMs() >= stopMs) throw failure;
        if (attempt > 1) await this.pause(OPEN_RETRY_PAUSE_MS);
      }
    }
  }

  /** One attempt, without retries. @throws PEER_ERROR, NO_SPACE, CONNECTION_LOST, TIMEOUT. */
  async attempt(call: SyncCall): Promise<Buffer> {
    const answer = await this.exchange(call);
    if (answer.status < 300 || answer.status === call.acceptedStatus) return answer.body;
    throw peerError(call.action, answer);
  }

  private async pause(delayMs: number): Promise<void> {
    const { clock, signal } = this.options;
    await sleepMs(clock, delayMs, signal);
    if (signal.aborted) throw cancelled(signal);
  }

  private async exchange(call: SyncCall): Promise<SyncAnswer> {
    for (;;) {
      const request = this.start(call);
      try {
        return await this.settle(request, call);
      } catch (error) {
        // The peer may close an idle connection just when it is used again; that is no failure.
        const code = (error as NodeJS.ErrnoException).code;
        if (!(request.reusedSocket && code === 'ECONNRESET')) throw error;
      }
    }
  }

  private start(call: SyncCall): ClientRequest {
    const { host, port, signal } = this.options;
    if (signal.aborted) throw cancelled(signal);
    const lengthBytes = (call.body ?? []).reduce((sum, part) => sum + part.length, 0);
    const method = METHOD_OF_ACTION[call.action];
    const headers: Record<string, string> = { Accept: 'application/json' };
    if (method === 'POST') headers['Content-Length'] = String(lengthBytes);
    const path = requestPath(call.action, call.parameters);
    const request = httpRequest({ host, port, method, path, headers, agent: this.agent });
    request.removeHeader('connection'); // Go's client names none
    return request;
  }

  private async settle(request: ClientRequest, call: SyncCall): Promise<SyncAnswer> {
    const { clock, signal } = this.options;
    const timeoutMs = call.timeoutMs ?? this.options.timeoutMs;
    const onTimeout = (): void => {
      request.destroy(new StorageError('TIMEOUT', `${call.action}: no answer in ${timeoutMs} ms`));
    };
    const onAbort = (): void => void request.destroy(cancelled(signal));
    const timer = clock.after(timeoutMs, onTimeout);
    signal.addEventListener('abort', onAbort, { once: true });
    const closed = new Promise<void>((resolve) => request.once('close', resolve));
    try {
      const answered = answerOf(request);
      for (const part of call.body ?? []) request.write(part);
      request.end();
      const answer = await answered;
      // An early answer leaves the body half sent: the connection is useless then.
      if (!request.writableFinished) request.destroy();
      return answer;
    } catch (error) {
      request.destroy();
      throw error;
    } finally {
      await closed;
      timer.cancel();
      signal.removeEventListener('abort', onAbort);
    }
  }
}

function answerOf(request: ClientRequest): Promise<SyncAnswer> {
  return new Promise((resolve, reject) => {
    request.on('error', reject);
    request.once('close', () => reject(new StorageError('CONNECTION_LOST', 'connection closed')));
    request.once('response', (response: IncomingMessage) => {
      const chunks: Buffer[] = [];
      let count = 0;
      response.on('error', reject);
      response.on('data', (chunk: Buffer) => {
        count += chunk.length;
        if (count <= ANSWER_BYTES_MAX) chunks.push(chunk);
        else request.destroy(new StorageError('LIMIT_EXCEEDED', 'the answer is too long'));
      });
      response.on('end', () => {
        resolve({ status: response.statusCode ?? 0, body: Buffer.concat(chunks) });
      });
    });
  });
}

function cancelled(signal: AbortSignal): StorageError {
  if (signal.reason instanceof StorageError) return signal.reason;
  return new StorageError('CANCELLED', 'the transfer was cancelled', {}, signal.reason);
}

function peerError(action: SyncAction, answer: SyncAnswer): StorageError {
  const text = answer.body.toString('utf8').trim().slice(0, 500);
  const message = `${action}: HTTP ${answer.status}: ${text}`;
  // Go peers name a full disk by this text only.
  const isFull = text.includes('no space left on device');
  return new StorageError(isFull ? 'NO_SPACE' : 'PEER_ERROR', message, { status: answer.status });
}

function isWorthRetrying(error: StorageError): boolean {
  if (error.code === 'CANCELLED' || error.kind !== 'unavailable') return false;
  const { status } = error.details;
  return typeof status !== 'number' || status === 429 || status >= 500;
}

// Receives one file over ssync: an HTTP server that lives from launch until the file is closed,
// the transfer is cancelled, or no request came for 300 s. One server serves one file, decided at
// launch; nothing a peer sends can name another. After close was answered with success the file
// is on stable storage. Source: sparse-tools sparse/rest/{server,handlers}.go, data-protocol §5.

import { createServer } from 'node:http';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';

import type { Clock, Timer } from '../core/clock.js';
import { StorageError, toStorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import type { Disk } from '../disk/disk.js';
import {
  CHECKSUM_RECORD_BYTES_MAX,
  CHECKSUM_SUFFIX,
  decodeChecksumRecord,
  isRecordCurrent,
} from './checksum-record.js';
import { removeChecksumRecord, writeChecksumRecord } from './checksum-store.js';
import {
  BODY_STALL_MS,
  RECEIVER_CONNECTIONS_MAX,
  RECEIVER_IDLE_MS,
  ROUTE_PREFIX,
} from './constants.js';
import { checkFileName, parseBoolean, parseInterval, parseRequest } from './query.js';
import type { Interval, SyncRequest } from './query.js';
import { openReceivedFile } from './received-file.js';
import type { BodySink, ReceivedFile } from './received-file.js';

export interface ReceiverOptions {
  readonly disk: Disk;
  readonly clock: Clock;
  readonly log: Logger;
  /** Absolute path of the replica's directory. */
  readonly directory: string;
  readonly fileName: string;
  /** Address to listen on; all by default, as peers expect. */
  readonly host?: string;
  /** 0 takes any free port. */
  readonly port: number;
  /** Bytes of data that arrived, or were found to be there already. */
  readonly onProgress?: (bytes: number) => void;
  /** Bytes of data that arrived. */
  readonly onReceived?: (bytes: number) => void;
}

/** How a receiver ended; only after `closed` is the file complete for all it knows. */
export type ReceiverOutcome = 'closed' | 'failed' | 'cancelled' | 'idle';

type State = 'launched' | 'opening' | 'open' | 'closing' | 'closed' | 'stopped';

const STATUS_OF_KIND = {
  request: 400,
  protocol: 400,
  // A peer retries 5xx and gives up on other 4xx; a transfer out of order never gets better.
  state: 409,
  resource: 500,
  unavailable: 500,
  corruption: 500,
} as const;

export class Receiver {
  /** Resolves once, when the server is gone and no I/O of it is in flight. */
  readonly done: Promise<ReceiverOutcome>;
  private readonly options: ReceiverOptions;
  private readonly server: Server;
  private readonly abort = new AbortController();
  private readonly existed: boolean;
  private resolveDone: (outcome: ReceiverOutcome) => void = () => undefined;
  private state: State = 'launched';
  private file: ReceivedFile | null = null;
  private isDirect = false;
  private opening: Promise<void> | null = null;
  private closing: Promise<void> | null = null;
  private hasFailedOperation = false;
  /** Requests being served, without those that close. */
  private operations = 0;
  private whenQuiet: (() => void)[] = [];
  private lastActivityMs: number;
  private idleTimer: Timer | null = null;

  private constructor(options: ReceiverOptions, existed: boolean) {
    this.options = options;
    this.existed = existed;
    this.lastActivityMs = options.clock.nowMs();
    this.done = new Promise((resolve) => {
      this.resolveDone = resolve;
    });
    this.server = createServer((request, response) => void this.serve(request, response));
    this.server.maxConnections = RECEIVER_CONNECTIONS_MAX;
    // Closing an idle connection races with the peer's next request; the idle time-out is enough.
    this.server.keepAliveTimeout = 0;
  }

  /** @throws INVALID_NAME, ADDRESS_IN_USE, IO_ERROR. */
  static async launch(options: ReceiverOptions): Promise<Receiver> {
    checkFileName(options.fileName);
    const path = join(options.directory, options.fileName);
    const receiver = new Receiver(options, await fileExists(options.disk, path));
    await receiver.listen();
    receiver.armIdleTimer(RECEIVER_IDLE_MS);
    return receiver;
  }

  get port(): number {
    return (this.server.address() as AddressInfo | null)?.port ?? this.options.port;
  }

  /** Drops all connections, waits for I/O in flight and leaves the file as it is. Idempotent. */
  async cancel(): Promise<void> {
    await this.stop('cancelled');
    await this.done;
  }

  private listen(): Promise<void> {
    const { host, port } = this.options;
    return new Promise((resolve, reject) => {
      this.server.once('error', (error: NodeJS.ErrnoException) => {
        const code = error.code === 'EADDRINUSE' ? 'ADDRESS_IN_USE' : 'IO_ERROR';
        reject(new StorageError(code, `receiver: ${error.message}`, { port }, error));
      });
      this.server.listen({ port, ...(host === undefined ? {} : { host }) }, () => {
        this.server.removeAllListeners('error');
        this.server.on('error', (error) => this.options.log.warn('receiver.server', { error }));
        resolve();
      });
    });
  }

  private armIdleTimer(delayMs: number): void {
    const { clock } = this.options;
    this.idleTimer = clock.after(
      delayMs,
      () => {
        const idleMs = clock.nowMs() - this.lastActivityMs;
        if (idleMs < RECEIVER_IDLE_MS) this.armIdleTimer(RECEIVER_IDLE_MS - idleMs);
        else void this.stop('idle');
      },
      { unref: true },
    );
  }

  private async stop(outcome: ReceiverOutcome): Promise<void> {
    if (this.state === 'stopped') return;
    this.state = 'stopped';
    this.idleTimer?.cancel();
    this.abort.abort(new StorageError('CANCELLED', `the receiver is ${outcome}`));
    const closed = new Promise<void>((resolve) => this.server.close(() => resolve()));
    if (outcome === 'closed' || outcome === 'failed') this.server.closeIdleConnections();
    else this.server.closeAllConnections();
    await this.untilQuiet();
    await this.closing?.catch(() => undefined);
    this.server.closeAllConnections();
    await closed;
    // A file that was committed has no handle any more.
    await this.file?.discard().catch((error: unknown) => {
      this.options.log.warn('receiver.discard', { file: this.options.fileName, error });
    });
    this.file = null;
    this.options.log.info('receiver.stopped', { file: this.options.fileName, outcome });
    this.resolveDone(outcome);
  }

  private async serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    this.lastActivityMs = this.options.clock.nowMs();
    request.on('error', () => undefined); // a broken connection shows as an early end of the body
    response.on('error', () => undefined);
    // Go's server names no connection header; Node would.
    response.removeHeader('connection');
    const closes = request.url?.startsWith(`${ROUTE_PREFIX}close`) === true;
    if (!closes) this.operations++;
    let outcome: ReceiverOutcome | null = null;
    try {
      outcome = await this.route(request, response);
    } catch (error) {
      const hasAnswered = this.fail(request, response, error);
      if (this.closing !== null && closes && (await hasAnswered)) outcome = 'failed';
    }
    this.lastActivityMs = this.options.clock.nowMs();
    if (!closes) this.operationEnded();
    if (outcome !== null) await this.stop(outcome);
  }

  private operationEnded(): void {
    this.operations--;
    if (this.operations > 0) return;
    for (const wake of this.whenQuiet.splice(0)) wake();
  }

  private async untilQuiet(): Promise<void> {
    while (this.operations > 0) {
      await new Promise<void>((resolve) => this.whenQuiet.push(resolve));
    }
  }

  /** How the receiver ends after this request, or null when it lives on. */
  private async route(
    request: IncomingMessage,
    response: ServerResponse,
  ): Promise<ReceiverOutcome | null> {
    const parsed = parseRequest(request.method ?? '', request.url ?? '');
    if (parsed === null) {
      answerText(response, 404, '404 page not found\n');
      return null;
    }
    if (parsed.action !== 'writeData') checkEmptyBody(request);
    switch (parsed.action) {
      case 'open':
        answerJson(response, JSON.stringify(await this.open(parsed)));
        return null;
      case 'sendHole':
        await this.guarded(this.opened().punch(parseInterval(parsed.parameters)));
        answerEmpty(response);
        return null;
      case 'writeData':
        await this.writeData(parsed, request);
        answerEmpty(response);
        return null;
      case 'getChecksum':
        answerJson(response, JSON.stringify(await this.checksum(parsed)));
        return null;
      case 'getRecordedMetadata':
        await this.answerRecord(response);
        return null;
      case 'close':
        this.closing ??= this.close(parsed);
        await this.closing;
        // A peer that is gone before the answer may come back and ask again.
        return (await answerFinal(response)) ? 'closed' : null;
    }
  }

  private opened(): ReceivedFile {
    if (this.state !== 'open' || this.file === null) {
      throw new StorageError('INVALID_STATE', `${this.options.fileName} is not open`);
    }
    return this.file;
  }

  /** Remembers that an operation on the file failed: its checksum is not recorded any more. */
  private async guarded<T>(operation: Promise<T>): Promise<T> {
    try {
      return await operation;
    } catch (error) {
      this.hasFailedOperation = true;
      throw error;
    }
  }

  /** Repeatable, since a peer repeats what it got no answer to. */
  private async open(request: SyncRequest): Promise<boolean> {
    const { beginOffset, endOffset } = parseInterval(request.parameters);
    const isDirect = parseBoolean(request.parameters, 'directIO');
    if (beginOffset !== 0) throw new StorageError('INVALID_ARGUMENT', 'a file begins at 0');
    if (this.state === 'launched') {
      this.state = 'opening';
      this.opening = this.openFile(endOffset, isDirect);
    }
    await this.opening;
    const file = this.opened();
    if (file.sizeBytes !== endOffset || this.isDirect !== isDirect) {
      throw new StorageError('INVALID_STATE', `${this.options.fileName} is open with other terms`);
    }
    return this.existed;
  }

  private async openFile(sizeBytes: number, isDirect: boolean): Promise<void> {
    const { disk, directory, fileName } = this.options;
    try {
      // An old record could match again by accident: change times tick in milliseconds.
      await removeChecksumRecord(disk, join(directory, fileName));
      const file = await openReceivedFile({ disk, directory, fileName, sizeBytes, isDirect });
      this.file = file;
      this.isDirect = isDirect;
      if (this.state === 'opening') this.state = 'open';
    } catch (error) {
      if (this.state === 'opening') this.state = 'launched';
      throw error;
    }
  }

  private async writeData(parsed: SyncRequest, request: IncomingMessage): Promise<void> {
    const file = this.opened();
    const interval = parseInterval(parsed.parameters);
    const lengthBytes = checkBodyLength(request, interval, file.sizeBytes);
    const sink = await this.guarded(file.write(interval, this.abort.signal));
    await this.guarded(this.receiveBody(request, sink, lengthBytes));
    this.options.onProgress?.(lengthBytes);
    this.options.onReceived?.(lengthBytes);
  }

  private async receiveBody(
    request: IncomingMessage,
    sink: BodySink,
    lengthBytes: number,
  ): Promise<void> {
    let received = 0;
    let stallTimer = this.armStallTimer(request);
    try {
      for await (const chunk of request as AsyncIterable<Buffer>) {
        received += chunk.length;
        sink.push(chunk);
        this.lastActivityMs = this.options.clock.nowMs();
        stallTimer.cancel();
        stallTimer = this.armStallTimer(request);
      }
      if (received !== lengthBytes) {
        throw new StorageError('CONNECTION_LOST', `body ended after ${received} bytes`);
      }
    } catch (error) {
      await sink.abandon();
      throw toStorageError(error, 'CONNECTION_LOST');
    } finally {
      stallTimer.cancel();
    }
    await sink.finish();
  }

  private armStallTimer(request: IncomingMessage): Timer {
    const { clock } = this.options;
    const drop = (): void => void request.destroy(new StorageError('TIMEOUT', 'body stalled'));
    return clock.after(BODY_STALL_MS, drop, { unref: true });
  }

  private async checksum(parsed: SyncRequest): Promise<string | null> {
    const interval = parseInterval(parsed.parameters);
    const hash = await this.guarded(this.opened().checksum(interval, this.abort.signal));
    if (hash !== null) this.options.onProgress?.(interval.endOffset - interval.beginOffset);
    return hash;
  }

  private async answerRecord(response: ServerResponse): Promise<void> {
    const { disk, directory, fileName } = this.options;
    const path = join(directory, fileName);
    let content: Buffer;
    try {
      content = await disk.readFile(path + CHECKSUM_SUFFIX, CHECKSUM_RECORD_BYTES_MAX);
    } catch (error) {
      if (!(error instanceof StorageError) || error.code !== 'NOT_FOUND') throw error;
      const name = fileName + CHECKSUM_SUFFIX;
      const reason = `open ${name}: no such file or directory`;
      answerText(response, 404, `failed to open checksum file: ${reason}\n`);
      return;
    }
    const record = decodeChecksumRecord(content.toString('utf8'));
    const { changedNs } = await disk.stat(path);
    if (!isRecordCurrent(record, changedNs)) {
      throw new StorageError('CHECKSUM_MISMATCH', `${fileName} changed after it was hashed`);
    }
    answerJson(response, content);
  }

  private async close(parsed: SyncRequest): Promise<void> {
    const { disk, directory, fileName } = this.options;
    const method = parsed.parameters.get('checksumMethod') ?? '';
    const checksum = parsed.parameters.get('checksum') ?? '';
    const { file } = this;
    this.state = 'closing';
    await this.untilQuiet();
    if (file === null) return;
    const isRecordable =
      method !== '' && checksum !== '' && file.isComplete && !this.hasFailedOperation;
    await file.commit();
    this.state = 'closed';
    this.file = null;
    if (!isRecordable) return;
    const path = join(directory, fileName);
    const { changedNs } = await disk.stat(path);
    await writeChecksumRecord(disk, path, { method, checksum, changedNs });
  }

  /** Answers with an error; resolves to whether the answer left. */
  private fail(
    request: IncomingMessage,
    response: ServerResponse,
    thrown: unknown,
  ): Promise<boolean> {
    const error = toStorageError(thrown);
    const { fileName, log } = this.options;
    log.warn('receiver.request.failed', { file: fileName, path: request.url, error });
    if (response.headersSent || request.socket.destroyed) {
      response.destroy();
      return Promise.resolve(false);
    }
    const sent = isSent(response);
    // What is left of the body would be read as the next request.
    if (!request.complete) response.setHeader('Connection', 'close');
    answerText(response, STATUS_OF_KIND[error.kind], `${error.message}\n`);
    if (!request.complete) response.once('finish', () => request.socket.destroySoon());
    return sent;
  }
}

async function fileExists(disk: Disk, path: string): Promise<boolean> {
  try {
    const stat = await disk.stat(path);
    if (stat.isDirectory) throw new StorageError('INVALID_NAME', `${path} is a directory`);
    return true;
  } catch (error) {
    if (error instanceof StorageError && error.code === 'NOT_FOUND') return false;
    throw error;
  }
}

function bodyLengthOf(request: IncomingMessage): number {
  const text = request.headers['content-length'];
  if (text === undefined) return request.headers['transfer-encoding'] === undefined ? 0 : -1;
  return Number(text); // Node's parser has checked that it is a number
}

function checkEmptyBody(request: IncomingMessage): void {
  if (bodyLengthOf(request) !== 0) {
    throw new StorageError('INVALID_ARGUMENT', 'this request takes no body');
  }
}

/** Length of a writeData body: the interval's, cut at the end of the file. */
function checkBodyLength(request: IncomingMessage, interval: Interval, fileBytes: number): number {
  const lengthBytes = bodyLengthOf(request);
  const wanted = Math.min(interval.endOffset, fileBytes) - interval.beginOffset;
  if (lengthBytes !== wanted) {
    const message = `body of ${lengthBytes} bytes where the interval needs ${wanted}`;
    throw new StorageError('INVALID_ARGUMENT', message, { lengthBytes, wanted });
  }
  return lengthBytes;
}

function answerEmpty(response: ServerResponse): void {
  response.writeHead(200, { 'Content-Length': '0' });
  response.end();
}

function answerJson(response: ServerResponse, body: string | Buffer): void {
  response.writeHead(200, {
    'Content-Type': 'application/json',
    'Content-Length': String(Buffer.byteLength(body)),
  });
  response.end(body);
}

function answerText(response: ServerResponse, status: number, text: string): void {
  response.writeHead(status, {
    'Content-Type': 'text/plain; charset=utf-8',
    'X-Content-Type-Options': 'nosniff',
    'Content-Length': String(Buffer.byteLength(text)),
  });
  response.end(text);
}

/** Answers close; resolves to whether the answer left. */
function answerFinal(response: ServerResponse): Promise<boolean> {
  const sent = isSent(response);
  response.writeHead(200);
  response.flushHeaders(); // headers first makes the empty body chunked, as Go's is
  response.end();
  return sent;
}

function isSent(response: ServerResponse): Promise<boolean> {
  return new Promise((resolve) => {
    response.once('close', () => resolve(response.writableFinished));
  });
}

// What the transfer tests share: sparse files made through the Disk interface, golden ssync
// conversations, and a raw HTTP exchange that sees every byte of an answer.

import { createHash, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { connect } from 'node:net';
import type { Socket } from 'node:net';
import { join } from 'node:path';

import type { Clock } from '../../src/core/clock.js';
import { silentLogger } from '../../src/core/log.js';
import { realClock } from '../../src/core/clock-real.js';
import type { Disk } from '../../src/disk/disk.js';
import { PIECE_BYTES_MAX } from '../../src/sync/constants.js';
import { PieceBuffer } from '../../src/sync/piece-buffer.js';
import { Receiver } from '../../src/sync/receiver.js';
import type { ReceiverOptions } from '../../src/sync/receiver.js';
import { sendFile } from '../../src/sync/sender.js';
import type { SendFileOptions, SendResult } from '../../src/sync/sender.js';

export interface Part {
  readonly offsetBytes: number;
  readonly data: Buffer;
}

/** Writes the parts, each a multiple of 4096 long and aligned; all else stays a hole. */
export async function makeSparseFile(
  disk: Disk,
  path: string,
  sizeBytes: number,
  parts: readonly Part[],
): Promise<void> {
  const file = await disk.open(path, { writable: true, create: true });
  await file.truncate(sizeBytes);
  for (const part of parts) {
    for (let at = 0; at < part.data.length; at += PIECE_BYTES_MAX) {
      const chunk = part.data.subarray(at, at + PIECE_BYTES_MAX);
      const piece = await PieceBuffer.acquire(disk, chunk.length);
      piece.append(chunk);
      for (let index = 0; index < piece.partCount; index++) {
        await piece.writePart(file, part.offsetBytes + at, index);
      }
      piece.release();
    }
  }
  await file.sync();
  await file.close();
}

/** `[offset, length]` of every extent, like the golden files list them. */
export async function extentsOf(disk: Disk, path: string): Promise<number[][]> {
  const file = await disk.open(path, { writable: false });
  const extents = await file.extents(0, await file.sizeBytes(), 4096);
  await file.close();
  return extents.map((extent) => [extent.beginOffset, extent.endOffset - extent.beginOffset]);
}

/** SHA-256 of the whole file, holes as zeros. */
export async function sha256Of(disk: Disk, path: string): Promise<string> {
  return createHash('sha256')
    .update(await disk.readFile(path, 2 ** 30))
    .digest('hex');
}

export function randomPart(offsetBytes: number, lengthBytes: number): Part {
  return { offsetBytes, data: randomBytes(lengthBytes) };
}

export function launchReceiver(
  disk: Disk,
  directory: string,
  fileName: string,
  extra: Partial<ReceiverOptions> = {},
): Promise<Receiver> {
  return Receiver.launch({
    disk,
    clock: realClock,
    log: silentLogger,
    directory,
    fileName,
    host: '127.0.0.1',
    port: 0,
    ...extra,
  });
}

export function send(
  disk: Disk,
  sourcePath: string,
  port: number,
  extra: Partial<SendFileOptions> = {},
): Promise<SendResult> {
  return sendFile({
    disk,
    clock: realClock,
    log: silentLogger,
    sourcePath,
    host: '127.0.0.1',
    port,
    isFastSync: false,
    ...extra,
  });
}

export interface GoldenRequest {
  readonly line: string;
  readonly bytes: Buffer;
  readonly body: Buffer;
  readonly answer: HttpAnswer;
}

export interface GoldenConversation {
  readonly sourceExtents: number[][];
  readonly sourceSha256: string;
  readonly destSha256: string;
  readonly destExtents: number[][];
  readonly connections: GoldenRequest[][];
}

interface RecordedMessage {
  start: number;
  length: number;
  line: string;
  headers: string[];
  bodyLength: number;
}

interface RecordedConnection {
  c2s: string;
  s2c: string;
  requests: RecordedMessage[];
  responses: RecordedMessage[];
}

export function loadConversation(fixtures: string, name: string): GoldenConversation {
  const directory = join(fixtures, 'wire');
  const json = JSON.parse(readFileSync(join(directory, `${name}.json`), 'utf8')) as Omit<
    GoldenConversation,
    'connections'
  > & { connections: RecordedConnection[] };
  const connections = json.connections.map((connection) => {
    const sent = readFileSync(join(directory, connection.c2s));
    const received = readFileSync(join(directory, connection.s2c));
    return connection.requests.map((request, index) => {
      const response = connection.responses[index];
      if (response === undefined) throw new Error(`${name}: a request without an answer`);
      const bytes = sent.subarray(request.start, request.start + request.length);
      const answerBytes = received.subarray(response.start, response.start + response.length);
      const answer = parseAnswer(answerBytes);
      if (answer === null) throw new Error(`${name}: an answer that cannot be parsed`);
      const body = bytes.subarray(bytes.length - request.bodyLength);
      return { line: request.line, bytes, body, answer: answer.answer };
    });
  });
  return { ...json, connections: connections.filter((requests) => requests.length > 0) };
}

export interface HttpAnswer {
  readonly statusLine: string;
  readonly headers: Record<string, string>;
  readonly body: string;
}

/** The first answer of the bytes and its length, or null while it is incomplete. */
export function parseAnswer(bytes: Buffer): { answer: HttpAnswer; length: number } | null {
  const headEnd = bytes.indexOf('\r\n\r\n');
  if (headEnd === -1) return null;
  const [statusLine = '', ...lines] = bytes.subarray(0, headEnd).toString('latin1').split('\r\n');
  const headers: Record<string, string> = {};
  for (const line of lines) {
    const colon = line.indexOf(': ');
    headers[line.slice(0, colon)] = line.slice(colon + 2);
  }
  const bodyStart = headEnd + 4;
  if (headers['Transfer-Encoding'] === 'chunked') {
    const end = bytes.indexOf('0\r\n\r\n', bodyStart);
    if (end === -1) return null;
    return { answer: { statusLine, headers, body: '' }, length: end + 5 };
  }
  const length = bodyStart + Number(headers['Content-Length'] ?? 0);
  if (bytes.length < length) return null;
  const body = bytes.subarray(bodyStart, length).toString('latin1');
  return { answer: { statusLine, headers, body }, length };
}

/** A raw connection that sends given bytes and reads one answer at a time. */
export class RawConnection {
  readonly socket: Socket;
  private received = Buffer.alloc(0);
  private isEnded = false;
  private wake: () => void = () => undefined;

  constructor(port: number) {
    this.socket = connect(port, '127.0.0.1');
    this.socket.on('data', (chunk: Buffer) => {
      this.received = Buffer.concat([this.received, chunk]);
      this.wake();
    });
    const ended = (): void => {
      this.isEnded = true;
      this.wake();
    };
    this.socket.on('error', ended);
    this.socket.on('close', ended);
  }

  write(bytes: Uint8Array | string): void {
    this.socket.write(bytes);
  }

  /** The next answer, or null when the connection ended without one. */
  async answer(): Promise<HttpAnswer | null> {
    for (;;) {
      const parsed = parseAnswer(this.received);
      if (parsed !== null) {
        this.received = this.received.subarray(parsed.length);
        return parsed.answer;
      }
      if (this.isEnded) return null;
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
    }
  }

  /** Resolves when the peer has closed the connection. */
  async ended(): Promise<void> {
    while (!this.isEnded) {
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
    }
  }

  async exchange(bytes: Uint8Array | string): Promise<HttpAnswer | null> {
    this.write(bytes);
    return await this.answer();
  }

  close(): void {
    this.socket.destroy();
  }
}

/** A request without a body as raw text. */
export function rawRequest(method: 'GET' | 'POST', path: string): string {
  return `${method} ${path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n`;
}

/** The real clock, so many times faster for whoever waits on it. */
export function fastClock(factor: number): Clock {
  return {
    nowMs: () => realClock.nowMs() * factor,
    wallTime: () => realClock.wallTime(),
    after: (delayMs, callback, options) => realClock.after(delayMs / factor, callback, options),
  };
}

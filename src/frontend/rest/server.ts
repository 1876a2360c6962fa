// The `rest` frontend: reads and writes as base64 over HTTP, for tests and debugging. Longhorn's
// own test clients speak it; it is never a data path.

import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import {
  BLOCK_OP,
  type BlockDevice,
  type BlockOp,
  submitAndWait,
} from '../../core/block-device.js';
import { StorageError, toStorageError } from '../../core/errors.js';
import { REQUEST_BYTES_MAX } from '../../core/limits.js';
import { NO_BUFFER, type Slab } from '../../core/slab.js';

/** Longhorn's fixed address. */
export const REST_HOST = 'localhost';
export const REST_PORT = 9414;
const BASE_URL = 'http://localhost';
/** Base64 of the largest request and its JSON around it. */
const BODY_BYTES_MAX = 2 * REQUEST_BYTES_MAX;

export interface RestFrontendOptions {
  readonly device: BlockDevice;
  readonly slab: Slab;
  readonly volumeName: string;
  readonly host?: string;
  readonly port?: number;
}

export interface RestFrontend {
  readonly port: number;
  close(): Promise<void>;
}

/** @throws ADDRESS_IN_USE. */
export async function startRestFrontend(options: RestFrontendOptions): Promise<RestFrontend> {
  const server = createServer((request, response) => void respond(options, request, response));
  const { host = REST_HOST, port = REST_PORT } = options;
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) =>
      reject(
        error.code === 'EADDRINUSE'
          ? new StorageError('ADDRESS_IN_USE', `${host}:${port} is in use`)
          : toStorageError(error),
      ),
    );
    server.listen(port, host, resolve);
  });
  const address = server.address();
  return {
    port: typeof address === 'object' && address !== null ? address.port : port,
    close: () => closeServer(server),
  };
}

function closeServer(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    // A client in the middle of a request must not keep the engine from ending.
    server.closeAllConnections();
  });
}

async function respond(
  options: RestFrontendOptions,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  try {
    const answer = await route(options, request);
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(answer));
  } catch (error) {
    const failure = toStorageError(error);
    const status = failure.code === 'NOT_FOUND' ? 404 : failure.kind === 'request' ? 400 : 500;
    const body = JSON.stringify({ type: 'error', code: failure.code, message: failure.message });
    response.writeHead(status, { 'content-type': 'application/json' }).end(body);
  }
}

async function route(options: RestFrontendOptions, request: IncomingMessage): Promise<unknown> {
  const target = request.url ?? '/';
  const url = URL.canParse(target, BASE_URL) ? new URL(target, BASE_URL) : null;
  if (url?.pathname !== '/v1/volumes/1')
    throw new StorageError('NOT_FOUND', `no ${target}; the volume is at /v1/volumes/1`);
  const action = url.searchParams.get('action');
  if (request.method === 'GET' && action === null) {
    return { id: '1', type: 'volume', name: options.volumeName, size: options.device.sizeBytes };
  }
  if (request.method !== 'POST') throw new StorageError('UNSUPPORTED', 'use POST for actions');
  const body = await readBody(request);
  if (action === 'readat') return readAt(options, body);
  if (action === 'writeat') return writeAt(options, body);
  throw new StorageError('NOT_FOUND', `no action ${action ?? ''}`);
}

async function readBody(request: IncomingMessage): Promise<Record<string, unknown>> {
  const chunks: Buffer[] = [];
  let sizeBytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    sizeBytes += chunk.length;
    if (sizeBytes > BODY_BYTES_MAX) {
      throw new StorageError('REQUEST_TOO_LARGE', `a body of more than ${BODY_BYTES_MAX} bytes`);
    }
    chunks.push(chunk);
  }
  const parsed = parseJson(Buffer.concat(chunks).toString('utf8'));
  if (typeof parsed === 'object' && parsed !== null) return parsed as Record<string, unknown>;
  throw new StorageError('INVALID_ARGUMENT', 'the body is not a JSON object');
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new StorageError('INVALID_ARGUMENT', 'the body is not JSON', {}, error);
  }
}

function wholeNumber(body: Record<string, unknown>, key: string, max: number): number {
  const value = Number(body[key]);
  if (Number.isSafeInteger(value) && value >= 0 && value <= max) return value;
  throw new StorageError('INVALID_ARGUMENT', `'${key}' must be a number from 0 to ${max}`);
}

async function readAt(
  options: RestFrontendOptions,
  body: Record<string, unknown>,
): Promise<unknown> {
  const offsetBytes = wholeNumber(body, 'offset', Number.MAX_SAFE_INTEGER);
  const lengthBytes = wholeNumber(body, 'length', REQUEST_BYTES_MAX);
  const data = await withBuffer(options, BLOCK_OP.read, offsetBytes, lengthBytes, null);
  return { type: 'readOutput', data: data.toString('base64') };
}

async function writeAt(
  options: RestFrontendOptions,
  body: Record<string, unknown>,
): Promise<unknown> {
  const offsetBytes = wholeNumber(body, 'offset', Number.MAX_SAFE_INTEGER);
  const data = Buffer.from(String(body['data'] ?? ''), 'base64');
  if (data.length > REQUEST_BYTES_MAX) {
    throw new StorageError('REQUEST_TOO_LARGE', `more than ${REQUEST_BYTES_MAX} bytes at once`);
  }
  await withBuffer(options, BLOCK_OP.write, offsetBytes, data.length, data);
  return { type: 'writeOutput' };
}

async function withBuffer(
  options: RestFrontendOptions,
  op: BlockOp,
  offsetBytes: number,
  lengthBytes: number,
  content: Buffer | null,
): Promise<Buffer> {
  const { slab, device } = options;
  const bufferOffset = slab.allocate(lengthBytes);
  if (bufferOffset === NO_BUFFER) throw new StorageError('BUSY', 'no memory is free, try again');
  try {
    if (content !== null) slab.bytes.set(content, bufferOffset);
    await submitAndWait(device, { op, offsetBytes, lengthBytes, bufferOffset });
    return Buffer.from(slab.bytes.subarray(bufferOffset, bufferOffset + lengthBytes));
  } finally {
    slab.release(bufferOffset);
  }
}

// When does a server serve? When it answers: an NBD server with its greeting, a control API with
// the first bytes of HTTP/2. A log line or an open port would say so too early.

import { setTimeout as sleep } from 'node:timers/promises';
import { connect, createServer, type NetConnectOpts } from 'node:net';
import { once } from 'node:events';
import type { Child } from './child.js';

const POLL_MS = 2;
const ANSWER_TIMEOUT_MS = 1000;
const START_TIMEOUT_MS = 30_000;
/** Connection preface and an empty SETTINGS frame. Spec: RFC 9113 §3.4. */
const HTTP2_HELLO = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0', 'latin1');

const FIRST_PORT = 11_000;
const LAST_PORT = 30_000;

/** True when the server accepts a connection and sends something. */
function answers(where: NetConnectOpts, hello: Buffer | null): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ ...where, timeout: ANSWER_TIMEOUT_MS });
    const finish = (isAnswered: boolean): void => {
      socket.destroy();
      resolve(isAnswered);
    };
    socket.once('connect', () => void (hello === null || socket.write(hello)));
    socket.once('data', () => finish(true));
    socket.once('error', () => finish(false));
    socket.once('end', () => finish(false));
    socket.once('timeout', () => finish(false));
  });
}

/** @returns milliseconds since the child was spawned. @throws when it ends or takes too long. */
async function untilAnswer(
  child: Child,
  where: NetConnectOpts,
  hello: Buffer | null,
  signal: AbortSignal,
): Promise<number> {
  for (;;) {
    signal.throwIfAborted();
    if (await answers(where, hello)) return performance.now() - child.spawnedMs;
    const elapsedMs = performance.now() - child.spawnedMs;
    if (child.hasEnded || elapsedMs > START_TIMEOUT_MS) {
      throw new Error(`${child.name} did not start:\n${await child.lastWords()}`);
    }
    await sleep(POLL_MS);
  }
}

export function untilNbdServes(child: Child, path: string, signal: AbortSignal): Promise<number> {
  return untilAnswer(child, { path }, null, signal);
}

export function untilControlServes(
  child: Child,
  port: number,
  signal: AbortSignal,
): Promise<number> {
  return untilAnswer(child, { host: '127.0.0.1', port }, HTTP2_HELLO, signal);
}

async function isFree(port: number): Promise<boolean> {
  const server = createServer();
  try {
    server.listen(port, '127.0.0.1');
    await once(server, 'listening');
    return true;
  } catch {
    return false;
  } finally {
    server.close();
  }
}

/** First of `count` neighbouring ports that nobody listens on. */
export async function freePorts(count: number): Promise<number> {
  const blocks = Math.floor((LAST_PORT - FIRST_PORT) / count);
  for (let attempt = 0; attempt < 100; attempt++) {
    const first = FIRST_PORT + Math.floor(Math.random() * blocks) * count;
    const ports = Array.from({ length: count }, (_, i) => first + i);
    if ((await Promise.all(ports.map(isFree))).every(Boolean)) return first;
  }
  throw new Error(`no ${count} neighbouring free ports`);
}

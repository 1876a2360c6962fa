// A process or worker thread that reaches one stage of a socket set's life; see
// socket-lifecycle.test.ts. The stage is the first argument, the unix socket is SOCKET_PATH.

import { isMainThread, parentPort } from 'node:worker_threads';

import { addon } from '../../src/addon/addon.js';
import { realClock } from '../../src/core/clock-real.js';
import { NO_BUFFER, Slab, SLAB_BYTES } from '../../src/core/slab.js';
import type { Connection, ConnectionHandler } from '../../src/transport/connection.js';
import {
  createNativeTransport,
  nativeTransportBytes,
} from '../../src/transport/native-transport.js';

const stage = process.argv[2] as string;
const endpoint = { kind: 'unix', path: process.env['SOCKET_PATH'] as string } as const;
const slab = new Slab(addon.allocateSlab(SLAB_BYTES + nativeTransportBytes(8)));
const transport = createNativeTransport({ slab, clock: realClock });

function fail(): never {
  throw new Error(`deliberate ${stage}`);
}

function handler(events: Partial<ConnectionHandler>): ConnectionHandler {
  return {
    received: (begin, end) => end - begin,
    targetFilled: () => undefined,
    sent: () => undefined,
    closed: () => undefined,
    ...events,
  };
}

function sendText(connection: Connection, text: string): void {
  const at = connection.header(text.length);
  if (at === NO_BUFFER) return;
  slab.bytes.set(Buffer.from(text), at);
  connection.send(at, text.length, 1);
}

/** A connection of this process to itself; the server end gets the events. */
async function open(events: Partial<ConnectionHandler>): Promise<Connection> {
  await transport.listen(endpoint, (connection) => {
    if (stage === 'throw-in-accepted') fail();
    connection.start(handler(events));
  });
  const connection = await transport.connect(endpoint, 1000);
  connection.start(handler(stage === 'throw-in-sent' ? { sent: fail } : {}));
  return connection;
}

function received(connection: Connection): number {
  if (stage === 'throw-in-received') fail();
  if (stage === 'exit-in-received') process.exit(7);
  connection.destroy();
  return 0;
}

async function survive(): Promise<void> {
  process.on('uncaughtException', (error) => console.log(`caught ${error.message}`));
  let count = 0;
  const connection = await open({
    received(begin, end) {
      if (++count === 1) {
        setImmediate(() => sendText(connection, 'again'));
        connection.destroy();
        second().catch(fail);
        fail();
      }
      return end - begin;
    },
  });
  sendText(connection, 'first');
}

async function second(): Promise<void> {
  const path = `${endpoint.path}-2`;
  await transport.listen({ kind: 'unix', path }, (connection) => {
    connection.start(
      handler({
        received(begin, end) {
          console.log('still received');
          void transport.shutdown();
          return end - begin;
        },
      }),
    );
  });
  const connection = await transport.connect({ kind: 'unix', path }, 1000);
  connection.start(handler({}));
  sendText(connection, 'second');
}

/** Two ends that answer each other for ever. */
async function keepBusy(): Promise<void> {
  let server: Connection | null = null;
  await transport.listen(endpoint, (connection) => {
    server = connection;
    connection.start(
      handler({
        received(begin, end) {
          sendText(connection, 'pong');
          return end - begin;
        },
      }),
    );
  });
  const client = await transport.connect(endpoint, 1000);
  client.start(
    handler({
      received(begin, end) {
        sendText(client, 'ping');
        return end - begin;
      },
    }),
  );
  sendText(client, 'ping');
  parentPort?.postMessage(server === null ? 'connected' : 'busy');
}

function leave(): void {
  process.exit(7);
}

switch (stage) {
  case 'exit-idle':
    leave();
    break;
  case 'exit-connecting':
    await transport.listen(endpoint, () => undefined);
    void transport.connect(endpoint, 1000);
    leave();
    break;
  case 'exit-open':
    await open({});
    leave();
    break;
  case 'end-idle':
    break;
  case 'end-after-close': {
    const connection = await open({ closed: () => console.log('closed') });
    setTimeout(() => {
      connection.destroy();
      setImmediate(() => void transport.shutdown());
    }, 20).unref();
    break;
  }
  case 'throw-in-closed':
    (await open({ closed: fail })).destroy();
    break;
  case 'survive':
    await survive();
    break;
  case 'worker-idle':
    parentPort?.postMessage('ready');
    setInterval(() => undefined, 1000);
    break;
  case 'worker-open':
    await open({});
    parentPort?.postMessage('open');
    break;
  case 'worker-busy':
    await keepBusy();
    break;
  default: {
    const connection = await open({ received: () => received(connection) });
    sendText(connection, 'hello');
  }
}
if (isMainThread && stage.startsWith('worker')) process.exit(1);

// Whether an address is free to listen on, asked before an engine takes replicas: starting one takes
// the volume from an engine that serves it, so a second start by mistake must fail before that.

import { createConnection, createServer, type Server } from 'node:net';
import { StorageError } from '../core/errors.js';
import type { Endpoint } from '../transport/connection.js';

/** @throws ADDRESS_IN_USE. What is wrong otherwise is found when it is listened on. */
export async function checkFree(endpoint: Endpoint): Promise<void> {
  const isUsed =
    endpoint.kind === 'unix' ? await isAnswered(endpoint.path) : await isTaken(endpoint);
  if (!isUsed) return;
  const name = endpoint.kind === 'unix' ? endpoint.path : `${endpoint.host}:${endpoint.port}`;
  const text = `${name} is in use: another engine may be serving this volume already`;
  throw new StorageError('ADDRESS_IN_USE', text, { endpoint: name });
}

/** A socket file that nobody answers on is left from a crash. */
function isAnswered(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection({ path });
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

function isTaken({ host, port }: { host: string; port: number }): Promise<boolean> {
  if (port === 0) return Promise.resolve(false);
  return new Promise((resolve) => {
    const server: Server = createServer();
    server.once('error', (error: NodeJS.ErrnoException) => resolve(error.code === 'EADDRINUSE'));
    server.listen({ host, port }, () => server.close(() => resolve(false)));
  });
}

// Listens with node:net, for endpoints whose connections may be upgraded to TLS: a native
// connection cannot hand its socket over.

import { unlink } from 'node:fs/promises';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { describeEndpoint, type Endpoint, type Listener } from '../../transport/connection.js';
import { listenError } from '../../transport/socket-errors.js';

/**
 * Like Transport.listen, for plain sockets. The caller owns accepted sockets.
 * @throws ADDRESS_IN_USE, INVALID_ARGUMENT.
 */
export async function listenForStreams(
  endpoint: Endpoint,
  accepted: (socket: Socket) => void,
): Promise<Listener> {
  const server = createServer({ noDelay: true }, accepted);
  const where = endpoint.kind === 'unix' ? { path: endpoint.path } : endpoint;
  try {
    await listenOn(server, where);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'EIO';
    const isStale =
      code === 'EADDRINUSE' && endpoint.kind === 'unix' && !(await isAnswered(endpoint.path));
    if (!isStale) throw listenError(code, describeEndpoint(endpoint));
    await unlink(endpoint.path);
    await listenOn(server, where);
  }
  const bound = server.address();
  const port = typeof bound === 'object' && bound !== null ? bound.port : 0;
  return {
    address: endpoint.kind === 'unix' ? endpoint : { ...endpoint, port },
    close: () => new Promise((resolve) => void server.close(() => resolve())),
  };
}

function listenOn(server: Server, where: object): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(where, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

/** Whether somebody listens on the socket file. */
function isAnswered(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect(path);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', (error: NodeJS.ErrnoException) => resolve(error.code !== 'ECONNREFUSED'));
  });
}

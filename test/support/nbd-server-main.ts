// A process that serves a memory device over NBD, for tests with real clients and for
// measurements: `node nbd-server-main.js SIZE_BYTES ENDPOINT…`, an endpoint being a socket path or
// host:port. Prints its endpoints as JSON when it serves, and ends cleanly on SIGTERM.

import { realClock } from '../../src/core/clock-real.js';
import { silentLogger } from '../../src/core/log.js';
import { createSlab } from '../../src/disk/native-disk.js';
import { createNbdServer } from '../../src/frontend/nbd/server.js';
import type { Endpoint } from '../../src/transport/connection.js';
import {
  createNativeTransport,
  nativeTransportBytes,
} from '../../src/transport/native-transport.js';
import { MemoryDevice } from './memory-device.js';

const [sizeText, ...endpointTexts] = process.argv.slice(2);

function parseEndpoint(text: string): Endpoint {
  const match = /^([\d.]+):(\d+)$/.exec(text);
  if (match === null) return { kind: 'unix', path: text };
  return { kind: 'tcp', host: match[1] as string, port: Number(match[2]) };
}

const slab = createSlab(nativeTransportBytes());
const transport = createNativeTransport({ slab, clock: realClock });
const device = new MemoryDevice({ slab, sizeBytes: Number(sizeText) });
const server = await createNbdServer({
  transport,
  slab,
  clock: realClock,
  log: silentLogger,
  exports: new Map([['vol', { device, description: 'memory', readOnly: false, zeroesFast: true }]]),
  endpoints: endpointTexts.map(parseEndpoint),
});
process.on('SIGTERM', () => {
  void server.close({ drainMs: 5000 }).then(async () => {
    await transport.shutdown();
    const leaked = slab.freeCounts().some(({ freeCount, count }) => freeCount !== count);
    process.exit(leaked ? 3 : 0);
  });
});
process.stdout.write(`${JSON.stringify(server.endpoints)}\n`);

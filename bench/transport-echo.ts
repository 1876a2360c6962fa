// How much does one hop between two processes cost? A frame of a 26-byte header and 4 KiB of
// payload goes to an echo server and back, over a unix socket: native sockets against Node's.
// Usage: node dist/bench/transport-echo.js [seconds per row]

import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { addon } from '../src/addon/addon.js';
import { realClock } from '../src/core/clock-real.js';
import { Slab, SLAB_BYTES } from '../src/core/slab.js';
import type { Connection, ConnectionHandler } from '../src/transport/connection.js';
import { ConnectionRegions } from '../src/transport/connection-memory.js';
import { createNativeTransport, nativeTransportBytes } from '../src/transport/native-transport.js';
import { takePayload } from '../src/transport/payload.js';
import { wrapStream } from '../src/transport/stream-connection.js';

type Kind = 'native' | 'stream';

const HEADER_BYTES = 26;
const CONNECTIONS_MAX = 4;

interface CpuReport {
  readonly cpuMicros: number;
}

const slab = new Slab(addon.allocateSlab(SLAB_BYTES + nativeTransportBytes(CONNECTIONS_MAX)));
const regions = new ConnectionRegions(slab, CONNECTIONS_MAX);
const transport = createNativeTransport({ slab, clock: realClock, regions });

function cpuMicros(): number {
  const { user, system } = process.cpuUsage();
  return user + system;
}

/** Takes whole frames of one payload size; the payload is in `buffer` when `arrived` is called. */
class FrameReader implements ConnectionHandler {
  private readonly connection: Connection;
  private readonly arrived: (buffer: number) => void;
  private payloadBytes = 0;
  private buffer = -1;

  constructor(connection: Connection, arrived: (buffer: number) => void) {
    this.connection = connection;
    this.arrived = arrived;
    connection.start(this);
  }

  received(beginOffset: number, endOffset: number): number {
    let at = beginOffset;
    while (endOffset - at >= HEADER_BYTES) {
      this.payloadBytes = slab.view.getUint32(at, true);
      // A copied payload must be here as a whole, a large one is steered.
      const isSmall = this.payloadBytes < 16384;
      if (isSmall && endOffset - at < HEADER_BYTES + this.payloadBytes) break;
      at += HEADER_BYTES;
      this.buffer = slab.allocate(this.payloadBytes);
      const taken = takePayload(this.connection, at, endOffset, this.buffer, this.payloadBytes);
      at += taken;
      if (taken < this.payloadBytes) break;
      this.arrived(this.buffer);
    }
    return at - beginOffset;
  }

  targetFilled(): void {
    this.arrived(this.buffer);
  }

  sent(token: number): void {
    slab.release(token - 1);
  }

  closed(): void {
    if (process.send !== undefined) process.exit(0);
  }

  /** Queues a frame; the buffer is released when it is sent. */
  send(buffer: number, payloadBytes: number): void {
    const at = this.connection.header(HEADER_BYTES);
    slab.view.setUint32(at, payloadBytes, true);
    this.connection.send(at, HEADER_BYTES, 0);
    this.connection.send(buffer, payloadBytes, buffer + 1);
  }

  get lastPayloadBytes(): number {
    return this.payloadBytes;
  }
}

async function serve(kind: Kind, path: string): Promise<void> {
  const echo = (connection: Connection): void => {
    const reader: FrameReader = new FrameReader(connection, (buffer) =>
      reader.send(buffer, reader.lastPayloadBytes),
    );
  };
  if (kind === 'native') {
    await transport.listen({ kind: 'unix', path }, echo);
  } else {
    const server = net.createServer((stream) =>
      echo(wrapStream({ stream, regions, clock: realClock, peer: 'client' })),
    );
    server.listen(path);
    await once(server, 'listening');
  }
  process.on('message', () => process.send?.({ cpuMicros: cpuMicros() } satisfies CpuReport));
  process.send?.('ready');
}

async function open(kind: Kind, path: string): Promise<Connection> {
  if (kind === 'native') return transport.connect({ kind: 'unix', path }, 1000);
  const stream = net.connect(path);
  await once(stream, 'connect');
  return wrapStream({ stream, regions, clock: realClock, peer: 'server' });
}

/** Keeps queueDepth frames under way for the given time. */
async function measure(
  kind: Kind,
  path: string,
  payloadBytes: number,
  queueDepth: number,
  seconds: number,
): Promise<string> {
  const self = fileURLToPath(import.meta.url);
  const server = fork(self, ['serve', kind, path]);
  await once(server, 'message');
  const serverCpu = async (): Promise<number> => {
    server.send('cpu');
    return ((await once(server, 'message'))[0] as CpuReport).cpuMicros;
  };
  const connection = await open(kind, path);
  let trips = 0;
  let isDone = false;
  let finished: () => void = () => undefined;
  const idle = new Promise<void>((resolve) => {
    finished = resolve;
  });
  let inFlight = 0;
  const reader: FrameReader = new FrameReader(connection, (buffer) => {
    trips++;
    if (!isDone) {
      reader.send(buffer, payloadBytes);
      return;
    }
    slab.release(buffer);
    if (--inFlight === 0) finished();
  });
  for (; inFlight < queueDepth; inFlight++) reader.send(slab.allocate(payloadBytes), payloadBytes);
  await new Promise((resolve) => setTimeout(resolve, 500));
  const before = { trips, client: cpuMicros(), server: await serverCpu(), atMs: realClock.nowMs() };
  await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  const count = trips - before.trips;
  const client = (cpuMicros() - before.client) / count;
  const serverMicros = ((await serverCpu()) - before.server) / count;
  const rate = count / ((realClock.nowMs() - before.atMs) / 1000);
  isDone = true;
  await idle;
  connection.destroy();
  await once(server, 'exit');
  const size = payloadBytes >= 1 << 20 ? `${payloadBytes >> 20} MiB` : `${payloadBytes >> 10} KiB`;
  return `${kind.padEnd(7)} ${size} qd${queueDepth}: ${Math.round(rate)} round trips/s, CPU µs per trip: client ${client.toFixed(1)}, server ${serverMicros.toFixed(1)}`;
}

async function main(seconds: number): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'longhorn-echo-'));
  let row = 0;
  for (const [payloadBytes, queueDepth] of [
    [4096, 1],
    [4096, 32],
    [1 << 20, 4],
  ] as const) {
    for (let round = 0; round < 2; round++) {
      for (const kind of ['native', 'stream'] as const) {
        const path = join(directory, `s${row++}`);
        console.log(await measure(kind, path, payloadBytes, queueDepth, seconds));
      }
    }
  }
  rmSync(directory, { recursive: true });
  await transport.shutdown();
}

if (process.argv[2] === 'serve') await serve(process.argv[3] as Kind, process.argv[4] as string);
else await main(Number(process.argv[2] ?? 2));

// A real NBD server on real sockets inside the test process, serving a memory device.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { realClock } from '../../src/core/clock-real.js';
import type { Clock } from '../../src/core/clock.js';
import { silentLogger } from '../../src/core/log.js';
import { CONNECTIONS_MAX } from '../../src/core/limits.js';
import type { Slab } from '../../src/core/slab.js';
import { createSlab } from '../../src/disk/native-disk.js';
import { createNbdServer, type NbdServer, type NbdTls } from '../../src/frontend/nbd/server.js';
import type { NbdExports } from '../../src/frontend/nbd/export.js';
import { connectionRegionsBytes } from '../../src/transport/connection-memory.js';
import {
  createNativeTransport,
  nativeTransportBytes,
  type NativeTransport,
} from '../../src/transport/native-transport.js';
import { MemoryDevice } from './memory-device.js';

export interface NbdService {
  readonly server: NbdServer;
  readonly device: MemoryDevice;
  readonly slab: Slab;
  readonly transport: NativeTransport;
  readonly directory: string;
  readonly socketPath: string;
  readonly port: number;
  buffersInUse(): number;
  stop(): Promise<void>;
}

export interface NbdServiceOptions {
  readonly sizeBytes: number;
  readonly tls?: NbdTls;
  readonly clock?: Clock;
  readonly exports?: (device: MemoryDevice) => NbdExports;
}

/** Listens on a unix socket and on a TCP port of 127.0.0.1. */
export async function startNbdService(options: NbdServiceOptions): Promise<NbdService> {
  const directory = mkdtempSync(join(tmpdir(), 'nbd-'));
  const socketPath = join(directory, 'nbd.sock');
  const slab = createSlab(nativeTransportBytes() + connectionRegionsBytes(CONNECTIONS_MAX));
  const clock = options.clock ?? realClock;
  const transport = createNativeTransport({ slab, clock });
  const device = new MemoryDevice({ slab, sizeBytes: options.sizeBytes });
  const volume = { device, description: 'test volume', readOnly: false, zeroesFast: true };
  const server = await createNbdServer({
    transport,
    slab,
    clock,
    log: silentLogger,
    exports: options.exports?.(device) ?? new Map([['vol', volume]]),
    endpoints: [
      { kind: 'unix', path: socketPath },
      { kind: 'tcp', host: '127.0.0.1', port: 0 },
    ],
    ...(options.tls !== undefined && { tls: options.tls }),
  });
  const tcp = server.endpoints[1];
  return {
    server,
    device,
    slab,
    transport,
    directory,
    socketPath,
    port: tcp?.kind === 'tcp' ? tcp.port : 0,
    buffersInUse: () =>
      slab.freeCounts().reduce((sum, { count, freeCount }) => sum + count - freeCount, 0),
    stop: async () => {
      await server.close({ drainMs: 1000 });
      await transport.shutdown();
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

const execFileAsync = promisify(execFile);

/** Output of a program; rejects, with its stderr in the message, when it fails. */
export async function run(program: string, ...args: string[]): Promise<string> {
  const { stdout } = await execFileAsync(program, args, {
    timeout: 60_000,
    maxBuffer: 16 * 1024 * 1024,
    env: { ...process.env, PATH: `${process.env['PATH']}:/usr/sbin:/sbin` },
  });
  return stdout;
}

/** False when the program is not installed; its own options do not matter. */
export async function isInstalled(program: string): Promise<boolean> {
  try {
    await run(program, '--version');
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ENOENT';
  }
}

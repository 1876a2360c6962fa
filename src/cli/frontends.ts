// The frontends an engine can switch to by name, each loaded only when it is started.

import { join } from 'node:path';
import { StorageError } from '../core/errors.js';
import type { FrontendPort } from '../engine/frontend-port.js';
import type { Volume } from '../engine/volume.js';
import type { Endpoint } from '../transport/connection.js';
import { checkFree } from './free-endpoint.js';
import type { Runtime } from './runtime.js';

export interface NbdTlsFiles {
  readonly mode: 'off' | 'allow' | 'require';
  readonly certificate?: string;
  readonly key?: string;
  readonly clientCa?: string;
}

export interface FrontendOptions {
  readonly runtime: Runtime;
  readonly volume: Volume;
  readonly volumeName: string;
  readonly runtimeDirectory: string;
  /** Where NBD listens; empty: a unix socket in the runtime directory. */
  readonly nbdEndpoints: readonly Endpoint[];
  readonly nbdTls: NbdTlsFiles;
}

interface RunningFrontend {
  readonly endpoint: string;
  close(): Promise<void>;
}

type Starter = (options: FrontendOptions) => Promise<RunningFrontend>;

const DRAIN_MS = 10_000;

async function startNbd(options: FrontendOptions): Promise<RunningFrontend> {
  const { createNbdServer, nbdUri } = await import('../frontend/nbd/server.js');
  const { runtime, volume, volumeName, nbdTls } = options;
  const endpoints = nbdEndpoints(options);
  const device = { device: volume, description: `Longhorn volume ${volumeName}`, readOnly: false };
  const server = await createNbdServer({
    ...runtime,
    exports: new Map([[volumeName, { ...device, zeroesFast: true }]]),
    endpoints,
    ...(hasTls(nbdTls) && { tls: await readTls(nbdTls) }),
  });
  const [first] = server.endpoints;
  return {
    endpoint: nbdUri(first ?? (endpoints[0] as Endpoint), volumeName, nbdTls.mode === 'require'),
    close: () => server.close({ drainMs: DRAIN_MS }),
  };
}

function nbdEndpoints(options: FrontendOptions): readonly Endpoint[] {
  if (options.nbdEndpoints.length > 0) return options.nbdEndpoints;
  const path = join(options.runtimeDirectory, `longhorn-${options.volumeName}.nbd.sock`);
  return [{ kind: 'unix', path }];
}

function socketPath({ runtimeDirectory, volumeName }: FrontendOptions): string {
  return join(runtimeDirectory, `longhorn-${volumeName}.sock`);
}

/** @throws INVALID_ARGUMENT for files without a mode: a volume meant to be private would not be. */
function hasTls({ mode, certificate, key, clientCa }: NbdTlsFiles): boolean {
  if (mode !== 'off') return true;
  if (certificate === undefined && key === undefined && clientCa === undefined) return false;
  const text = 'the --nbd-tls-… files need --nbd-tls allow or --nbd-tls require';
  throw new StorageError('INVALID_ARGUMENT', text);
}

async function readTls(files: NbdTlsFiles): Promise<{
  mode: 'allow' | 'require';
  certificate: Buffer;
  key: Buffer;
  clientCa?: Buffer;
}> {
  const { mode, certificate, key, clientCa } = files;
  if (certificate === undefined || key === undefined || mode === 'off') {
    const text = 'NBD over TLS needs --nbd-tls-certificate and --nbd-tls-key';
    throw new StorageError('INVALID_ARGUMENT', text);
  }
  const tls = {
    mode,
    certificate: await readPem('--nbd-tls-certificate', certificate),
    key: await readPem('--nbd-tls-key', key),
    ...(clientCa !== undefined && { clientCa: await readPem('--nbd-tls-client-ca', clientCa) }),
  };
  const { createSecureContext } = await import('node:tls');
  try {
    createSecureContext({ cert: tls.certificate, key: tls.key, ca: tls.clientCa });
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    const text = `${certificate} and ${key} are not a PEM certificate and its key: ${reason}`;
    throw new StorageError('INVALID_ARGUMENT', text, { certificate, key }, error);
  }
  return tls;
}

async function readPem(flag: string, path: string): Promise<Buffer> {
  const { readFile } = await import('node:fs/promises');
  return readFile(path).catch((error: NodeJS.ErrnoException) => {
    const text = `cannot read ${flag} ${path}: ${error.code ?? error.message}`;
    throw new StorageError('INVALID_ARGUMENT', text, { path }, error);
  });
}

async function startSocket(options: FrontendOptions): Promise<RunningFrontend> {
  const { startSocketFrontend } = await import('../frontend/socket/server.js');
  const { runtime, volume } = options;
  const path = socketPath(options);
  const server = await startSocketFrontend({
    transport: runtime.transport,
    path,
    device: volume,
    clock: runtime.clock,
    log: runtime.log,
  });
  return { endpoint: path, close: () => server.close() };
}

async function startRest(options: FrontendOptions): Promise<RunningFrontend> {
  const { startRestFrontend, REST_HOST } = await import('../frontend/rest/server.js');
  const { runtime, volume, volumeName } = options;
  const server = await startRestFrontend({ device: volume, slab: runtime.slab, volumeName });
  return { endpoint: `http://${REST_HOST}:${server.port}`, close: () => server.close() };
}

const STARTERS: Readonly<Record<string, Starter>> = {
  nbd: startNbd,
  socket: startSocket,
  rest: startRest,
};

export const FRONTEND_NAMES: readonly string[] = Object.keys(STARTERS);

export class SwitchableFrontend implements FrontendPort {
  private readonly options: FrontendOptions;
  private running: RunningFrontend | null = null;
  name = '';
  state: FrontendPort['state'] = '';

  constructor(options: FrontendOptions) {
    this.options = options;
  }

  get endpoint(): string {
    return this.running?.endpoint ?? '';
  }

  /** Before anything is taken from an engine that may be serving there. @throws ADDRESS_IN_USE. */
  async checkFree(name: string): Promise<void> {
    const { options } = this;
    if (name === 'nbd') for (const endpoint of nbdEndpoints(options)) await checkFree(endpoint);
    if (name === 'socket') await checkFree({ kind: 'unix', path: socketPath(options) });
  }

  async start(name: string): Promise<void> {
    const starter = STARTERS[name];
    if (starter === undefined) {
      const text = `unknown frontend '${name}'; known are ${FRONTEND_NAMES.join(', ')}`;
      throw new StorageError('INVALID_ARGUMENT', text);
    }
    await this.shutdown();
    this.running = await starter(this.options);
    this.name = name;
    this.state = 'up';
    this.options.runtime.log.info('frontend.started', { frontend: name, endpoint: this.endpoint });
  }

  async shutdown(): Promise<void> {
    const { running } = this;
    if (running === null) return;
    this.running = null;
    await running.close();
    this.state = 'down';
    this.options.runtime.log.info('frontend.stopped', { frontend: this.name });
  }

  /** NBD has no message for it: a client sees the new size when it connects again. */
  resized(): Promise<void> {
    return Promise.resolve();
  }
}

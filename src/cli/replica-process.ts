// The replica process: control API, data server on TCP and on a unix socket for an engine beside
// it, and a sync agent as a child. When one of them dies the process ends with its error.

import { spawn, type ChildProcess } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdir, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { StorageError } from '../core/errors.js';
import type { Logger, LogLevel } from '../core/log.js';
import type { DiskBackend } from '../addon/addon.js';
import { createNativeDisk, type NativeDisk } from '../disk/native-disk.js';
import type { NativeDiskFile } from '../disk/native-disk-file.js';
import type { FrameServer } from '../frame-server/server.js';
import { startDataServer } from '../replica/data-server.js';
import { ReplicaServiceDefinition } from '../api/generated/replica.js';
import { EnginePresence } from '../replica/engine-presence.js';
import { replicaHandlers } from '../replica/control-service.js';
import { Replica } from '../replica/replica.js';
import { statusUnknown } from '../rpc/error-map.js';
import { createRpcServer } from '../rpc/server.js';
import type { Endpoint } from '../transport/connection.js';
import { EXIT_CODE } from './exit-codes.js';
import { parseListenAddress } from './listen-address.js';
import {
  createDaemonLogger,
  createRuntime,
  exitOnStartFailure,
  hostBootId,
  type Runtime,
  stopOnSignal,
  settleSoon,
} from './runtime.js';

export interface ReplicaProcessOptions {
  readonly directory: string;
  readonly volumeName: string;
  readonly instanceName: string;
  readonly listen: string;
  readonly sizeBytes?: number;
  readonly backingFilePath?: string;
  readonly startsSyncAgent: boolean;
  readonly syncAgentPortCount: number;
  readonly revisionCounter: boolean;
  /** Set with --data-server-protocol unix: data only on this socket. */
  readonly unixDataPath?: string;
  readonly unmapMarkDiskChainRemoved: boolean;
  readonly snapshotMaxCount: number;
  readonly snapshotMaxBytes: number;
  readonly encrypted: boolean;
  readonly diskBackend: DiskBackend | 'auto';
  readonly logLevel: LogLevel;
}

const CONTROL_GRACE_MS = 5000;
/** Longest path of a unix socket, without the terminating zero. */
const UNIX_PATH_BYTES_MAX = 107;
/** Data socket for an engine on the same machine; Longhorn ignores unknown files in the directory. */
const LOCAL_DATA_SOCKET = '.data.sock';

export async function runReplica(options: ReplicaProcessOptions): Promise<void> {
  const { volumeName, directory } = options;
  const log = createDaemonLogger(options.logLevel, { process: 'replica', volume: volumeName });
  const runtime = createRuntime(log);
  try {
    await serve(options, runtime);
    log.info('replica.serving', { directory, listen: options.listen });
    settleSoon(runtime.clock);
  } catch (error) {
    exitOnStartFailure(log, error, EXIT_CODE.failure);
  }
}

async function serve(options: ReplicaProcessOptions, runtime: Runtime): Promise<void> {
  const { log, clock, slab, transport } = runtime;
  const { directory, volumeName, instanceName } = options;
  if (options.backingFilePath !== undefined) await checkBackingFile(options.backingFilePath);
  await makeDirectory(directory);
  const disk = createNativeDisk({ slab, backend: options.diskBackend, log });
  const directoryLock = await lockDirectory(disk, directory);
  const dataServers: FrameServer[] = [];
  const replica = await Replica.at({
    disk,
    directory,
    clock,
    log,
    newId: randomUUID,
    hostBootId: hostBootId(),
    takenOver: () => {
      for (const dataServer of dataServers) dataServer.endSuperseded();
    },
    revisionCounter: options.revisionCounter,
    encrypted: options.encrypted,
    unmapMarkDiskChainRemoved: options.unmapMarkDiskChainRemoved,
    snapshotMaxCount: options.snapshotMaxCount,
    snapshotMaxBytes: options.snapshotMaxBytes,
    ...(options.backingFilePath !== undefined && { backingFilePath: options.backingFilePath }),
  });
  if (options.sizeBytes !== undefined) await replica.create(options.sizeBytes);

  const { host, port } = parseListenAddress(options.listen);
  const openNow = (): number => replica.openSerial || replica.nextSerial;
  const presence = new EnginePresence(clock, openNow, (open) => {
    replica.abandon(open).catch((error: unknown) => log.error('replica.abandon.failed', { error }));
  });
  const serveData = async (endpoint: Endpoint): Promise<void> => {
    dataServers.push(await startDataServer({ transport, endpoint, replica, clock, log, presence }));
  };
  let localDataPath = '';
  if (options.unixDataPath !== undefined) {
    await mkdir(dirname(options.unixDataPath), { recursive: true, mode: 0o700 });
    await serveData({ kind: 'unix', path: options.unixDataPath });
  } else {
    await serveData({ kind: 'tcp', host, port: port + 1 });
    localDataPath = await serveLocalData(directory, serveData, log);
  }
  const server = createRpcServer({
    clock,
    log,
    identity: { volumeName, instanceName, what: 'replica' },
  });
  const handlers = replicaHandlers(replica, { hostBootId: hostBootId(), localDataPath });
  server.addService(ReplicaServiceDefinition, handlers, { statusOf: statusUnknown });
  await server.listen(host, port);
  const agent = options.startsSyncAgent ? startSyncAgent(options, host, port, log) : null;
  stopOnSignal(log, async () => {
    agent?.removeAllListeners('exit');
    agent?.kill('SIGTERM');
    await Promise.all(dataServers.map((dataServer) => dataServer.close()));
    await replica.close();
    await server.close(CONTROL_GRACE_MS);
    await transport.shutdown();
    await directoryLock.close();
    await disk.shutdown();
  });
}

/** Like Longhorn at the start, not when the first engine comes. */
async function checkBackingFile(path: string): Promise<void> {
  await stat(path).catch((error: NodeJS.ErrnoException) => {
    const text = `cannot use --backing-file ${path}: ${error.code ?? error.message}`;
    throw new StorageError('INVALID_ARGUMENT', text, { path }, error);
  });
}

/** One level, as Longhorn: a missing parent is a mistake, not something to create. */
async function makeDirectory(directory: string): Promise<void> {
  await mkdir(directory, { mode: 0o700 }).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'EEXIST') return;
    const text = `cannot create ${directory}: ${error.message}`;
    throw new StorageError('INVALID_ARGUMENT', text, { directory }, error);
  });
  if ((await stat(directory)).isDirectory()) return;
  throw new StorageError('INVALID_ARGUMENT', `${directory} is not a directory`, { directory });
}

/** Two processes that write one chain would destroy it (P6). The kernel frees the lock at our end. */
async function lockDirectory(disk: NativeDisk, directory: string): Promise<NativeDiskFile> {
  const lock = await disk.open(directory, { writable: false, direct: false });
  if (await lock.tryLock()) return lock;
  await lock.close();
  const text = `another process serves the replica in ${directory}`;
  throw new StorageError('BUSY', text, { directory });
}

/** Serves data on a socket in the replica's directory; '' when its path is too long or it fails. */
async function serveLocalData(
  directory: string,
  serveData: (endpoint: Endpoint) => Promise<void>,
  log: Logger,
): Promise<string> {
  const path = join(directory, LOCAL_DATA_SOCKET);
  if (Buffer.byteLength(path) > UNIX_PATH_BYTES_MAX) return '';
  try {
    await serveData({ kind: 'unix', path });
    return path;
  } catch (error) {
    // For example a file system without sockets: engines then use TCP.
    log.info('replica.data.local.unavailable', { path, error });
    return '';
  }
}

function startSyncAgent(
  options: ReplicaProcessOptions,
  host: string,
  port: number,
  log: Logger,
): ChildProcess {
  const firstPort = port + 3;
  const lastPort = firstPort + options.syncAgentPortCount - 1;
  const program = process.argv[1];
  if (program === undefined) throw new StorageError('INVALID_STATE', 'the program has no path');
  const dialHost = host === '0.0.0.0' ? '127.0.0.1' : host;
  const agent = spawn(
    process.execPath,
    [
      ...process.execArgv,
      program,
      ...(options.volumeName === '' ? [] : ['--volume-name', options.volumeName]),
      ...(options.logLevel === 'debug' ? ['--debug'] : []),
      'sync-agent',
      '--listen',
      `${host}:${port + 2}`,
      '--replica',
      `${dialHost}:${port}`,
      '--listen-port-range',
      `${firstPort}-${lastPort}`,
      ...(options.instanceName === '' ? [] : ['--replica-instance-name', options.instanceName]),
    ],
    // The pipe to standard input tells the agent when its replica is gone, however it ended.
    { cwd: options.directory, stdio: ['pipe', 'ignore', 'inherit'] },
  );
  agent.on('error', (error) => exitOnStartFailure(log, error, EXIT_CODE.failure));
  agent.on('exit', (code, signal) => {
    log.error('sync-agent.exited', { code, signal });
    process.exit(EXIT_CODE.failure);
  });
  return agent;
}

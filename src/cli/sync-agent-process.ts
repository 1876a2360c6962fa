// The sync agent process: a child of its replica, with the replica's directory as working
// directory. It ends when its parent does: the pipe on standard input closes.

import { fstatSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { setPriority } from 'node:os';
import { join } from 'node:path';
import { ReplicaServiceDefinition } from '../api/generated/replica.js';
import { SyncAgentServiceDefinition } from '../api/generated/syncagent.js';
import type { LogLevel } from '../core/log.js';
import { createNativeDisk, type NativeDisk } from '../disk/native-disk.js';
import { createChannel, createClient, parseRpcAddress } from '../rpc/client.js';
import { statusUnknown } from '../rpc/error-map.js';
import { createRpcServer } from '../rpc/server.js';
import { createSyncAgentHandlers } from '../sync/control-service.js';
import { createFileLock, type NodeLock } from '../sync/node-lock.js';
import { SyncAgent } from '../sync/sync-agent.js';
import { controlPath } from './data-paths.js';
import { EXIT_CODE } from './exit-codes.js';
import { parseListenAddress } from './listen-address.js';
import {
  createDaemonLogger,
  createRuntime,
  defaultRuntimeDirectory,
  exitOnStartFailure,
  type Runtime,
  stopOnSignal,
  settleSoon,
} from './runtime.js';

export interface SyncAgentProcessOptions {
  readonly directory: string;
  readonly volumeName: string;
  readonly instanceName: string;
  readonly listen: string;
  readonly firstPort: number;
  readonly lastPort: number;
  /** HOST:PORT of the replica's control API. */
  readonly replicaAddress: string;
  readonly logLevel: LogLevel;
}

/** Rebuilds, purges and hashes leave the processor to replicas and engines that serve clients. */
const NICENESS = 5;
const CONTROL_GRACE_MS = 5000;

export async function runSyncAgent(options: SyncAgentProcessOptions): Promise<void> {
  setPriority(NICENESS); // before other threads begin, which take it over
  const { volumeName } = options;
  const log = createDaemonLogger(options.logLevel, { process: 'sync-agent', volume: volumeName });
  const runtime = createRuntime(log);
  try {
    await serve(options, runtime);
    log.info('sync-agent.serving', { listen: options.listen, directory: options.directory });
    settleSoon(runtime.clock);
  } catch (error) {
    exitOnStartFailure(log, error, EXIT_CODE.failure);
  }
}

async function serve(options: SyncAgentProcessOptions, runtime: Runtime): Promise<void> {
  const { clock, log, slab } = runtime;
  const { volumeName, instanceName, firstPort, lastPort, directory } = options;
  const disk = createNativeDisk({ slab, log });
  const { host, port } = parseListenAddress(options.listen);
  const identity = { volumeName, instanceName };
  const channel = createChannel(parseRpcAddress(options.replicaAddress), { clock, identity });
  const agent = new SyncAgent({
    disk,
    clock,
    log,
    directory,
    ports: { firstPort, count: lastPort - firstPort + 1 },
    receiverHost: host,
    replica: createClient(ReplicaServiceDefinition, channel),
    hashLock: nodeHashLock(disk),
    hostRoot: '/host',
    peerIdentity: { volumeName, instanceName: '' },
  });
  const server = createRpcServer({ clock, log, identity: { ...identity, what: 'sync-agent' } });
  const handlers = createSyncAgentHandlers(agent);
  server.addService(SyncAgentServiceDefinition, handlers, { statusOf: statusUnknown });
  await server.listen(host, port);
  const stop = async (): Promise<void> => {
    await agent.close();
    await server.close(CONTROL_GRACE_MS);
    channel.close();
    await disk.shutdown();
  };
  stopOnSignal(log, stop);
  endWithParent();
}

/** When the replica is killed there is nobody to send a signal: its end of the pipe closes. */
function endWithParent(): void {
  const isPipe = fstatSync(0).isFIFO() || fstatSync(0).isSocket();
  if (!isPipe) return;
  process.stdin.on('end', () => process.exit(EXIT_CODE.ok));
  process.stdin.on('error', () => process.exit(EXIT_CODE.ok));
  process.stdin.resume();
}

/** One snapshot is hashed at a time on a node; as an ordinary user, one of that user's. */
function nodeHashLock(disk: NativeDisk): NodeLock {
  const base =
    process.getuid?.() === 0 ? controlPath(process.env) : defaultRuntimeDirectory(process.env);
  const directory = join(base, '.lock');
  return createFileLock(async () => {
    await mkdir(directory, { recursive: true, mode: 0o755 });
    return disk.open(join(directory, 'hash'), { writable: true, create: true, direct: false });
  });
}

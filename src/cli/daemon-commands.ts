// The commands that become a process of the data path: engine, replica, sync-agent. They parse and
// check flags (Longhorn's names and defaults) and only then load what they run.

import { type Command, InvalidArgumentError, Option } from 'commander';
import { REPLICAS_MAX, SNAPSHOT_COUNT_MAX } from '../core/limits.js';
import type { LogLevel } from '../core/log.js';
import type { Endpoint } from '../transport/connection.js';
import { collect, sizeBytes, wholeNumber } from './flag-values.js';
import { FRONTEND_NAMES } from './frontends.js';
import { parseListenAddress } from './listen-address.js';

const VOLUME_NAME_PATTERN = /^[a-zA-Z0-9][a-zA-Z0-9_.-]+$/;
const VOLUME_NAME_LENGTH_MAX = 64;

interface PortRange {
  readonly firstPort: number;
  readonly lastPort: number;
}

interface GlobalOptions {
  readonly volumeName: string;
  readonly engineInstanceName: string;
  readonly debug: boolean;
}

export function parseVolumeName(name: string): string {
  if (name.length <= VOLUME_NAME_LENGTH_MAX && VOLUME_NAME_PATTERN.test(name)) return name;
  throw new InvalidArgumentError(
    `A volume name has 2 to ${VOLUME_NAME_LENGTH_MAX} characters of a-z A-Z 0-9 _ . - and begins with a letter or digit.`,
  );
}

function positiveNumber(text: string): number {
  const value = wholeNumber(text);
  if (value > 0) return value;
  throw new InvalidArgumentError('Must be 1 or more.');
}

/** Checks --listen before anything is created; the daemon parses it. */
function listenAddress(text: string): string {
  try {
    parseListenAddress(text);
    return text;
  } catch {
    throw new InvalidArgumentError('Use HOST:PORT, [IPV6]:PORT or :PORT.');
  }
}

/** '' is Longhorn's own way to say none. */
function frontendName(text: string): string {
  if (text === '' || text === 'none' || FRONTEND_NAMES.includes(text)) return text;
  throw new InvalidArgumentError(`Known frontends are ${FRONTEND_NAMES.join(', ')} and none.`);
}

/** Parses FIRST-LAST. */
function portRange(text: string): PortRange {
  const match = /^(\d{1,5})-(\d{1,5})$/.exec(text);
  const [firstPort, lastPort] = [Number(match?.[1]), Number(match?.[2])];
  if (match !== null && firstPort > 0 && firstPort <= lastPort && lastPort <= 65535) {
    return { firstPort, lastPort };
  }
  throw new InvalidArgumentError('Use FIRST-LAST, for example 9700-9800.');
}

/** Parses unix:///PATH or HOST:PORT. */
function endpoint(text: string, earlier: readonly Endpoint[]): Endpoint[] {
  const path = /^unix:(?:\/\/)?(\/.+)$/.exec(text)?.[1];
  if (path !== undefined) return [...earlier, { kind: 'unix', path }];
  const match = /^(?:\[([^\]]+)\]|([^:/]+)):(\d{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host === undefined || port > 65535) {
    throw new InvalidArgumentError('Use unix:///PATH or HOST:PORT.');
  }
  return [...earlier, { kind: 'tcp', host, port }];
}

function logLevel(globals: GlobalOptions): LogLevel {
  return globals.debug ? 'debug' : 'info';
}

const DATA_PROTOCOL = new Option('--data-server-protocol <protocol>', 'how engine and replica talk')
  .choices(['tcp', 'unix'])
  .default('tcp');

const ENGINE_EXAMPLES = `
Examples:
  A volume with two replicas, served over NBD on a unix socket:
    $ longhorn engine vol1 --size 1g --current-size 1g --frontend nbd \\
        --replica tcp://127.0.0.1:10000 --replica tcp://127.0.0.1:10010
  The same over TCP:
    $ longhorn engine vol1 ... --frontend nbd --nbd-listen 127.0.0.1:10809
  Where to attach it:
    $ longhorn --url http://localhost:9501 info`;

const REPLICA_EXAMPLES = `
Examples:
  A new 1 GiB replica in ./r1 (control on port 10000, data on 10001, sync agent on 10002):
    $ longhorn --volume-name vol1 replica ./r1 --size 1g --listen 127.0.0.1:10000
  Serve an existing directory, also one that Longhorn wrote:
    $ longhorn --volume-name vol1 replica /var/lib/longhorn/replicas/vol1-0a1b2c3d \\
        --listen 127.0.0.1:10000`;

const SYNC_AGENT_EXAMPLES = `
Example (a replica starts its own; this is for debugging):
    $ cd ./r1 && longhorn sync-agent --replica 127.0.0.1:10000 --listen 127.0.0.1:10002`;

function engineFlags(command: Command): Command {
  return command
    .requiredOption('--size <size>', 'size the volume should have', sizeBytes)
    .requiredOption('--current-size <size>', 'size the volume has now', sizeBytes)
    .option('--listen <host:port>', 'address of the control API', listenAddress, 'localhost:9501')
    .option('--frontend <name>', 'nbd, socket, rest or none (the default)', frontendName, '')
    .option('--replica <address>', 'tcp://HOST:PORT of a replica (repeat)', collect, [])
    .option('--enable-backend <name>', 'kept for Longhorn; only tcp exists', collect, [])
    .option('--upgrade', 'take a running volume over from another engine', false)
    .option('--disableRevCounter', 'replicas keep no revision counter', false)
    .option(
      '--salvageRequested',
      'start from the most recent replica when none is known good',
      false,
    )
    .option(
      '--engine-replica-timeout <seconds>',
      'silence that fails a replica, 8 to 30',
      wholeNumber,
      8,
    )
    .option('--unmap-mark-snap-chain-removed', 'trimming reclaims snapshots too', false)
    .option('--file-sync-http-client-timeout <seconds>', 'for file transfers', positiveNumber, 5)
    .option('--snapshot-max-count <n>', 'most snapshots', wholeNumber, SNAPSHOT_COUNT_MAX)
    .option('--snapshot-max-size <size>', 'most bytes in snapshots, 0 for no limit', sizeBytes, 0)
    .option(
      '--rebuild-sync-concurrent-limit <n>',
      'replicas a rebuild reads from; all by default',
      positiveNumber,
      REPLICAS_MAX,
    )
    .option('--nbd-listen <endpoint>', 'unix:///PATH or HOST:PORT (repeat)', endpoint, [])
    .addOption(
      new Option('--nbd-tls <mode>', 'TLS for NBD clients')
        .choices(['off', 'allow', 'require'])
        .default('off'),
    )
    .option('--nbd-tls-certificate <file>', 'PEM certificate chain of the NBD server')
    .option('--nbd-tls-key <file>', 'PEM key of that certificate')
    .option('--nbd-tls-client-ca <file>', 'PEM authority that clients must be signed by')
    .option('--runtime-dir <dir>', 'directory of sockets (default: /var/run as root)')
    .addOption(DATA_PROTOCOL);
}

interface EngineFlags {
  readonly size: number;
  readonly currentSize: number;
  readonly listen: string;
  readonly frontend: string;
  readonly replica: string[];
  readonly enableBackend: string[];
  readonly upgrade: boolean;
  readonly disableRevCounter: boolean;
  readonly salvageRequested: boolean;
  readonly engineReplicaTimeout: number;
  readonly unmapMarkSnapChainRemoved: boolean;
  readonly fileSyncHttpClientTimeout: number;
  readonly snapshotMaxCount: number;
  readonly snapshotMaxSize: number;
  readonly rebuildSyncConcurrentLimit: number;
  readonly nbdListen: Endpoint[];
  readonly nbdTls: 'off' | 'allow' | 'require';
  readonly nbdTlsCertificate?: string;
  readonly nbdTlsKey?: string;
  readonly nbdTlsClientCa?: string;
  readonly runtimeDir?: string;
  readonly dataServerProtocol: 'tcp' | 'unix';
}

async function engineAction(name: string, flags: EngineFlags, command: Command): Promise<void> {
  const globals = command.optsWithGlobals<GlobalOptions>();
  const [{ runEngine }, { replicaTimeoutMs }, { defaultRuntimeDirectory }, { unixDataSocketPath }] =
    await Promise.all([
      import('./engine-process.js'),
      import('../engine/settings.js'),
      import('./runtime.js'),
      import('./data-paths.js'),
    ]);
  await runEngine({
    settings: {
      volumeName: name,
      frontendName: flags.frontend === 'none' ? '' : flags.frontend,
      isUpgrade: flags.upgrade,
      revisionCounterDisabled: flags.disableRevCounter,
      salvageRequested: flags.salvageRequested,
      replicaTimeoutMs: replicaTimeoutMs(flags.engineReplicaTimeout),
      unmapMarkSnapChainRemoved: flags.unmapMarkSnapChainRemoved,
      snapshotMaxCount: flags.snapshotMaxCount,
      snapshotMaxBytes: flags.snapshotMaxSize,
      rebuildConcurrentSyncLimit: flags.rebuildSyncConcurrentLimit,
    },
    instanceName: globals.engineInstanceName,
    listen: flags.listen,
    sizeBytes: flags.size,
    currentSizeBytes: flags.currentSize,
    replicas: flags.replica,
    nbdEndpoints: flags.nbdListen,
    nbdTls: {
      mode: flags.nbdTls,
      ...(flags.nbdTlsCertificate !== undefined && { certificate: flags.nbdTlsCertificate }),
      ...(flags.nbdTlsKey !== undefined && { key: flags.nbdTlsKey }),
      ...(flags.nbdTlsClientCa !== undefined && { clientCa: flags.nbdTlsClientCa }),
    },
    runtimeDirectory: flags.runtimeDir ?? defaultRuntimeDirectory(process.env),
    ...(flags.dataServerProtocol === 'unix' && {
      unixDataPath: unixDataSocketPath(process.env, name),
    }),
    syncTimeoutSeconds: flags.fileSyncHttpClientTimeout,
    logLevel: logLevel(globals),
  });
}

interface ReplicaFlags {
  readonly listen: string;
  readonly size?: number;
  readonly backingFile?: string;
  readonly syncAgent: boolean;
  readonly syncAgentPortCount: number;
  readonly disableRevCounter: boolean;
  readonly dataServerProtocol: 'tcp' | 'unix';
  readonly unmapMarkDiskChainRemoved: boolean;
  readonly replicaInstanceName: string;
  readonly snapshotMaxCount: number;
  readonly snapshotMaxSize: number;
  readonly encrypted: boolean;
  readonly diskBackend: 'auto' | 'io_uring' | 'threads';
}

function replicaFlags(command: Command): Command {
  return command
    .option('--size <size>', 'create the replica with this size when it is new', sizeBytes)
    .option(
      '--listen <host:port>',
      'control API; data at port+1, sync agent at port+2',
      listenAddress,
      'localhost:9502',
    )
    .option('--backing-file <path>', 'raw image under the oldest layer, or a directory with one')
    .option('--no-sync-agent', 'start no sync agent beside the replica')
    .option('--sync-agent <bool>', 'Longhorn form of --no-sync-agent', (text) => text !== 'false')
    .option(
      '--sync-agent-port-count <n>',
      'ports for file transfers from port+3 on',
      positiveNumber,
      10,
    )
    .option('--disableRevCounter', 'keep no revision counter', false)
    .option('--unmap-mark-disk-chain-removed', 'trimming reclaims snapshots too', false)
    .option('--replica-instance-name <name>', 'name that callers must mean', '')
    .option('--snapshot-max-count <n>', 'most snapshots', wholeNumber, SNAPSHOT_COUNT_MAX)
    .option('--snapshot-max-size <size>', 'most bytes in snapshots, 0 for no limit', sizeBytes, 0)
    .option('--encrypted', 'the volume holds encrypted data', false)
    .option('--restore-from <url>', 'kept for Longhorn; has no effect')
    .option('--restore-name <name>', 'kept for Longhorn; has no effect')
    .addOption(
      new Option('--disk-backend <name>', 'how files are read and written')
        .choices(['auto', 'io_uring', 'threads'])
        .default('auto')
        .env('LONGHORN_DISK_BACKEND'),
    )
    .addOption(DATA_PROTOCOL);
}

async function replicaAction(
  directory: string,
  flags: ReplicaFlags,
  command: Command,
): Promise<void> {
  const globals = command.optsWithGlobals<GlobalOptions>();
  const [{ runReplica }, { unixDataSocketPath }] = await Promise.all([
    import('./replica-process.js'),
    import('./data-paths.js'),
  ]);
  const { resolve } = await import('node:path');
  await runReplica({
    directory: resolve(directory),
    volumeName: globals.volumeName,
    instanceName: flags.replicaInstanceName,
    listen: flags.listen,
    ...(flags.size !== undefined && { sizeBytes: flags.size }),
    ...(flags.backingFile !== undefined && { backingFilePath: resolve(flags.backingFile) }),
    startsSyncAgent: flags.syncAgent,
    syncAgentPortCount: flags.syncAgentPortCount,
    revisionCounter: !flags.disableRevCounter,
    ...(flags.dataServerProtocol === 'unix' && {
      unixDataPath: unixDataSocketPath(process.env, globals.volumeName),
    }),
    unmapMarkDiskChainRemoved: flags.unmapMarkDiskChainRemoved,
    snapshotMaxCount: flags.snapshotMaxCount,
    snapshotMaxBytes: flags.snapshotMaxSize,
    encrypted: flags.encrypted,
    diskBackend: flags.diskBackend,
    logLevel: logLevel(globals),
  });
}

interface SyncAgentFlags {
  readonly listen: string;
  readonly listenPortRange: PortRange;
  readonly replica: string;
  readonly replicaInstanceName: string;
}

async function syncAgentAction(flags: SyncAgentFlags, command: Command): Promise<void> {
  const globals = command.optsWithGlobals<GlobalOptions>();
  const { runSyncAgent } = await import('./sync-agent-process.js');
  await runSyncAgent({
    directory: process.cwd(),
    volumeName: globals.volumeName,
    instanceName: flags.replicaInstanceName,
    listen: flags.listen,
    ...flags.listenPortRange,
    replicaAddress: flags.replica,
    logLevel: logLevel(globals),
  });
}

export function registerDaemonCommands(program: Command): void {
  engineFlags(
    program
      .command('engine')
      .alias('controller')
      .summary('serve a volume: one engine process per attached volume')
      .description('Connects the replicas of a volume and serves it through a frontend.')
      .argument('<volume>', 'name of the volume', parseVolumeName),
  )
    .addHelpText('after', ENGINE_EXAMPLES)
    .action(engineAction);
  replicaFlags(
    program
      .command('replica')
      .summary('serve one copy of a volume from a directory')
      .description('Serves the replica in a directory to an engine, with its sync agent beside it.')
      .argument('<directory>', 'directory of the replica; its parent must exist'),
  )
    .addHelpText('after', REPLICA_EXAMPLES)
    .action(replicaAction);
  program
    .command('sync-agent')
    .summary('copy files of a replica for rebuilds, purge and hash snapshots')
    .option('--listen <host:port>', 'address of the control API', listenAddress, 'localhost:9504')
    .addOption(
      new Option('--listen-port-range <range>', 'ports for file transfers')
        .argParser(portRange)
        .default({ firstPort: 9700, lastPort: 9800 }, '9700-9800'),
    )
    .requiredOption('--replica <host:port>', 'control address of the replica')
    .option('--replica-instance-name <name>', 'name that callers must mean', '')
    .addHelpText('after', SYNC_AGENT_EXAMPLES)
    .action(syncAgentAction);
}

// The engine process: connects the replicas, starts the frontend, serves the ControllerService.

import { randomUUID } from 'node:crypto';
import { ControllerServiceDefinition } from '../api/generated/controller.js';
import { toStorageError } from '../core/errors.js';
import type { LogLevel } from '../core/log.js';
import { controllerHandlers } from '../engine/control-service.js';
import { Engine } from '../engine/engine.js';
import type { EngineSettings } from '../engine/settings.js';
import { createReplicaConnector } from '../replica-client/replica-connector.js';
import { reserveZeroRegion } from '../replica-client/zeroes-as-data.js';
import { statusUnknown } from '../rpc/error-map.js';
import { createRpcServer } from '../rpc/server.js';
import type { Endpoint } from '../transport/connection.js';
import { EXIT_CODE } from './exit-codes.js';
import { checkFree } from './free-endpoint.js';
import { type NbdTlsFiles, SwitchableFrontend } from './frontends.js';
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

export interface EngineProcessOptions {
  readonly settings: EngineSettings;
  readonly instanceName: string;
  readonly listen: string;
  readonly sizeBytes: number;
  readonly currentSizeBytes: number;
  readonly replicas: readonly string[];
  readonly nbdEndpoints: readonly Endpoint[];
  readonly nbdTls: NbdTlsFiles;
  readonly runtimeDirectory: string;
  readonly unixDataPath?: string;
  readonly syncTimeoutSeconds: number;
  readonly logLevel: LogLevel;
}

const CONTROL_GRACE_MS = 5000;

export async function runEngine(options: EngineProcessOptions): Promise<void> {
  const { settings } = options;
  const { volumeName } = settings;
  const log = createDaemonLogger(options.logLevel, { process: 'engine', volume: volumeName });
  const runtime = createRuntime(log);
  const { engine, frontend } = buildEngine(options, runtime);
  const server = createRpcServer({
    clock: runtime.clock,
    log,
    identity: { volumeName, instanceName: options.instanceName, what: 'controller' },
  });
  const handlers = controllerHandlers({ engine, clock: runtime.clock, log });
  server.addService(ControllerServiceDefinition, handlers, { statusOf: statusUnknown });
  stopOnSignal(log, async () => {
    await engine.shutdown();
    await server.close(CONTROL_GRACE_MS);
    await runtime.transport.shutdown();
  });
  try {
    const address = parseListenAddress(options.listen);
    // An upgrade takes over from an engine that still serves.
    if (!settings.isUpgrade) {
      await checkFree({ kind: 'tcp', ...address });
      await frontend.checkFree(settings.frontendName);
    }
    await engine.start({
      addresses: options.replicas,
      sizeBytes: options.sizeBytes,
      currentSizeBytes: options.currentSizeBytes,
    });
    const realPort = await server.listen(address.host, address.port);
    log.info('engine.serving', { port: realPort, endpoint: engine.frontend.endpoint });
    settleSoon(runtime.clock);
  } catch (error) {
    // Replicas that were opened are closed again, so that the next start finds them closed.
    await engine.shutdown().catch(() => undefined);
    exitOnStartFailure(log, error, startExitCode(error));
  }
}

function buildEngine(
  options: EngineProcessOptions,
  runtime: Runtime,
): { engine: Engine; frontend: SwitchableFrontend } {
  const { settings, syncTimeoutSeconds, unixDataPath } = options;
  const { transport, clock, slab, log } = runtime;
  const connector = createReplicaConnector({
    transport,
    clock,
    volumeName: settings.volumeName,
    zeroRegion: reserveZeroRegion(slab),
    hostBootId: hostBootId(),
    syncTimeoutSeconds,
    ...(unixDataPath !== undefined && { unixDataPath }),
  });
  const engine = new Engine({
    settings,
    connector,
    slab,
    clock,
    log,
    newId: randomUUID,
    random: Math.random,
  });
  const frontend = new SwitchableFrontend({
    runtime,
    volume: engine.volume,
    volumeName: settings.volumeName,
    runtimeDirectory: options.runtimeDirectory,
    nbdEndpoints: options.nbdEndpoints,
    nbdTls: options.nbdTls,
  });
  engine.frontend = frontend;
  return { engine, frontend };
}

/** 61 (ENODATA) tells Longhorn's manager that every replica is unusable, not merely unreachable. */
function startExitCode(error: unknown): number {
  const failure = toStorageError(error);
  const isUnusable = failure.code === 'NO_BACKEND' && failure.details['unreachable'] === false;
  return isUnusable ? EXIT_CODE.noUsableReplica : EXIT_CODE.failure;
}

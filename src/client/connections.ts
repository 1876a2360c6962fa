// The connections of one user action: to the engine, its replicas and their sync agents, made when
// they are needed and closed together. Every failure leaves here as a StorageError that says what
// was being done and to whom. Nothing in this layer prints.

import { ControllerServiceDefinition } from '../api/generated/controller.js';
import { ReplicaServiceDefinition } from '../api/generated/replica.js';
import { SyncAgentServiceDefinition } from '../api/generated/syncagent.js';
import type { Clock } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import {
  createChannel,
  createClient,
  parseRpcAddress,
  type RpcAddress,
  type RpcChannel,
  type RpcClient,
} from '../rpc/client.js';
import { storageErrorOfRpc } from '../rpc/error-map.js';

/** Facts, port map: the sync agent listens two ports above its replica's control API. */
const SYNC_AGENT_PORT_OFFSET = 2;

export type EngineApi = RpcClient<typeof ControllerServiceDefinition>;
export type ReplicaApi = RpcClient<typeof ReplicaServiceDefinition>;
export type SyncAgentApi = RpcClient<typeof SyncAgentServiceDefinition>;

export interface ConnectionOptions {
  readonly clock: Clock;
  /** Engine's control API: `HOST:PORT`, with or without a scheme. */
  readonly engineAddress: string;
  /** Names the peers are checked against; empty: not checked. */
  readonly volumeName: string;
  readonly engineInstanceName: string;
  /** Applies to replicas named by the user, since only their instance is known. */
  readonly replicaInstanceName?: string;
}

interface HostPort {
  readonly host: string;
  readonly port: number;
}

/** @throws INVALID_ARGUMENT. */
export function parseHostPort(address: string): HostPort {
  let parsed: RpcAddress | null = null;
  try {
    parsed = parseRpcAddress(address.replace(/^https?:\/\//, 'tcp://').replace(/\/$/, ''));
  } catch {
    // The reason is always the same and said below.
  }
  if (parsed === null || !('host' in parsed)) {
    throw new StorageError(
      'INVALID_ARGUMENT',
      `'${address}' is not an address like 127.0.0.1:9501`,
    );
  }
  return parsed;
}

/** Replicas are always named by URL, as the engine names them. @throws INVALID_ARGUMENT. */
export function parseReplicaUrl(address: string): HostPort {
  if (!address.startsWith('tcp://')) {
    const text = `'${address}' is not a replica address like tcp://127.0.0.1:10000`;
    throw new StorageError('INVALID_ARGUMENT', text);
  }
  return parseHostPort(address);
}

export class Connections {
  readonly options: ConnectionOptions;
  /** As Longhorn's messages name the engine: without a scheme. */
  readonly engineName: string;
  readonly engine: EngineApi;
  private readonly channels = new Map<string, RpcChannel>();

  /** Connects with the first call. @throws INVALID_ARGUMENT. */
  constructor(options: ConnectionOptions) {
    const { host, port } = parseHostPort(options.engineAddress);
    this.options = options;
    this.engineName = hostPortText(host, port);
    const instanceName = options.engineInstanceName;
    this.engine = createClient(ControllerServiceDefinition, this.channel(host, port, instanceName));
  }

  /** @throws INVALID_ARGUMENT. */
  replica(address: string): ReplicaApi {
    const { host, port } = parseReplicaUrl(address);
    const instanceName = this.options.replicaInstanceName ?? '';
    return createClient(ReplicaServiceDefinition, this.channel(host, port, instanceName));
  }

  /** The sync agent beside a replica. @throws INVALID_ARGUMENT. */
  syncAgent(replicaAddress: string): SyncAgentApi {
    const { host, port } = parseReplicaUrl(replicaAddress);
    const instanceName = this.options.replicaInstanceName ?? '';
    const agentPort = port + SYNC_AGENT_PORT_OFFSET;
    return createClient(SyncAgentServiceDefinition, this.channel(host, agentPort, instanceName));
  }

  /** Runs a call on the engine. @param what completes "failed to … HOST:PORT". */
  onEngine<T>(what: string, call: (engine: EngineApi) => Promise<T>): Promise<T> {
    return withContext(`failed to ${what} ${this.engineName}`, () => call(this.engine));
  }

  close(): void {
    for (const channel of this.channels.values()) channel.close();
    this.channels.clear();
  }

  private channel(host: string, port: number, instanceName: string): RpcChannel {
    const key = hostPortText(host, port);
    const existing = this.channels.get(key);
    if (existing !== undefined) return existing;
    const { clock, volumeName } = this.options;
    const channel = createChannel(
      { host, port },
      { clock, identity: { volumeName, instanceName } },
    );
    this.channels.set(key, channel);
    return channel;
  }
}

/** Rethrows what `action` throws as a StorageError whose message begins with the context. */
export async function withContext<T>(context: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    const failure = storageErrorOfRpc(error);
    const text = `${context}: ${failure.message}`;
    throw new StorageError(failure.code, text, failure.details, error);
  }
}

function hostPortText(host: string, port: number): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

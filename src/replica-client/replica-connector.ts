// Reaches replicas for the engine: control connection, state check, data connection, open.

import type { BlockRequest } from '../core/block-device.js';
import { type Clock, sleepMs } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import { bigintToNumber } from '../core/units.js';
import type {
  ConnectOptions,
  ReplicaConnector,
  ReplicaControl,
  ReplicaInfo,
  ReplicaPort,
} from '../engine/ports.js';
import type { Connection, Endpoint, Transport } from '../transport/connection.js';
import { parseReplicaAddress } from './addresses.js';
import {
  ControlClient,
  type ControlClientOptions,
  type ReplicaServicesOf,
} from './control-client.js';
import { CAPABILITY } from '../wire/replica/constants.js';
import { DataClient } from './data-client.js';
import type { ZeroRegion } from './zeroes-as-data.js';

const CONNECT_TIMEOUT_MS = 10_000;
/** Longer than a replica takes to let go of a dead engine (replica/engine-presence.ts). */
const RELEASE_WAIT_MS = 4000;
const RELEASE_POLL_MS = 200;

export interface ConnectorOptions {
  readonly transport: Transport;
  readonly clock: Clock;
  readonly volumeName: string;
  readonly zeroRegion: ZeroRegion;
  /** Identity of this machine's running kernel, to recognise replicas beside the engine. */
  readonly hostBootId: string;
  readonly syncTimeoutSeconds: number;
  /** Set when data must go to one given unix socket (--data-server-protocol unix). */
  readonly unixDataPath?: string;
  /** Control without gRPC; default: gRPC. */
  readonly servicesOf?: ReplicaServicesOf;
}

class ConnectedReplica implements ReplicaPort {
  readonly address: string;
  readonly control: ReplicaControl;
  private readonly controlClient: ControlClient;
  private readonly data: DataClient;

  readonly replicaId: string;
  readonly hostBootId: string;
  readonly keepsRoster: boolean;

  constructor(address: string, controlClient: ControlClient, data: DataClient, info: ReplicaInfo) {
    this.address = address;
    this.keepsRoster = info.capabilities.includes(CAPABILITY.roster);
    this.replicaId = info.replicaId === '' ? `address:${address}` : info.replicaId;
    this.hostBootId = info.hostBootId;
    this.control = controlClient;
    this.controlClient = controlClient;
    this.data = data;
  }

  get sizeBytes(): number {
    return this.data.sizeBytes;
  }

  get inFlightCount(): number {
    return this.data.inFlightCount;
  }

  get canFlush(): boolean {
    return this.data.canFlush;
  }

  get zeroesAsData(): boolean {
    return this.data.zeroesAsData;
  }

  set zeroesAsData(value: boolean) {
    this.data.zeroesAsData = value;
  }

  submit(request: BlockRequest): void {
    this.data.submit(request);
  }

  disconnect(): void {
    this.data.disconnect();
  }

  async close(): Promise<void> {
    this.data.disconnect();
    try {
      await this.controlClient.close();
    } finally {
      this.controlClient.disconnect();
    }
  }
}

export function createReplicaConnector(options: ConnectorOptions): ReplicaConnector {
  return {
    probe: (address) => probe(options, address),
    connect: (address, connectOptions) => connect(options, address, connectOptions),
  };
}

function controlOptions(options: ConnectorOptions): ControlClientOptions {
  const { clock, volumeName, syncTimeoutSeconds, servicesOf } = options;
  return { clock, volumeName, syncTimeoutSeconds, ...(servicesOf !== undefined && { servicesOf }) };
}

async function probe(options: ConnectorOptions, address: string): Promise<ReplicaInfo> {
  const control = new ControlClient(address, controlOptions(options));
  try {
    return await control.get();
  } finally {
    control.disconnect();
  }
}

async function connect(
  options: ConnectorOptions,
  address: string,
  connectOptions: ConnectOptions,
): Promise<ReplicaPort> {
  const { clock } = options;
  const { engineGeneration } = connectOptions;
  const control = new ControlClient(address, { ...controlOptions(options), engineGeneration });
  try {
    const before = await waitUntilClosed(control, clock, address, connectOptions);
    const connection = await dial(options, address, before);
    try {
      const { isUpgrade, expectedSizeBytes } = connectOptions;
      const opened = await control.open(isUpgrade, expectedSizeBytes, engineGeneration);
      return attach(options, connectOptions, address, control, connection, opened);
    } catch (error) {
      connection.destroy();
      throw error;
    }
  } catch (error) {
    control.disconnect();
    throw error;
  }
}

/** An open replica may be about to notice that its engine died; then it closes by itself. */
async function waitUntilClosed(
  control: ControlClient,
  clock: Clock,
  address: string,
  { mayTakeOver, engineGeneration }: ConnectOptions,
): Promise<ReplicaInfo> {
  const giveUpMs = clock.nowMs() + RELEASE_WAIT_MS;
  for (;;) {
    const info = await control.get();
    if (info.state === 'closed') return info;
    // Opening it takes it from the older engine.
    const isOlder = info.engineGeneration > 0 && info.engineGeneration < engineGeneration;
    if (mayTakeOver && isOlder && info.capabilities.includes(CAPABILITY.hello)) return info;
    const isOpen = ['open', 'dirty', 'rebuilding'].includes(info.state);
    if (!isOpen || clock.nowMs() >= giveUpMs) {
      throw new StorageError(
        'INVALID_STATE',
        `replica must be closed, cannot add in state: ${info.state}`,
        { address, state: info.state },
      );
    }
    await sleepMs(clock, RELEASE_POLL_MS);
  }
}

function attach(
  options: ConnectorOptions,
  connectOptions: ConnectOptions,
  address: string,
  control: ControlClient,
  connection: Connection,
  info: ReplicaInfo,
): ReplicaPort {
  const data = new DataClient({
    connection,
    address,
    sizeBytes: bigintToNumber(BigInt(info.size), 'replica size'),
    capabilities: info.capabilities,
    clock: options.clock,
    zeroRegion: options.zeroRegion,
    engineGeneration: connectOptions.engineGeneration,
    silenceMaxMs: connectOptions.silenceMaxMs,
    failed: (error) => connectOptions.onFailure(port, error),
  });
  const port: ReplicaPort = new ConnectedReplica(address, control, data, info);
  return port;
}

/** Beside the engine the replica's unix socket is taken, which costs less than loopback TCP. */
async function dial(
  options: ConnectorOptions,
  address: string,
  info: ReplicaInfo,
): Promise<Connection> {
  const { host, dataPort } = parseReplicaAddress(address);
  const { transport, unixDataPath } = options;
  if (unixDataPath !== undefined) {
    return transport.connect({ kind: 'unix', path: unixDataPath }, CONNECT_TIMEOUT_MS);
  }
  const isBeside = info.hostBootId !== '' && info.hostBootId === options.hostBootId;
  if (isBeside && info.localDataPath !== '') {
    try {
      return await transport.connect(
        { kind: 'unix', path: info.localDataPath },
        CONNECT_TIMEOUT_MS,
      );
    } catch {
      // Another mount namespace, or the file was removed: the network way still works.
    }
  }
  const tcp: Endpoint = { kind: 'tcp', host, port: dataPort };
  return transport.connect(tcp, CONNECT_TIMEOUT_MS);
}

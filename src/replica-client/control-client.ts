// Control of one replica over gRPC: Longhorn's ReplicaService, and the sync agent beside it for
// sending single files. The boundary where a Go peer's error texts become codes.

import { ReplicaServiceDefinition, type ReplicaSnapshotRequest } from '../api/generated/replica.js';
import { SyncAgentServiceDefinition } from '../api/generated/syncagent.js';
import type { Clock } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import type { Roster } from '../core/roster.js';
import type {
  Absence,
  ReplicaControl,
  ReplicaInfo,
  ReplicaPort,
  SnapshotRecord,
  WriteIntents,
} from '../engine/ports.js';
import { absentOf, rosterMessage } from '../api/roster-message.js';
import {
  type CallOptions,
  createChannel,
  createClient,
  LONG_CALL_DEADLINE_MS,
  type RpcChannel,
  type RpcClient,
} from '../rpc/client.js';
import { storageErrorOfRpc } from '../rpc/error-map.js';
import { ENGINE_GENERATION_KEY } from '../rpc/identity.js';
import { NO_SPACE_TEXT } from '../wire/replica/constants.js';
import { parseReplicaAddress } from './addresses.js';

/** A replica that hangs must not keep its engine from ending; a slow one closes all the same. */
const CLOSE_DEADLINE_MS = 10_000;

const EXISTING_SNAPSHOT = /snapshot (.*) is already existing/;

/** A failed call as a StorageError; texts are looked at only when a Go peer sent no code. */
export function controlError(error: unknown, address: string): StorageError {
  const failure = storageErrorOfRpc(error);
  if (failure.code !== 'PEER_ERROR') return failure;
  const text = failure.message;
  if (EXISTING_SNAPSHOT.test(text)) return new StorageError('ALREADY_EXISTS', text, { address });
  if (text.includes(NO_SPACE_TEXT)) return new StorageError('NO_SPACE', text, { address });
  return failure;
}

/** The services at a replica's address. */
export interface ReplicaServices {
  readonly replica: RpcClient<typeof ReplicaServiceDefinition>;
  /** The sync agent beside this or another replica. */
  syncAgent(address: string): RpcClient<typeof SyncAgentServiceDefinition>;
}

/** Reaches services without gRPC, as the simulator does. @param metadata of every call. */
export type ReplicaServicesOf = (
  address: string,
  metadata: Readonly<Record<string, string>>,
) => ReplicaServices;

export interface ControlClientOptions {
  readonly clock: Clock;
  readonly volumeName: string;
  readonly syncTimeoutSeconds: number;
  /** Of the engine on whose behalf it calls; the replica refuses older ones. Absent for others. */
  readonly engineGeneration?: number;
  /** Default: gRPC. */
  readonly servicesOf?: ReplicaServicesOf;
}

/** Clients wait for the answer, and nobody here looks at it. */
function snapshotRequest(record: SnapshotRecord): ReplicaSnapshotRequest {
  const { name, userCreated, created, labels } = record;
  return { name, userCreated, created, labels: { ...labels }, isBrief: true };
}

export class ControlClient implements ReplicaControl {
  private readonly address: string;
  private readonly channel: RpcChannel;
  private readonly agentChannel: RpcChannel;
  private readonly replica: RpcClient<typeof ReplicaServiceDefinition>;
  private readonly services: ReplicaServices | null;
  private readonly syncTimeoutSeconds: number;

  /** @throws INVALID_ARGUMENT for an address that is none. Connects with the first call. */
  constructor(address: string, options: ControlClientOptions) {
    const { host, controlPort, syncAgentPort } = parseReplicaAddress(address);
    const identity = { volumeName: options.volumeName, instanceName: '' };
    const channelOptions = { clock: options.clock, identity };
    const metadata = { [ENGINE_GENERATION_KEY]: String(options.engineGeneration ?? 0) };
    this.address = address;
    this.syncTimeoutSeconds = options.syncTimeoutSeconds;
    this.channel = createChannel({ host, port: controlPort }, { ...channelOptions, metadata });
    this.agentChannel = createChannel({ host, port: syncAgentPort }, channelOptions);
    this.services = options.servicesOf?.(address, metadata) ?? null;
    this.replica = this.services?.replica ?? createClient(ReplicaServiceDefinition, this.channel);
  }

  get(): Promise<ReplicaInfo> {
    return this.replicaOf(this.replica.replicaGet({}));
  }

  open(
    isUpgrade: boolean,
    expectedBackendSize: number,
    engineGeneration: number,
  ): Promise<ReplicaInfo> {
    return this.replicaOf(
      this.replica.replicaOpen({
        isUpgrade,
        expectedBackendSize,
        engineCapabilities: [],
        engineGeneration,
      }),
    );
  }

  async close(): Promise<void> {
    await this.call(this.replica.replicaClose({}, { deadlineMs: CLOSE_DEADLINE_MS }));
  }

  async snapshot(record: SnapshotRecord): Promise<void> {
    await this.call(this.replica.replicaSnapshot(snapshotRequest(record)));
  }

  async prepareSnapshot(record: SnapshotRecord): Promise<void> {
    await this.call(this.replica.snapshotPrepare(snapshotRequest(record)));
  }

  async revert(diskName: string, created: string): Promise<void> {
    await this.call(this.replica.replicaRevert({ name: diskName, created }));
  }

  async expand(sizeBytes: number): Promise<void> {
    await this.call(this.replica.replicaExpand({ size: sizeBytes }));
  }

  async removeDisk(diskName: string, force: boolean): Promise<void> {
    await this.call(this.replica.diskRemove({ name: diskName, force }));
  }

  async setRebuilding(rebuilding: boolean): Promise<void> {
    await this.call(this.replica.rebuildingSet({ rebuilding }));
  }

  async setRevisionCounter(counter: number): Promise<void> {
    await this.call(this.replica.revisionCounterSet({ counter }));
  }

  async setUnmapMarkDiskChainRemoved(enabled: boolean): Promise<void> {
    await this.call(this.replica.unmapMarkDiskChainRemovedSet({ enabled }));
  }

  async setSnapshotMaxCount(count: number): Promise<void> {
    await this.call(this.replica.snapshotMaxCountSet({ count }));
  }

  async setSnapshotMaxBytes(bytes: number): Promise<void> {
    await this.call(this.replica.snapshotMaxSizeSet({ size: bytes }));
  }

  async sendFile(fromName: string, target: ReplicaPort, toName: string): Promise<void> {
    const { host, syncAgentPort } = parseReplicaAddress(target.address);
    const targetChannel = createChannel(
      { host, port: syncAgentPort },
      { clock: this.channel.options.clock },
    );
    const long: CallOptions = { deadlineMs: LONG_CALL_DEADLINE_MS };
    const { services } = this;
    try {
      const receiver =
        services?.syncAgent(target.address) ??
        createClient(SyncAgentServiceDefinition, targetChannel);
      const { port } = await this.call(receiver.receiverLaunch({ toFileName: toName }));
      const sender =
        services?.syncAgent(this.address) ??
        createClient(SyncAgentServiceDefinition, this.agentChannel);
      await this.call(
        sender.fileSend(
          {
            fromFileName: fromName,
            host,
            port,
            fastSync: false,
            fileSyncHttpClientTimeout: this.syncTimeoutSeconds,
            ranges: [],
            receiverSize: 0,
            bytesPerSecondMax: 0,
          },
          long,
        ),
      );
    } finally {
      targetChannel.close();
    }
  }

  async setRoster(roster: Roster): Promise<void> {
    await this.call(this.replica.rosterSet({ roster: rosterMessage(roster) }));
  }

  async beginCheckpoint(): Promise<void> {
    await this.call(this.replica.checkpointBegin({}));
  }

  async endCheckpoint(): Promise<void> {
    await this.call(this.replica.checkpointEnd({}));
  }

  async writeIntents(): Promise<WriteIntents> {
    const { known, ranges } = await this.call(this.replica.intentsGet({}));
    return known ? ranges : null;
  }

  async absence(replicaId: string): Promise<Absence | null> {
    const { known, absent, unchangedDisks } = await this.call(
      this.replica.absenceGet({ replicaId }),
    );
    return known && absent !== undefined ? { absent: absentOf(absent), unchangedDisks } : null;
  }

  disconnect(): void {
    this.channel.close();
    this.agentChannel.close();
  }

  private async replicaOf(
    response: Promise<{ replica: ReplicaInfo | undefined }>,
  ): Promise<ReplicaInfo> {
    const { replica } = await this.call(response);
    if (replica === undefined) {
      throw new StorageError('BAD_FRAME', `${this.address} answered without a replica`);
    }
    return replica;
  }

  private async call<T>(response: Promise<T>): Promise<T> {
    try {
      return await response;
    } catch (error) {
      throw controlError(error, this.address);
    }
  }
}

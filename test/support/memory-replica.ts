// A replica in memory: the port of a real engine, with the data in an array and control operations
// that only remember. Failures are those of a real connection: once lost, everything fails.

import type { BlockRequest } from '../../src/core/block-device.js';
import { rosterMessage } from '../../src/api/roster-message.js';
import { StorageError } from '../../src/core/errors.js';
import type { Roster } from '../../src/core/roster.js';
import type { Slab } from '../../src/core/slab.js';
import type {
  ConnectOptions,
  ReplicaConnector,
  ReplicaControl,
  ReplicaInfo,
  ReplicaPort,
  SnapshotRecord,
  WriteIntents,
} from '../../src/engine/ports.js';
import { Replica as ReplicaMessage } from '../../src/api/generated/replica.js';
import { MemoryDevice } from './memory-device.js';

export class MemoryReplica implements ReplicaPort {
  readonly address: string;
  readonly device: MemoryDevice;
  readonly canFlush = true;
  readonly replicaId: string;
  readonly hostBootId = 'boot';
  readonly keepsRoster = true;
  /** As last recorded; the record of a real replica is durable. */
  roster: Roster | null = null;
  zeroesAsData = false;
  inFlightCount = 0;
  isClosed = false;
  /** Snapshots in order, and names of control calls. */
  readonly snapshots: SnapshotRecord[] = [];
  readonly calls: string[] = [];
  info: ReplicaInfo;
  /** Set to make the next control call of that name fail. */
  controlFailure: { call: string; error: StorageError } | null = null;
  connectOptions: ConnectOptions | null = null;
  /** It answers, but cannot be opened. */
  openFailure: StorageError | null = null;
  /** Control calls of these names wait for releaseCalls(). */
  readonly holding = new Set<string>();
  private heldCalls: (() => void)[] = [];
  /** What it answers when asked for its write intents. */
  intents: WriteIntents = [];
  private lost: StorageError | null = null;

  constructor(address: string, slab: Slab, sizeBytes: number) {
    this.address = address;
    this.replicaId = `id-of-${address}`;
    this.device = new MemoryDevice({ slab, sizeBytes });
    this.info = {
      ...ReplicaMessage.decode(new Uint8Array()),
      size: String(sizeBytes),
      sectorSize: 512,
      head: 'volume-head-000.img',
      state: 'open',
      revisionCounterDisabled: true,
    };
  }

  get sizeBytes(): number {
    return this.device.sizeBytes;
  }

  submit(request: BlockRequest): void {
    if (this.lost !== null) request.done(this.lost);
    else this.device.submit(request);
  }

  /** The connection breaks: everything held fails, the engine is told. */
  lose(error: StorageError): void {
    this.lost = error;
    this.connectOptions?.onFailure(this, error);
    for (const request of this.device.held.splice(0)) request.done(error);
  }

  disconnect(): void {
    this.lost ??= new StorageError('CLOSED', 'closed');
  }

  close(): Promise<void> {
    this.disconnect();
    this.isClosed = true;
    return Promise.resolve();
  }

  releaseCalls(): void {
    this.holding.clear();
    for (const resolve of this.heldCalls.splice(0)) resolve();
  }

  private async record(call: string): Promise<void> {
    this.calls.push(call);
    if (this.holding.has(call)) await new Promise<void>((resolve) => this.heldCalls.push(resolve));
    const failure = this.controlFailure;
    if (failure?.call !== call) return;
    this.controlFailure = null;
    throw failure.error;
  }

  readonly control: ReplicaControl = {
    get: async () => ({
      ...this.info,
      disks: { ...this.info.disks },
      replicaId: this.replicaId,
      roster: this.roster === null ? undefined : rosterMessage(this.roster),
    }),
    snapshot: async (record) => {
      await this.record('snapshot');
      this.snapshots.push(record);
    },
    prepareSnapshot: async () => undefined,
    revert: () => this.record('revert'),
    expand: () => this.record('expand'),
    removeDisk: () => this.record('removeDisk'),
    setRebuilding: async (rebuilding) => {
      this.info = { ...this.info, rebuilding, state: rebuilding ? 'rebuilding' : 'open' };
      await this.record('setRebuilding');
    },
    setRevisionCounter: () => this.record('setRevisionCounter'),
    setUnmapMarkDiskChainRemoved: () => this.record('setUnmapMarkDiskChainRemoved'),
    setSnapshotMaxCount: () => this.record('setSnapshotMaxCount'),
    setSnapshotMaxBytes: () => this.record('setSnapshotMaxBytes'),
    sendFile: () => this.record('sendFile'),
    setRoster: async (roster) => {
      await this.record('setRoster');
      this.roster = roster;
    },
    beginCheckpoint: () => this.record('beginCheckpoint'),
    endCheckpoint: () => this.record('endCheckpoint'),
    writeIntents: async () => this.intents,
    absence: async () => null,
  };
}

/** Connects to the replicas it was given, by address. */
export function memoryConnector(replicas: readonly MemoryReplica[]): ReplicaConnector {
  return {
    probe: (address) => {
      const replica = replicas.find((candidate) => candidate.address === address);
      if (replica !== undefined) return replica.control.get();
      return Promise.reject(new StorageError('CONNECTION_REFUSED', `cannot reach ${address}`));
    },
    connect: (address, options) => {
      const replica = replicas.find((candidate) => candidate.address === address);
      if (replica === undefined) {
        const text = `cannot reach ${address}`;
        return Promise.reject(new StorageError('CONNECTION_REFUSED', text));
      }
      if (replica.openFailure !== null) return Promise.reject(replica.openFailure);
      replica.connectOptions = options;
      return Promise.resolve(replica);
    },
  };
}

// What the engine needs of the outside: replicas to fan out to and a way to reach them. The
// replica-client layer implements these over sockets and gRPC, tests and the simulator in memory.

import type { BlockDevice } from '../core/block-device.js';
import type { ByteRange } from '../core/byte-ranges.js';
import type { StorageError } from '../core/errors.js';
import type { AbsentReplica, Roster } from '../core/roster.js';
import type { Replica as ReplicaInfo } from '../api/generated/replica.js';

export type { ReplicaInfo };

export interface SnapshotRecord {
  readonly name: string;
  readonly userCreated: boolean;
  /** RFC 3339 with seconds, the same on every replica. */
  readonly created: string;
  readonly labels: Readonly<Record<string, string>>;
}

/** Ranges that may have been written since the last checkpoint; null: unknown, so everything. */
export type WriteIntents = readonly ByteRange[] | null;

/** What a member knows of an absent replica. */
export interface Absence {
  readonly absent: AbsentReplica;
  /** Disks that existed at the fork and have not changed since → their parents then. */
  readonly unchangedDisks: Readonly<Record<string, string>>;
}

/** Control operations on one replica. Each rejects with a StorageError; FENCED once a newer engine came. */
export interface ReplicaControl {
  get(): Promise<ReplicaInfo>;
  snapshot(record: SnapshotRecord): Promise<void>;
  /** Makes the snapshot's files ahead, so that snapshot() takes little time. Never needed. */
  prepareSnapshot(record: SnapshotRecord): Promise<void>;
  /** @param diskName file name of the snapshot's layer. */
  revert(diskName: string, created: string): Promise<void>;
  expand(sizeBytes: number): Promise<void>;
  removeDisk(diskName: string, force: boolean): Promise<void>;
  setRebuilding(rebuilding: boolean): Promise<void>;
  setRevisionCounter(counter: number): Promise<void>;
  setUnmapMarkDiskChainRemoved(enabled: boolean): Promise<void>;
  setSnapshotMaxCount(count: number): Promise<void>;
  setSnapshotMaxBytes(bytes: number): Promise<void>;
  /** Copies one file of this replica's directory to a file of the target's, through ssync. */
  sendFile(fromName: string, target: ReplicaPort, toName: string): Promise<void>;
  /** Durable when resolved. */
  setRoster(roster: Roster): Promise<void>;
  /** New write intents are kept apart from those of before. */
  beginCheckpoint(): Promise<void>;
  /** The write intents of before are forgotten: every replica has those writes on stable storage. */
  endCheckpoint(): Promise<void>;
  writeIntents(): Promise<WriteIntents>;
  /** Null when this replica has no usable record of it. */
  absence(replicaId: string): Promise<Absence | null>;
}

/** One connected, opened replica: data path and control. */
export interface ReplicaPort extends BlockDevice {
  readonly address: string;
  /** Data requests not yet answered; the engine reads from the least loaded replica. */
  readonly inFlightCount: number;
  readonly control: ReplicaControl;
  /** Kept by the replica's directory for its life; `address:…` for a Go replica, which has none. */
  readonly replicaId: string;
  /** Kernel the replica runs on; '' when it does not say. */
  readonly hostBootId: string;
  /** True when it keeps rosters and write intents (a Go replica does not). */
  readonly keepsRoster: boolean;
  /** True when fua and flush reach the replica's disk (a Go replica cannot). */
  readonly canFlush: boolean;
  /**
   * While set, writeZeroes travel as data: a replica without older layers (WO) cannot know what
   * a hole would uncover.
   */
  zeroesAsData: boolean;
  /** Fails everything in flight and closes the data connection; onFailure is not called. */
  disconnect(): void;
  /** disconnect(), then closes the replica so that another engine can open it. */
  close(): Promise<void>;
}

export interface ConnectOptions {
  readonly isUpgrade: boolean;
  readonly expectedSizeBytes: number;
  /** Of this engine; the replica refuses to be opened by an older one than it has seen. */
  readonly engineGeneration: number;
  /** True at the start of a volume: a replica that serves an older engine is taken from it. */
  readonly mayTakeOver: boolean;
  /** How long the replica may be silent while requests are in flight. */
  readonly silenceMaxMs: () => number;
  /** Called at most once, when the replica is lost outside of any request: ping, time-out, cut. */
  readonly onFailure: (port: ReplicaPort, error: StorageError) => void;
}

export interface ReplicaConnector {
  /** What the replica says of itself, without opening it. @throws CONNECTION_REFUSED, TIMEOUT. */
  probe(address: string): Promise<ReplicaInfo>;
  /**
   * Connects the replica's data path and opens it. It must be closed, or serve an older engine that
   * it may be taken from.
   * @throws INVALID_STATE when not closed; FENCED when it has seen a newer engine;
   * CONNECTION_REFUSED, TIMEOUT when not reachable.
   */
  connect(address: string, options: ConnectOptions): Promise<ReplicaPort>;
}

// What the engine needs of the outside: replicas to fan out to and a way to reach them. The
// replica-client layer implements these over sockets and gRPC, tests and the simulator in memory.

import type { BlockDevice } from '../core/block-device.js';
import type { StorageError } from '../core/errors.js';
import type { Replica as ReplicaInfo } from '../api/generated/replica.js';

export type { ReplicaInfo };

export interface SnapshotRecord {
  readonly name: string;
  readonly userCreated: boolean;
  /** RFC 3339 with seconds, the same on every replica. */
  readonly created: string;
  readonly labels: Readonly<Record<string, string>>;
}

/** Control operations on one replica. Each rejects with a StorageError. */
export interface ReplicaControl {
  get(): Promise<ReplicaInfo>;
  snapshot(record: SnapshotRecord): Promise<void>;
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
}

/** One connected, opened replica: data path and control. */
export interface ReplicaPort extends BlockDevice {
  readonly address: string;
  /** Data requests not yet answered; the engine reads from the least loaded replica. */
  readonly inFlightCount: number;
  readonly control: ReplicaControl;
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
  /** How long the replica may be silent while requests are in flight. */
  readonly silenceMaxMs: () => number;
  /** Called at most once, when the replica is lost outside of any request: ping, time-out, cut. */
  readonly onFailure: (port: ReplicaPort, error: StorageError) => void;
}

export interface ReplicaConnector {
  /**
   * Checks that the replica is closed, connects its data path, opens it.
   * @throws INVALID_STATE when not closed; CONNECTION_REFUSED, TIMEOUT when not reachable.
   */
  connect(address: string, options: ConnectOptions): Promise<ReplicaPort>;
}

// What a replica is made with, asked and answers. Shapes only.

import type { Clock } from '../core/clock.js';
import type { Logger } from '../core/log.js';
import type { Disk } from '../disk/disk.js';
import type { ChainUsage, DiskInfo, HeadUsage } from '../image/chain.js';
import type { VolumeMeta } from '../image/metadata.js';
import type { RosterRecord } from './roster-record.js';

export type ReplicaState = 'initial' | 'closed' | 'open' | 'dirty' | 'rebuilding' | 'error';

export interface ReplicaOptions {
  readonly disk: Disk;
  /** Absolute path; its parent must exist. */
  readonly directory: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly revisionCounter: boolean;
  readonly encrypted: boolean;
  readonly unmapMarkDiskChainRemoved: boolean;
  readonly snapshotMaxCount: number;
  /** 0: no limit. */
  readonly snapshotMaxBytes: number;
  readonly backingFilePath?: string;
  /** Makes the id of a directory that has none yet. */
  readonly newId: () => string;
  /** Of the kernel that runs now; '' when unknown. */
  readonly hostBootId: string;
  /** A newer engine was served in the place of one that had the replica open. */
  readonly takenOver?: () => void;
}

export interface OpenRequest {
  readonly isUpgrade: boolean;
  /** Size the engine wants; 0 when it does not say. */
  readonly expectedBytes: number;
  /** Number of the engine's start; 0 when it does not say. */
  readonly engineGeneration: number;
}

/** What there is to say about an open chain. */
export interface OpenStatus {
  readonly disks: readonly DiskInfo[];
  /** Disk names from head to root, removed ones left out. */
  readonly liveChain: readonly string[];
  readonly usage: ChainUsage;
  readonly head: HeadUsage;
  readonly revisionCounter: number;
}

export interface ReplicaStatus {
  readonly state: ReplicaState;
  readonly info: Omit<VolumeMeta, 'encrypted'>;
  readonly standing: RosterRecord;
  /** Null unless open. */
  readonly open: OpenStatus | null;
}

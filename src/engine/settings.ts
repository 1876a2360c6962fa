// What an engine is told at start, and the few values that can be changed while it runs.

import { REPLICAS_MAX, SNAPSHOT_COUNT_MAX } from '../core/limits.js';

/** Longhorn's --engine-replica-timeout: default and range in seconds. */
export const REPLICA_TIMEOUT_SECONDS = { fallback: 8, min: 8, max: 30 } as const;

/** An out-of-range value becomes the default, as in Longhorn. */
export function replicaTimeoutMs(seconds: number): number {
  const { fallback, min, max } = REPLICA_TIMEOUT_SECONDS;
  return (seconds >= min && seconds <= max ? seconds : fallback) * 1000;
}

export interface EngineSettings {
  readonly volumeName: string;
  /** Frontend that starting the volume starts; '' for none. */
  readonly frontendName: string;
  readonly isUpgrade: boolean;
  readonly revisionCounterDisabled: boolean;
  readonly salvageRequested: boolean;
  /** How long a replica may be silent while others remain; the last one gets twice as long. */
  readonly replicaTimeoutMs: number;
  unmapMarkSnapChainRemoved: boolean;
  snapshotMaxCount: number;
  /** 0: unlimited. */
  snapshotMaxBytes: number;
  /** Replicas that a rebuild reads from at most. */
  rebuildConcurrentSyncLimit: number;
}

export function defaultSettings(volumeName: string): EngineSettings {
  return {
    volumeName,
    frontendName: '',
    isUpgrade: false,
    revisionCounterDisabled: false,
    salvageRequested: false,
    replicaTimeoutMs: replicaTimeoutMs(REPLICA_TIMEOUT_SECONDS.fallback),
    unmapMarkSnapChainRemoved: false,
    snapshotMaxCount: SNAPSHOT_COUNT_MAX,
    snapshotMaxBytes: 0,
    rebuildConcurrentSyncLimit: REPLICAS_MAX,
  };
}

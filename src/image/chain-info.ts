// What there is to say about an open chain, and the words for its long work. Shapes only.

/** What must be done, in order, to get rid of a removed disk; peers know these three words. */
export interface RemoveAction {
  readonly action: 'coalesce' | 'replace' | 'prune' | 'remove';
  readonly source: string;
  readonly target: string;
}

/** volume.meta and the flags of the open chain. */
export interface ChainInfo {
  readonly sizeBytes: number;
  readonly head: string;
  readonly parent: string;
  /** Set when the last close was unclean, or by a change since. */
  readonly dirty: boolean;
  readonly rebuilding: boolean;
  readonly sectorBytes: number;
  readonly backingFilePath: string;
  readonly encrypted: boolean;
  readonly readOnly: boolean;
}

/** One disk record (snapshot or head) with what its file occupies. */
export interface DiskInfo {
  readonly name: string;
  /** '' when it has none. */
  readonly parent: string;
  readonly children: readonly string[];
  readonly removed: boolean;
  readonly userCreated: boolean;
  readonly created: string;
  readonly labels: Readonly<Record<string, string>> | null;
  /** st_blocks * 512: what Longhorn reports as a disk's size. */
  readonly allocatedBytes: number;
  /** Apparent size of the image file. */
  readonly imageBytes: number;
  /** Change time of the image file, nanoseconds since the epoch. */
  readonly changedNs: bigint;
}

/** The numbers of snapshot limits (facts: on-disk §10). */
export interface ChainUsage {
  /** Disk records without the head and removed ones. */
  readonly snapshotCount: number;
  /** All disk records, the head and removed ones included. */
  readonly diskCount: number;
  /** Allocated bytes of live-chain snapshots that are not removed. */
  readonly snapshotBytes: number;
  readonly remainingSnapshots: number;
  readonly snapshotMaxCount: number;
  readonly snapshotMaxBytes: number;
}

export interface HeadUsage {
  readonly allocatedBytes: number;
  readonly modifiedMs: number;
  readonly modifiedNs: bigint;
}

/** Long work: called with bytes done and the total; stops with CANCELLED when the signal aborts. */
export interface WorkOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
}

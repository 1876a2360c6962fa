// The hash jobs of one replica by snapshot name: started, asked for, cancelled. A finished job is
// remembered so that its outcome can be read; the record on disk answers for forgotten ones.

import { join } from 'node:path';

import type { Clock } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import { checkSnapshotName } from '../core/snapshot-name.js';
import type { Disk } from '../disk/disk.js';
import { snapshotDiskName } from '../image/names.js';
import { CHECKSUM_SUFFIX } from './checksum-record.js';
import { readChecksumRecord } from './checksum-store.js';
import { hashSnapshot } from './hash-job.js';
import type { NodeLock } from './node-lock.js';
import { errorText } from './operation-status.js';
import type { OperationState } from './operation-status.js';

/** Jobs remembered; above the longest chain. */
const JOBS_MAX = 512;

export interface HashStatus {
  readonly state: OperationState;
  readonly checksum: string;
  readonly error: string;
  readonly isSilentlyCorrupted: boolean;
}

interface HashJob {
  readonly abort: AbortController;
  readonly done: Promise<void>;
  status: HashStatus;
}

export interface HashJobsOptions {
  readonly disk: Disk;
  readonly clock: Clock;
  readonly log: Logger;
  readonly directory: string;
  readonly lock: NodeLock;
}

const IN_PROGRESS: HashStatus = {
  state: 'in_progress',
  checksum: '',
  error: '',
  isSilentlyCorrupted: false,
};

export class HashJobs {
  private readonly options: HashJobsOptions;
  private readonly jobs = new Map<string, HashJob>();

  constructor(options: HashJobsOptions) {
    this.options = options;
  }

  /** Starts a job unless one for the snapshot is running. @throws INVALID_NAME, LIMIT_EXCEEDED. */
  start(snapshotName: string, isRehash: boolean): void {
    if (snapshotName === '') {
      throw new StorageError('INVALID_ARGUMENT', 'snapshot name is required');
    }
    checkSnapshotName(snapshotName);
    if (this.jobs.get(snapshotName)?.status.state === 'in_progress') return;
    this.makeRoom();
    const abort = new AbortController();
    let settle: () => void = () => undefined;
    const done = new Promise<void>((resolve) => {
      settle = resolve;
    });
    const job: HashJob = { abort, done, status: IN_PROGRESS };
    this.jobs.delete(snapshotName); // the newest job is the last of the map
    this.jobs.set(snapshotName, job);
    void this.run(job, snapshotName, isRehash).then(settle);
  }

  async status(snapshotName: string): Promise<HashStatus> {
    const job = this.jobs.get(snapshotName);
    if (job !== undefined) return job.status;
    const { disk, directory } = this.options;
    const failed = { state: 'error', checksum: '', isSilentlyCorrupted: false } as const;
    try {
      if (snapshotName !== '') checkSnapshotName(snapshotName);
      const path = join(directory, snapshotDiskName(snapshotName));
      const record = await readChecksumRecord(disk, path);
      if (record === null) {
        const error = `open ${path}${CHECKSUM_SUFFIX}: no such file or directory`;
        return { ...failed, error };
      }
      const { checksum, isSilentlyCorrupted } = record;
      return { state: 'complete', checksum, error: '', isSilentlyCorrupted };
    } catch (error) {
      return { ...failed, error: errorText(error) };
    }
  }

  /** Unknown snapshots are none to cancel. Resolves when the job has ended. */
  async cancel(snapshotName: string): Promise<void> {
    const job = this.jobs.get(snapshotName);
    job?.abort.abort();
    await job?.done;
  }

  /** Forgets what has ended. */
  reset(): void {
    for (const [name, job] of this.jobs) {
      if (job.status.state !== 'in_progress') this.jobs.delete(name);
    }
  }

  async close(): Promise<void> {
    await Promise.all([...this.jobs.keys()].map((name) => this.cancel(name)));
  }

  async isLocked(): Promise<boolean> {
    const held = await this.options.lock.tryAcquire();
    await held?.release();
    return held === null;
  }

  private makeRoom(): void {
    if (this.jobs.size < JOBS_MAX) return;
    for (const [name, job] of this.jobs) {
      if (job.status.state === 'in_progress') continue;
      this.jobs.delete(name);
      return;
    }
    throw new StorageError('LIMIT_EXCEEDED', `${JOBS_MAX} hash jobs are running`);
  }

  private async run(job: HashJob, snapshotName: string, isRehash: boolean): Promise<void> {
    const { disk, clock, log, directory, lock } = this.options;
    const path = join(directory, snapshotDiskName(snapshotName));
    const { signal } = job.abort;
    try {
      const result = await hashSnapshot({ disk, clock, lock, path, isRehash, signal });
      job.status = { state: 'complete', error: '', ...result };
    } catch (error) {
      job.status = { ...IN_PROGRESS, state: 'error', error: errorText(error) };
      log.warn('snapshot.hash.failed', { snapshot: snapshotName, error });
    }
  }
}

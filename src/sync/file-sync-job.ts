// Brings a list of files from other replicas into this one's directory: several files at once, from
// all sources. First the data, then the records, so that what a broken-off copy leaves is the chain
// that was there before. A file that fails is tried again, elsewhere first, and after three failures
// the whole job fails. A file counts only after its receiver has closed it, hence durable.
// Source: pkg/sync/rpc/server.go FilesSync (control-api §3).

import { isAbsolute, join } from 'node:path';

import type { SyncFileInfo } from '../api/generated/common.js';
import type { ByteRange } from '../core/byte-ranges.js';
import type { Clock, Timer } from '../core/clock.js';
import { StorageError, toStorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import type { Disk } from '../disk/disk.js';
import { copyLocally } from './local-copy.js';
import { errorText } from './operation-status.js';
import { checkFileName } from './query.js';
import type { ReceiverPool } from './receiver-pool.js';
import { type FileSelection, WHOLE_FILE } from './send-source.js';

const ATTEMPTS_MAX = 3;
const RETRY_FIRST_MS = 10_000;
const RETRY_MAX_MS = 30_000;

export interface FileSourceRequest {
  readonly fromFileName: string;
  /** Of our receiver. */
  readonly port: number;
  /** What can differ at all; empty: everything. */
  readonly ranges: readonly ByteRange[];
  /** Size of the file here. */
  readonly receiverSizeBytes: number;
}

/** Asks the sync agent of one source replica to send a file to our receiver. */
export interface FileSource {
  /** The replica's address as the request named it. */
  readonly address: string;
  send(request: FileSourceRequest, signal: AbortSignal): Promise<void>;
}

export interface FileSyncOptions {
  readonly disk: Disk;
  readonly clock: Clock;
  readonly log: Logger;
  readonly directory: string;
  readonly receivers: ReceiverPool;
  readonly files: readonly SyncFileInfo[];
  readonly sources: readonly FileSource[];
  /** At least one from each source. */
  readonly filesAtOnce: number;
  /** Absolute path of a replica directory on this node that has the same files. */
  readonly localSourceDirectory: string | null;
  readonly signal: AbortSignal;
  readonly onProgress: (doneBytes: number) => void;
  /** Data that came over the network. */
  readonly onReceived: (bytes: number) => void;
}

interface FileTask {
  readonly file: SyncFileInfo;
  attempts: number;
  /** Sources that could not send it; they get it again when all others could not either. */
  readonly failedAt: Set<FileSource>;
}

function isRecord({ fromFileName }: SyncFileInfo): boolean {
  return fromFileName.endsWith('.meta');
}

export async function syncFiles(options: FileSyncOptions): Promise<void> {
  for (const file of options.files) {
    checkFileName(file.fromFileName);
    checkFileName(file.toFileName);
  }
  await new FileSyncJob(options).run();
}

class FileSyncJob {
  private readonly options: FileSyncOptions;
  private waiting: FileTask[];
  /** Tasks that are neither waiting nor done. */
  private takenCount = 0;
  private wakeLanes: (() => void)[] = [];
  /** Sources that failed and are left alone for a while. */
  private readonly resting = new Map<FileSource, Timer>();
  private readonly abort = new AbortController();
  private finishedBytes = 0;
  private readonly inFlightBytes = new Map<FileTask, number>();

  constructor(options: FileSyncOptions) {
    this.options = options;
    this.waiting = options.files.map((file) => ({ file, attempts: 0, failedAt: new Set() }));
  }

  async run(): Promise<void> {
    const { signal } = this.options;
    const onAbort = (): void => this.abort.abort(signal.reason);
    this.abort.signal.addEventListener('abort', () => this.wake(), { once: true });
    if (signal.aborted) onAbort();
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      await this.copyFromNeighbour();
      const remaining = this.waiting;
      // The largest first, so that the lanes end together.
      const data = remaining.filter(({ file }) => !isRecord(file));
      await this.copyAll(data.sort((a, b) => b.file.actualSize - a.file.actualSize));
      await this.copyAll(remaining.filter(({ file }) => isRecord(file)));
    } finally {
      signal.removeEventListener('abort', onAbort);
      for (const timer of this.resting.values()) timer.cancel();
    }
  }

  /** What cannot be copied on the node stays in the list for the network. */
  private async copyFromNeighbour(): Promise<void> {
    const { localSourceDirectory, directory, disk, log } = this.options;
    if (localSourceDirectory === null) return;
    for (const task of [...this.waiting]) {
      // Single ranges go over the network, so that the rest of the file stays as it is.
      if (task.file.ranges.length > 0) continue;
      try {
        await copyLocally({
          disk,
          sourcePath: join(localSourceDirectory, task.file.fromFileName),
          targetPath: join(directory, task.file.toFileName),
          signal: this.abort.signal,
          onProgress: (bytes) => this.progressed(task, bytes),
        });
      } catch (error) {
        this.abort.signal.throwIfAborted();
        this.inFlightBytes.delete(task);
        log.warn('files.sync.local.failed', { file: task.file.fromFileName, error });
        return;
      }
      this.finished(task);
      this.waiting.splice(this.waiting.indexOf(task), 1);
    }
  }

  private async copyAll(tasks: FileTask[]): Promise<void> {
    const { sources, filesAtOnce } = this.options;
    this.waiting = tasks;
    const lanes: Promise<void>[] = [];
    const count = Math.max(filesAtOnce, sources.length);
    for (let lane = 0; lane < count; lane++) {
      const source = sources[lane % sources.length];
      if (source !== undefined) lanes.push(this.work(source));
    }
    const outcomes = await Promise.allSettled(lanes);
    for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
  }

  private async work(source: FileSource): Promise<void> {
    for (let task = await this.take(source); task !== null; task = await this.take(source)) {
      try {
        await this.transfer(source, task);
        this.finished(task);
      } catch (error) {
        this.failed(source, task, error);
      } finally {
        this.takenCount--;
        this.wake();
      }
    }
  }

  /** The next file for this source; null when all are done. Waits: one may come back from another. */
  private async take(source: FileSource): Promise<FileTask | null> {
    const { sources } = this.options;
    const { signal } = this.abort;
    for (;;) {
      if (signal.aborted) throw toStorageError(signal.reason, 'CANCELLED');
      if (this.waiting.length === 0 && this.takenCount === 0) return null;
      const index = this.waiting.findIndex(
        ({ failedAt }) => !failedAt.has(source) || failedAt.size === sources.length,
      );
      const [task] = index < 0 || this.resting.has(source) ? [] : this.waiting.splice(index, 1);
      if (task !== undefined) {
        this.takenCount++;
        return task;
      }
      await this.changed();
    }
  }

  /** Resolves when a file was finished or came back, a source has rested, or the job ends. */
  private changed(): Promise<void> {
    return new Promise((resolve) => this.wakeLanes.push(resolve));
  }

  private wake(): void {
    const lanes = this.wakeLanes;
    this.wakeLanes = [];
    for (const wake of lanes) wake();
  }

  private async transfer(source: FileSource, task: FileTask): Promise<void> {
    const { receivers, onReceived } = this.options;
    const { fromFileName, toFileName } = task.file;
    // Before the receiver is there: it makes a file that is missing.
    const selection = await this.selectionOf(task.file);
    const receiver = await receivers.launch(toFileName, {
      onProgress: (bytes) => this.progressed(task, bytes),
      onReceived,
    });
    try {
      const request = { fromFileName, port: receiver.port, ...selection };
      await source.send(request, this.abort.signal);
    } catch (error) {
      await receiver.cancel();
      throw error;
    }
    const outcome = await receiver.done;
    if (outcome !== 'closed') {
      throw new StorageError('PEER_ERROR', `the receiver of ${toFileName} ended as ${outcome}`);
    }
  }

  /** Ranges mean something only where the rest of the file is. */
  private async selectionOf(file: SyncFileInfo): Promise<FileSelection> {
    const { disk, directory } = this.options;
    if (file.ranges.length === 0) return WHOLE_FILE;
    try {
      const { sizeBytes } = await disk.stat(join(directory, file.toFileName));
      return { ranges: file.ranges, receiverSizeBytes: sizeBytes };
    } catch (error) {
      if (error instanceof StorageError && error.code === 'NOT_FOUND') return WHOLE_FILE;
      throw error;
    }
  }

  private failed(source: FileSource, task: FileTask, error: unknown): void {
    const { log, clock, sources } = this.options;
    const { signal } = this.abort;
    this.inFlightBytes.delete(task);
    task.attempts++;
    task.failedAt.add(source);
    const { fromFileName } = task.file;
    const fields = { file: fromFileName, source: source.address, attempt: task.attempts, error };
    log.warn('files.sync.attempt.failed', fields);
    if (signal.aborted) throw toStorageError(signal.reason, 'CANCELLED');
    if (task.attempts >= Math.max(ATTEMPTS_MAX, sources.length)) {
      const message = `failed to sync file ${fromFileName} from ${source.address}: ${errorText(error)}`;
      const failure = new StorageError(toStorageError(error).code, message, {}, error);
      this.abort.abort(failure); // the other sources stop too
      throw failure;
    }
    const restMs = Math.min(RETRY_FIRST_MS * 2 ** (task.attempts - 1), RETRY_MAX_MS);
    this.resting.get(source)?.cancel();
    const rested = (): void => {
      this.resting.delete(source);
      this.wake();
    };
    this.resting.set(source, clock.after(restMs, rested));
    this.waiting.push(task);
  }

  private progressed(task: FileTask, bytes: number): void {
    // A piece that was compared and then sent counts once.
    const soFar = this.inFlightBytes.get(task) ?? 0;
    this.inFlightBytes.set(task, Math.min(soFar + bytes, task.file.actualSize));
    this.report();
  }

  private finished(task: FileTask): void {
    this.inFlightBytes.delete(task);
    this.finishedBytes += task.file.actualSize;
    this.report();
  }

  private report(): void {
    let doneBytes = this.finishedBytes;
    for (const bytes of this.inFlightBytes.values()) doneBytes += bytes;
    this.options.onProgress(doneBytes);
  }
}

/**
 * Directory of a neighbour replica below the root of the host's file system.
 * @throws INVALID_ARGUMENT unless the path is absolute and free of `..`.
 */
export function neighbourDirectory(hostRoot: string, sourcePath: string): string {
  if (!isAbsolute(sourcePath) || sourcePath.split('/').includes('..')) {
    throw new StorageError('INVALID_ARGUMENT', `'${sourcePath}' is no absolute directory path`);
  }
  return join(hostRoot, sourcePath);
}

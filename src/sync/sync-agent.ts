// The sync agent of one replica: sends and receives its files, rebuilds it from others, purges and
// hashes its snapshots. It shares the directory with the replica process and never changes the
// image chain itself: it moves data and asks the replica. Work that would change files under a
// running transfer is refused. Source: pkg/sync/rpc/server.go (control-api §3).

import { join } from 'node:path';

import { SyncAgentServiceDefinition } from '../api/generated/syncagent.js';
import type { FilesSyncRequest, SnapshotCloneRequest } from '../api/generated/syncagent.js';
import type { Clock } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import { checkSnapshotName } from '../core/snapshot-name.js';
import type { Disk } from '../disk/disk.js';
import { LONG_CALL_DEADLINE_MS, createChannel, createClient } from '../rpc/client.js';
import { storageErrorOfRpc } from '../rpc/error-map.js';
import type { Identity } from '../rpc/identity.js';
import { FILES_AT_ONCE, REQUEST_TIMEOUT_MS } from './constants.js';
import { cloneSnapshot } from './clone-job.js';
import { neighbourDirectory, syncFiles } from './file-sync-job.js';
import type { FileSource, FileSourceRequest } from './file-sync-job.js';
import { HashJobs } from './hash-jobs.js';
import type { NodeLock } from './node-lock.js';
import { NEVER_RAN, errorText, percent } from './operation-status.js';
import type { OperationStatus } from './operation-status.js';
import { purgeSnapshots } from './purge-job.js';
import type { ReplicaClient } from './purge-job.js';
import { Pace } from './pace.js';
import { checkFileName } from './query.js';
import { ReceiverPool } from './receiver-pool.js';
import type { PortRange } from './receiver-pool.js';
import { openFileSource, openSnapshotSource } from './send-source.js';
import type { FileSelection, SendSource } from './send-source.js';
import { sendSource } from './sender.js';
import { syncAgentAddress } from './sync-address.js';

export interface SyncAgentOptions {
  readonly disk: Disk;
  readonly clock: Clock;
  readonly log: Logger;
  /** Absolute path of the replica's directory. */
  readonly directory: string;
  /** Ports of receivers. */
  readonly ports: PortRange;
  /** Address that receivers listen on; all by default. */
  readonly receiverHost?: string;
  /** Control service of this agent's own replica. */
  readonly replica: ReplicaClient;
  readonly hashLock: NodeLock;
  /** What the host's root directory is called here, for local copies; `/host` in Longhorn. */
  readonly hostRoot?: string;
  /** Whom calls to other sync agents mean to reach; the volume's name. */
  readonly peerIdentity?: Identity;
  /** Bytes per second of all files this agent sends together; no limit by default. */
  readonly sendBytesPerSecondMax?: number;
}

export interface CloneStatus extends OperationStatus {
  readonly sourceAddress: string;
  readonly snapshotName: string;
}

const NEVER_CLONED: CloneStatus = { ...NEVER_RAN, sourceAddress: '', snapshotName: '' };

export interface RebuildStatus extends OperationStatus {
  /** Data that came over the network since it began. */
  readonly receivedBytes: number;
  readonly sourceAddresses: readonly string[];
}

const NEVER_REBUILT: RebuildStatus = { ...NEVER_RAN, sourceAddresses: [], receivedBytes: 0 };

/** Where to send, and how. */
export interface SendTarget {
  readonly host: string;
  readonly port: number;
  readonly isFastSync: boolean;
  /** 0 means the default. */
  readonly timeoutSeconds: number;
  readonly signal: AbortSignal;
  /** 0 or absent: only the agent's own limit. */
  readonly bytesPerSecondMax?: number;
}

export interface FileSendRequest extends SendTarget, FileSelection {
  readonly fromFileName: string;
}

export interface SnapshotExportRequest extends Omit<SendTarget, 'isFastSync'> {
  readonly snapshotName: string;
  readonly includesBackingImage: boolean;
}

export class SyncAgent {
  readonly hashes: HashJobs;
  private readonly options: SyncAgentOptions;
  private readonly receivers: ReceiverPool;
  private readonly abort = new AbortController();
  private readonly pace: Pace;
  private sendingCount = 0;
  private purge: OperationStatus = NEVER_RAN;
  private purging: Promise<void> | null = null;
  private clone: CloneStatus = NEVER_CLONED;
  private isCloning = false;
  private rebuild: RebuildStatus = NEVER_REBUILT;

  constructor(options: SyncAgentOptions) {
    this.options = options;
    const { disk, clock, log, directory, ports, receiverHost, hashLock } = options;
    this.pace = new Pace(clock);
    const host = receiverHost === undefined ? {} : { host: receiverHost };
    this.receivers = new ReceiverPool({ disk, clock, log, directory, ports, ...host });
    this.hashes = new HashJobs({ disk, clock, log, directory, lock: hashLock });
  }

  /** Stops everything and waits until no file is touched any more. */
  async close(): Promise<void> {
    this.abort.abort(new StorageError('CANCELLED', 'the sync agent is stopping'));
    await Promise.all([this.receivers.close(), this.hashes.close(), this.purging]);
  }

  async removeFile(name: string): Promise<void> {
    checkFileName(name);
    await withFileText(`remove ${name}`, this.options.disk.unlink(this.pathOf(name)));
  }

  async renameFile(oldName: string, newName: string): Promise<void> {
    checkFileName(oldName);
    checkFileName(newName);
    const renamed = this.options.disk.rename(this.pathOf(oldName), this.pathOf(newName));
    await withFileText(`rename ${oldName} ${newName}`, renamed);
    await this.options.disk.syncDirectory(this.options.directory);
  }

  /** The receiver's port. @throws LIMIT_EXCEEDED "out of ports". */
  async launchReceiver(fileName: string): Promise<number> {
    return (await this.receivers.launch(fileName)).port;
  }

  async sendFile(request: FileSendRequest): Promise<void> {
    const { disk } = this.options;
    const { fromFileName } = request;
    checkFileName(fromFileName);
    const sourcePath = this.pathOf(fromFileName);
    await withFileText(`stat ${fromFileName}`, disk.stat(sourcePath));
    await this.send(request, () => openFileSource(disk, sourcePath, request));
  }

  /** Sends a snapshot as the volume saw it. @throws NOT_FOUND, and what ends a transfer. */
  async exportSnapshot(request: SnapshotExportRequest): Promise<void> {
    const { disk, clock, log, directory } = this.options;
    const { snapshotName, includesBackingImage } = request;
    checkSnapshotName(snapshotName);
    const source = { disk, clock, log, directory, snapshotName, includesBackingImage };
    await this.send({ ...request, isFastSync: false }, () => openSnapshotSource(source));
  }

  private async send(request: SendTarget, open: () => Promise<SendSource>): Promise<void> {
    const { disk, clock, log } = this.options;
    const { host, port, isFastSync, timeoutSeconds } = request;
    const limits = [this.options.sendBytesPerSecondMax ?? 0, request.bytesPerSecondMax ?? 0];
    const bytesPerSecondMax = Math.min(...limits.filter((limit) => limit > 0));
    if (this.purging !== null) throw new StorageError('BUSY', 'replica is purging snapshots');
    this.sendingCount++; // from here on no purge begins, which would change what is read
    try {
      const source = await open();
      const sending = {
        disk,
        clock,
        log,
        host,
        port,
        isFastSync,
        pace: this.pace,
        timeoutMs: timeoutSeconds > 0 ? timeoutSeconds * 1000 : REQUEST_TIMEOUT_MS,
        signal: AbortSignal.any([request.signal, this.abort.signal]),
        ...(Number.isFinite(bytesPerSecondMax) ? { bytesPerSecondMax } : {}),
      };
      const result = await sendSource(sending, source);
      log.info('file.sent', { source: source.name, host, port, ...result });
    } finally {
      this.sendingCount--;
    }
  }

  get rebuildStatus(): RebuildStatus {
    return this.rebuild;
  }

  /** Runs until all files are here. @throws BUSY, and whatever ended the transfer. */
  async syncFiles(request: FilesSyncRequest, callSignal: AbortSignal): Promise<void> {
    const addresses = sourceAddresses(request);
    const hasWork = request.syncFileInfoList.length > 0 && addresses.length > 0;
    if (!hasWork)
      throw new StorageError('INVALID_ARGUMENT', 'no files or remote replicas for sync');
    this.checkIdle();
    this.rebuild = { ...NEVER_REBUILT, state: 'in_progress', sourceAddresses: addresses };
    const signal = AbortSignal.any([callSignal, this.abort.signal]);
    try {
      await this.runFileSync(request, addresses, signal);
      this.rebuild = { ...this.rebuild, state: 'complete', progress: 100 };
      const { receivedBytes } = this.rebuild;
      this.options.log.info('files.synced', { sources: addresses, receivedBytes });
    } catch (error) {
      this.rebuild = { ...this.rebuild, state: 'error', error: errorText(error) };
      const { receivedBytes } = this.rebuild;
      this.options.log.warn('files.sync.failed', { sources: addresses, receivedBytes, error });
      throw error;
    }
  }

  private async runFileSync(
    request: FilesSyncRequest,
    addresses: readonly string[],
    signal: AbortSignal,
  ): Promise<void> {
    const { disk, clock, log, directory, hostRoot } = this.options;
    const files = request.syncFileInfoList;
    const totalBytes = files.reduce((sum, file) => sum + file.actualSize, 0);
    // Each source may send its share of the limit.
    const { bytesPerSecondMax } = request;
    const share = bytesPerSecondMax > 0 ? Math.ceil(bytesPerSecondMax / addresses.length) : 0;
    const peers = addresses.map((address) => this.openPeer(address, request, share));
    const { localSync } = request;
    const localSourceDirectory =
      localSync === undefined || localSync.sourcePath === '' || share > 0
        ? null
        : neighbourDirectory(hostRoot ?? '/host', localSync.sourcePath);
    try {
      await syncFiles({
        disk,
        clock,
        log,
        directory,
        receivers: this.receivers,
        files,
        sources: peers,
        // Each send of a limited source would get the limit for itself.
        filesAtOnce: share > 0 ? addresses.length : FILES_AT_ONCE,
        localSourceDirectory,
        signal,
        onProgress: (doneBytes) => {
          const progress = percent(1 + doneBytes, 1 + totalBytes);
          this.rebuild = { ...this.rebuild, progress };
        },
        onReceived: (bytes) => {
          const receivedBytes = this.rebuild.receivedBytes + bytes;
          this.rebuild = { ...this.rebuild, receivedBytes };
        },
      });
    } finally {
      for (const peer of peers) peer.close();
    }
  }

  /** The sync agent next to the replica at an address. */
  private openPeer(
    address: string,
    request: FilesSyncRequest,
    bytesPerSecondMax: number,
  ): FileSource & { close(): void } {
    const { clock, peerIdentity } = this.options;
    const identity = peerIdentity === undefined ? {} : { identity: peerIdentity };
    const channel = createChannel(syncAgentAddress(address), { clock, ...identity });
    const client = createClient(SyncAgentServiceDefinition, channel);
    const { grpcTimeoutSeconds, toHost, fastSync, fileSyncHttpClientTimeout } = request;
    const deadlineMs = grpcTimeoutSeconds > 0 ? grpcTimeoutSeconds * 1000 : LONG_CALL_DEADLINE_MS;
    return {
      address,
      async send(file: FileSourceRequest, signal): Promise<void> {
        const { fromFileName, port } = file;
        const message = {
          fromFileName,
          host: toHost,
          port,
          fastSync,
          fileSyncHttpClientTimeout,
          ranges: file.ranges.map((range) => ({ ...range })),
          receiverSize: file.receiverSizeBytes,
          bytesPerSecondMax,
        };
        try {
          await client.fileSend(message, { deadlineMs, signal });
        } catch (error) {
          throw storageErrorOfRpc(error);
        }
      },
      close: () => channel.close(),
    };
  }

  get cloneStatus(): CloneStatus {
    return this.clone;
  }

  /** Runs until this replica is the snapshot. Upstream answers OK even when it failed; we do not. */
  async cloneSnapshot(request: SnapshotCloneRequest, callSignal: AbortSignal): Promise<void> {
    const { disk, clock, directory, replica } = this.options;
    const { fromAddress, snapshotFileName: snapshotName } = request;
    checkSnapshotName(snapshotName);
    this.checkIdle();
    const begun: CloneStatus = {
      ...NEVER_RAN,
      state: 'in_progress',
      sourceAddress: fromAddress,
      snapshotName,
    };
    let hasBegun = false;
    this.isCloning = true;
    try {
      await cloneSnapshot({
        disk,
        clock,
        directory,
        receivers: this.receivers,
        replica,
        fromAddress,
        fromVolumeName: request.fromVolumeName,
        toHost: request.toHost,
        snapshotName,
        timeoutSeconds: request.fileSyncHttpClientTimeout,
        signal: AbortSignal.any([callSignal, this.abort.signal]),
        onProgress: (progress) => {
          hasBegun = true;
          this.clone = { ...begun, progress };
        },
      });
      this.clone = { ...begun, state: 'complete', progress: 100 };
    } catch (error) {
      // As upstream, a source that cannot be asked leaves the status as it was.
      if (hasBegun) this.clone = { ...this.clone, state: 'error', error: errorText(error) };
      throw error;
    } finally {
      this.isCloning = false;
    }
  }

  /** @throws BUSY while the files of this replica are being made. */
  private checkIdle(): void {
    if (this.purging !== null) throw new StorageError('BUSY', 'replica is purging snapshots');
    if (this.rebuild.state === 'in_progress') {
      throw new StorageError('BUSY', 'replica is already rebuilding');
    }
    if (this.isCloning) throw new StorageError('BUSY', 'replica is cloning snapshot');
  }

  get purgeStatus(): OperationStatus {
    return this.purge;
  }

  /** Starts the purge and returns. @throws BUSY. */
  startPurge(): void {
    if (this.purging !== null) {
      throw new StorageError('BUSY', 'replica is already purging snapshots');
    }
    if (this.rebuild.state === 'in_progress')
      throw new StorageError('BUSY', 'replica is rebuilding');
    if (this.isCloning) throw new StorageError('BUSY', 'replica is cloning snapshot');
    // A sender reads layers that a purge rewrites.
    if (this.sendingCount > 0) throw new StorageError('BUSY', 'replica is sending files');
    this.purge = { ...NEVER_RAN, state: 'in_progress' };
    this.purging = this.runPurge().finally(() => {
      this.purging = null;
    });
  }

  private async runPurge(): Promise<void> {
    const { log, replica } = this.options;
    try {
      await purgeSnapshots({
        log,
        replica,
        signal: this.abort.signal,
        onProgress: (progress) => {
          this.purge = { ...this.purge, progress };
        },
      });
      this.purge = { ...this.purge, state: 'complete', progress: 100 };
    } catch (error) {
      this.purge = { ...this.purge, state: 'error', error: errorText(error) };
      log.warn('purge.failed', { error });
    }
  }

  /** Forgets the outcome of everything that has ended. */
  reset(): void {
    if (this.purging === null) this.purge = NEVER_RAN;
    if (this.rebuild.state !== 'in_progress') this.rebuild = NEVER_REBUILT;
    if (!this.isCloning) this.clone = NEVER_CLONED;
    this.hashes.reset();
  }

  private pathOf(fileName: string): string {
    return join(this.options.directory, fileName);
  }
}

/** Go's text for a file that is not there; its clients show it. */
async function withFileText(what: string, operation: Promise<unknown>): Promise<void> {
  try {
    await operation;
  } catch (error) {
    if (!(error instanceof StorageError) || error.code !== 'NOT_FOUND') throw error;
    throw new StorageError('NOT_FOUND', `${what}: no such file or directory`, {}, error);
  }
}

function sourceAddresses(request: FilesSyncRequest): string[] {
  const addresses = Object.keys(request.fromAddressMap);
  if (addresses.length > 0) return addresses;
  return request.fromAddress === '' ? [] : [request.fromAddress];
}

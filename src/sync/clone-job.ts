// Makes this replica a copy of a snapshot of another volume: receives the merged image, gives it a
// minimal record and puts the head on top of it. The image is durable before its record exists,
// and the record before the replica is told, so a crash leaves the replica as it was.
// Source: pkg/sync/rpc/server.go SnapshotClone (engine-semantics §8, on-disk §2.2).

import { join } from 'node:path';

import { ReplicaServiceDefinition } from '../api/generated/replica.js';
import type { Replica } from '../api/generated/replica.js';
import { SyncAgentServiceDefinition } from '../api/generated/syncagent.js';
import type { Clock } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import type { Disk } from '../disk/disk.js';
import { rfc3339 } from '../image/chain-changes.js';
import { META_SUFFIX, TEMPORARY_SUFFIX, snapshotDiskName } from '../image/names.js';
import {
  LONG_CALL_DEADLINE_MS,
  createChannel,
  createClient,
  parseRpcAddress,
} from '../rpc/client.js';
import { storageErrorOfRpc } from '../rpc/error-map.js';
import { RpcError } from '../rpc/status.js';
import { percent } from './operation-status.js';
import type { ReplicaClient } from './purge-job.js';
import type { ReceiverPool } from './receiver-pool.js';
import { syncAgentAddress } from './sync-address.js';

/** What Longhorn writes for a restored or cloned snapshot. */
const MINIMAL_RECORD = '{"Parent":""}\n';

export interface CloneOptions {
  readonly disk: Disk;
  readonly clock: Clock;
  readonly directory: string;
  readonly receivers: ReceiverPool;
  readonly replica: ReplicaClient;
  /** Control address of the source replica. */
  readonly fromAddress: string;
  readonly fromVolumeName: string;
  /** Our own host, as the source reaches it. */
  readonly toHost: string;
  readonly snapshotName: string;
  readonly timeoutSeconds: number;
  readonly signal: AbortSignal;
  /** Called once the source is known to have the snapshot, then with every change. */
  readonly onProgress: (progress: number) => void;
}

export async function cloneSnapshot(options: CloneOptions): Promise<void> {
  const { clock, fromVolumeName, signal, replica } = options;
  const identity = { volumeName: fromVolumeName, instanceName: '' };
  const totalBytes = await sourceBytes(options, identity);
  options.onProgress(0);
  const channel = createChannel(syncAgentAddress(options.fromAddress), { clock, identity });
  try {
    await receive(options, createClient(SyncAgentServiceDefinition, channel), totalBytes);
  } finally {
    channel.close();
  }
  const name = snapshotDiskName(options.snapshotName);
  await writeRecord(options, name);
  await replica.replicaReload({}, { signal });
  await replica.replicaRevert({ name, created: rfc3339(clock.wallTime()) }, { signal });
}

/** Bytes the snapshot's layers occupy; what is sent is at most that much. */
async function sourceBytes(
  options: CloneOptions,
  identity: { volumeName: string; instanceName: string },
): Promise<number> {
  const { clock, fromAddress, snapshotName, signal } = options;
  const address = fromAddress.replace(/^tcp:\/\//, '');
  const channel = createChannel(parseRpcAddress(fromAddress), { clock, identity });
  let source: Replica | undefined;
  try {
    const client = createClient(ReplicaServiceDefinition, channel);
    source = (await client.replicaGet({}, { signal })).replica;
  } catch (error) {
    if (!(error instanceof RpcError)) throw error;
    const message = `failed to get replica ${address}: ${error.message}`;
    throw new RpcError(error.status, message, error.code, error);
  } finally {
    channel.close();
  }
  let disk = source?.disks[snapshotDiskName(snapshotName)];
  if (source === undefined || disk === undefined) {
    const message = `cannot find snapshot ${snapshotName} in the source replica ${address}`;
    throw new StorageError('NOT_FOUND', message);
  }
  let totalBytes = 0;
  for (const seen = new Set<string>(); disk !== undefined && !seen.has(disk.name); ) {
    seen.add(disk.name);
    totalBytes += Number(disk.size);
    disk = source.disks[disk.parent];
  }
  return totalBytes;
}

async function receive(
  options: CloneOptions,
  source: ReturnType<typeof createClient<typeof SyncAgentServiceDefinition>>,
  totalBytes: number,
): Promise<void> {
  const { snapshotName, toHost, timeoutSeconds, signal, onProgress } = options;
  let doneBytes = 0;
  const toFileName = snapshotDiskName(snapshotName);
  const receiver = await options.receivers.launch(toFileName, {
    onProgress: (bytes) => {
      doneBytes += bytes;
      onProgress(percent(doneBytes, totalBytes));
    },
  });
  const request = {
    snapshotFileName: snapshotName,
    host: toHost,
    port: receiver.port,
    // The clone's volume uses the same backing image.
    exportBackingImageIfExist: false,
    fileSyncHttpClientTimeout: timeoutSeconds,
  };
  try {
    await source.volumeExport(request, { deadlineMs: LONG_CALL_DEADLINE_MS, signal });
  } catch (error) {
    await receiver.cancel();
    throw storageErrorOfRpc(error);
  }
  const outcome = await receiver.done;
  if (outcome !== 'closed') {
    throw new StorageError('PEER_ERROR', `the receiver of ${toFileName} ended as ${outcome}`);
  }
}

async function writeRecord(options: CloneOptions, diskName: string): Promise<void> {
  const { disk, directory } = options;
  const path = join(directory, diskName + META_SUFFIX);
  await disk.writeFile(path + TEMPORARY_SUFFIX, Buffer.from(MINIMAL_RECORD));
  await disk.rename(path + TEMPORARY_SUFFIX, path);
  await disk.syncDirectory(directory);
}

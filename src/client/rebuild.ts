// Adds a replica to a running volume and fills it: the steps of Longhorn's client (facts, engine
// semantics §6), driven from outside so that the engine stays a data path. Until the engine has
// verified the copy the replica is WO: it receives writes and serves nothing. A step must never be
// skipped to make another one pass.

import type { SyncFileInfo } from '../api/generated/common.js';
import { ReplicaMode as WireMode } from '../api/generated/controller.js';
import type { Replica as ReplicaInfo } from '../api/generated/replica.js';
import { sleepMs } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import { LONG_CALL_DEADLINE_MS } from '../rpc/client.js';
import { storageErrorOfRpc } from '../rpc/error-map.js';
import { forkOf, standOnFork } from './rebuild-fork.js';
import { chooseSources } from './rebuild-sources.js';
import { type Connections, parseReplicaUrl, withContext } from './connections.js';
import {
  describeReplicas,
  type DescribedReplica,
  getReplica,
  listReplicas,
  removeReplica,
  verifyRebuild,
} from './replicas.js';

/** How often the sync agent is asked how far it is. */
const PROGRESS_PERIOD_MS = 500;
const CONCURRENT_SYNC_DEFAULT = 1;
/** A replica starts serving a moment before its sync agent does. */
const SYNC_AGENT_START_MS = 10_000;
const SYNC_AGENT_POLL_MS = 100;

export type RebuildStep =
  | 'check' // sizes, and whether the address is already used
  | 'start' // the volume has no replica yet: this one starts it
  | 'expand' // the replica is smaller than the volume
  | 'mark' // as incomplete; one that was a member cuts the snapshot at which it left
  | 'join' // a snapshot everywhere; the replica receives writes from here on
  | 'prepare' // the list of files to copy; the head's metadata
  | 'sync' // the files
  | 'reload'
  | 'verify' // WO → RW
  | 'finish';

export interface RebuildProgress {
  readonly step: RebuildStep;
  /** Share of bytes copied, only during 'sync'. */
  readonly percent: number | null;
  /** Replicas copied from, only during 'sync'. */
  readonly sources: readonly string[];
}

export interface AddReplicaRequest {
  readonly address: string;
  /** Size the volume should have and has, used only when this replica starts it. */
  readonly sizeBytes: number;
  readonly currentSizeBytes: number;
  /** Skip files whose stored checksum and change time are the same. */
  readonly fastSync: boolean;
  /** The volume is being restored: its replicas are filled by the restore. */
  readonly isRestore: boolean;
  readonly httpTimeoutSeconds: number;
  /** Zero: Longhorn's long limit. */
  readonly deadlineSeconds: number;
  /** Limit of the copy over all its sources together; absent or 0: none. */
  readonly bytesPerSecondMax?: number;
  /** Both directories are on the replica's own node, so that it may copy without ssync. */
  readonly localSync?: { readonly sourcePath: string; readonly targetPath: string };
}

export interface AddReplicaOptions {
  readonly onProgress?: (progress: RebuildProgress) => void;
  /** Aborting ends the rebuild and takes the half-filled replica out of the volume again. */
  readonly signal?: AbortSignal;
}

/** What the engine keeps after a failed rebuild, in `details.replicaMode` of the error. */
export type LeftBehind = 'none' | 'WO' | 'ERR' | 'RW';

/** Returns when the replica is RW (WO for a restore). @throws StorageError with `details.replicaMode`. */
export async function addReplica(
  connections: Connections,
  request: AddReplicaRequest,
  options: AddReplicaOptions = {},
): Promise<void> {
  await new Rebuild(connections, request, options).run();
}

class Rebuild {
  private readonly connections: Connections;
  private readonly request: AddReplicaRequest;
  private readonly options: AddReplicaOptions;
  private left: LeftBehind = 'none';
  /** From here on only the engine knows in which mode the replica is. */
  private hasJoined = false;

  constructor(connections: Connections, request: AddReplicaRequest, options: AddReplicaOptions) {
    this.connections = connections;
    this.request = request;
    this.options = options;
  }

  async run(): Promise<void> {
    try {
      await this.steps();
    } catch (error) {
      const failure = storageErrorOfRpc(error);
      if (this.hasJoined) await this.lookAgain();
      if (this.isAborted && this.left === 'WO') await this.takeOut();
      const details = { ...failure.details, address: this.request.address, replicaMode: this.left };
      throw new StorageError(failure.code, failure.message, details, error);
    }
  }

  private get isAborted(): boolean {
    return this.options.signal?.aborted === true;
  }

  private async steps(): Promise<void> {
    const { connections, request } = this;
    const { address } = request;
    this.report('check');
    parseReplicaUrl(address);
    const volume = await connections.onEngine('get volume', (engine) => engine.volumeGet({}));
    const replica = await getReplica(connections, address);
    if (volume.replicaCount === 0) return this.startWith(replica);
    const isMember = await this.checkMembership();
    if (request.isRestore) return this.joinRestore(volume.size, replica, isMember);
    await this.awaitSyncAgent();
    if (!isMember) {
      checkIsFree(address, replica);
      await this.makeReady(volume.size, replica);
      this.report('join');
      await this.join(true);
    }
    this.hasJoined = true;
    await this.fill(!isMember || replica.rebuilding);
  }

  private async startWith(replica: ReplicaInfo): Promise<void> {
    const { address, sizeBytes, currentSizeBytes } = this.request;
    this.report('start');
    checkNeedsNoOther(address, replica);
    await this.connections.onEngine('start volume', (engine) =>
      engine.volumeStart({
        replicaAddresses: [address],
        size: sizeBytes,
        currentSize: currentSizeBytes,
      }),
    );
    this.report('finish');
  }

  /**
   * True for a WO replica, whose rebuild is taken up again. Longhorn's client would set the
   * rebuilding flag of a healthy replica here and leave it useless for the next start.
   */
  private async checkMembership(): Promise<boolean> {
    const { address } = this.request;
    const member = (await listReplicas(this.connections)).find((r) => r.address === address);
    if (member === undefined) return false;
    this.left = member.mode;
    if (member.mode === 'WO') return true;
    if (member.mode === 'RW') {
      const text = `replica ${address} is already part of the volume and RW`;
      throw new StorageError('ALREADY_EXISTS', text);
    }
    throw new StorageError('INVALID_STATE', `replica ${address} failed and is still listed`);
  }

  /** The copy needs it: without it the replica must not join. @throws BUSY when it is copying already. */
  private async awaitSyncAgent(): Promise<void> {
    const { address } = this.request;
    const { clock } = this.connections.options;
    const agent = this.connections.syncAgent(address);
    const untilMs = clock.nowMs() + SYNC_AGENT_START_MS;
    for (;;) {
      try {
        const { isRebuilding } = await agent.replicaRebuildStatus({});
        if (!isRebuilding) return;
        throw new StorageError('BUSY', `replica ${address} is already rebuilding`);
      } catch (error) {
        const failure = storageErrorOfRpc(error);
        const isAway = ['CONNECTION_REFUSED', 'CONNECTION_LOST'].includes(failure.code);
        if (!isAway || clock.nowMs() >= untilMs) {
          const text = `failed to reach the sync agent of replica ${address}: ${failure.message}`;
          throw failure.code === 'BUSY' ? failure : new StorageError(failure.code, text, {}, error);
        }
      }
      await sleepMs(clock, SYNC_AGENT_POLL_MS, this.options.signal);
      this.throwIfAborted();
    }
  }

  /**
   * Before it joins: cuts the fork, makes up for an expansion that it missed, and marks it as incomplete,
   * so that nobody takes it for whole whatever happens from here on.
   */
  private async makeReady(volumeBytes: number, replica: ReplicaInfo): Promise<void> {
    const { connections, request } = this;
    const { address } = request;
    const replicaBytes = Number(replica.size);
    if (replicaBytes > volumeBytes) {
      const text = `cannot add new replica larger than size ${volumeBytes}`;
      throw new StorageError('INVALID_STATE', text, { replicaBytes, volumeBytes });
    }
    const fork = await forkOf(connections, replica);
    this.report('mark');
    await this.whileOpen(replica, async (opened) => {
      await withContext(`failed to cut the fork of replica ${address}`, () =>
        standOnFork(connections.replica(address), opened, fork),
      );
      if (replicaBytes < volumeBytes) {
        this.report('expand');
        await withContext(`failed to expand replica ${address}`, async () => {
          await connections.replica(address).replicaExpand({ size: volumeBytes });
        });
      }
      if (!replica.rebuilding) await this.setRebuilding(true);
    });
  }

  /** Opens the closed replica for the action and closes it again whatever happens. */
  private async whileOpen(
    replica: ReplicaInfo,
    action: (opened: ReplicaInfo) => Promise<void>,
  ): Promise<void> {
    const { address } = this.request;
    const api = this.connections.replica(address);
    const answer = await withContext(`failed to open replica ${address}`, () =>
      api.replicaOpen({
        isUpgrade: false,
        expectedBackendSize: Number(replica.size),
        engineCapabilities: [],
        // In the name of the engine that it knows: another one would void what it remembers.
        engineGeneration: replica.engineGeneration,
      }),
    );
    try {
      await action(answer.replica ?? replica);
    } finally {
      await api.replicaClose({});
    }
  }

  private async join(snapshotRequired: boolean): Promise<void> {
    this.throwIfAborted();
    const { address } = this.request;
    this.hasJoined = true;
    await this.connections.onEngine(`create replica ${address} for volume`, (engine) =>
      engine.controllerReplicaCreate({ address, snapshotRequired, mode: WireMode.WO }),
    );
  }

  /** The replica gets its content from the restore; `verify-rebuild-replica` makes it RW. */
  private async joinRestore(
    volumeBytes: number,
    replica: ReplicaInfo,
    isMember: boolean,
  ): Promise<void> {
    if (Number(replica.size) !== volumeBytes) {
      const text = `rebuilding replica size ${replica.size} is not the same as volume size ${volumeBytes}`;
      throw new StorageError('INVALID_STATE', text);
    }
    this.report('join');
    if (!isMember) await this.join(false);
    this.report('finish');
  }

  /**
   * From WO to RW.
   * @param isMarked the replica's flag is set already; it refuses to be told twice.
   */
  private async fill(isMarked: boolean): Promise<void> {
    const { connections, request } = this;
    const { address } = request;
    await this.readable();
    this.throwIfAborted();
    if (!isMarked) await this.setRebuilding(true);
    this.report('prepare');
    const { files, sourceAddress } = await this.prepare();
    const sources = await this.sources(files, sourceAddress);
    this.report('sync', 0, sources);
    await this.syncFiles(sources, files);
    this.throwIfAborted();
    this.report('reload');
    await withContext(`failed to reload replica ${address}`, () =>
      connections.replica(address).replicaReload({}),
    );
    this.report('verify');
    await verifyRebuild(connections, address);
    await this.setRebuilding(false);
    this.report('finish');
  }

  private async readable(): Promise<DescribedReplica[]> {
    const readable = (await describeReplicas(this.connections)).filter(({ mode }) => mode === 'RW');
    if (readable.length > 0) return readable;
    throw new StorageError('NO_BACKEND', 'cannot find any healthy replica to copy from');
  }

  /**
   * Replicas to copy from, as many as may be read from at once; rebuild-sources.ts says which.
   * @param sourceAddress whose files the list names; '' from an engine of Longhorn's.
   */
  private async sources(files: readonly SyncFileInfo[], sourceAddress: string): Promise<string[]> {
    const readable = await this.readable();
    // Engines before controller API 6 do not know the call and copy from one.
    const limit = await this.connections.engine
      .replicaRebuildConcurrentSyncLimitGet({})
      .then((reply) => reply.limit)
      .catch((error: unknown) => {
        if (storageErrorOfRpc(error).code === 'UNSUPPORTED') return CONCURRENT_SYNC_DEFAULT;
        throw storageErrorOfRpc(error);
      });
    const names = files.map(({ fromFileName }) => fromFileName);
    return chooseSources(readable, names, sourceAddress).slice(0, Math.max(1, limit));
  }

  private async prepare(): Promise<{ files: SyncFileInfo[]; sourceAddress: string }> {
    const { address } = this.request;
    const instanceName = this.connections.options.replicaInstanceName ?? '';
    const reply = await this.connections.onEngine(
      `prepare rebuild of ${address} for volume`,
      (engine) => engine.replicaPrepareRebuild({ address, instanceName }),
    );
    const head = reply.syncFileInfoList.find(({ toFileName }) => /^volume-head-/.test(toFileName));
    if (head !== undefined) {
      const text = `sync file list shouldn't contain volume head ${head.toFileName}`;
      throw new StorageError('PEER_ERROR', text);
    }
    return { files: reply.syncFileInfoList, sourceAddress: reply.sourceAddress };
  }

  private async syncFiles(sources: readonly string[], files: SyncFileInfo[]): Promise<void> {
    const { request } = this;
    const { address, deadlineSeconds } = request;
    const copied = new AbortController();
    const watching = this.watchSync(sources, copied.signal);
    try {
      await withContext(`failed to sync files to ${address}`, () =>
        this.connections.syncAgent(address).filesSync(
          {
            fromAddress: sources[0] ?? '',
            toHost: parseReplicaUrl(address).host,
            syncFileInfoList: files,
            fastSync: request.fastSync,
            fileSyncHttpClientTimeout: request.httpTimeoutSeconds,
            grpcTimeoutSeconds: deadlineSeconds,
            localSync: request.localSync,
            bytesPerSecondMax: request.bytesPerSecondMax ?? 0,
            fromAddressMap: Object.fromEntries(sources.map((source) => [source, true])),
          },
          {
            deadlineMs: deadlineSeconds > 0 ? deadlineSeconds * 1000 : LONG_CALL_DEADLINE_MS,
            ...(this.options.signal === undefined ? {} : { signal: this.options.signal }),
          },
        ),
      );
    } finally {
      copied.abort();
      await watching;
    }
    this.report('sync', 100, sources);
  }

  /** Reports progress until the signal aborts. Its own failures do not matter to the rebuild. */
  private async watchSync(sources: readonly string[], done: AbortSignal): Promise<void> {
    if (this.options.onProgress === undefined) return;
    const { clock } = this.connections.options;
    const agent = this.connections.syncAgent(this.request.address);
    while (!done.aborted) {
      await sleepMs(clock, PROGRESS_PERIOD_MS, done);
      if (done.aborted) return;
      const status = await agent.replicaRebuildStatus({}, { signal: done }).catch(() => null);
      if (status !== null && !done.aborted) this.report('sync', status.progress, sources);
    }
  }

  private async setRebuilding(rebuilding: boolean): Promise<void> {
    const { address } = this.request;
    await withContext(`failed to set the rebuilding flag of ${address} to ${rebuilding}`, () =>
      this.connections.replica(address).rebuildingSet({ rebuilding }),
    );
  }

  /** For example a failed verification makes the replica ERR. */
  private async lookAgain(): Promise<void> {
    const { address } = this.request;
    const replicas = await listReplicas(this.connections).catch(() => null);
    if (replicas === null) return;
    this.left = replicas.find((replica) => replica.address === address)?.mode ?? 'none';
  }

  /** After an interruption: a WO replica would block snapshots from being purged, and trimming. */
  private async takeOut(): Promise<void> {
    try {
      await removeReplica(this.connections, this.request.address);
      this.left = 'none';
    } catch {
      // Still there, and the error that is about to be thrown says so.
    }
  }

  private throwIfAborted(): void {
    if (this.isAborted) throw new StorageError('CANCELLED', 'the rebuild was interrupted');
  }

  private report(
    step: RebuildStep,
    percent: number | null = null,
    sources: readonly string[] = [],
  ): void {
    this.options.onProgress?.({ step, percent, sources });
  }
}

/**
 * Alone, a replica that others may have left behind would become the newest generation, and the good
 * ones would be rejected afterwards.
 */
function checkNeedsNoOther(address: string, { replicaId, roster, rosterVoid }: ReplicaInfo): void {
  const isAlone = roster?.members.length === 1 && roster.members[0] === replicaId;
  if (isAlone || (roster === undefined && !rosterVoid)) return;
  const others = roster?.members.filter((id) => id !== replicaId) ?? [];
  const why = rosterVoid
    ? 'another program has used it'
    : `it knows of ${others.length} other member${others.length === 1 ? '' : 's'} of its volume`;
  const text =
    `replica ${address} may lack writes that others have: ${why}. Start the volume with all its ` +
    'replicas: longhorn start-with-replicas ADDRESS...';
  throw new StorageError('INVALID_STATE', text, { others });
}

/**
 * A replica that is open serves another engine, or served one that is gone: it must not be expanded
 * or joined. One that was never created has no size.
 */
function checkIsFree(address: string, replica: ReplicaInfo): void {
  if (replica.state === 'closed') return;
  const why =
    replica.state === 'initial'
      ? 'it was not created yet: start its process with --size'
      : 'it serves an engine; when that engine is gone, start its process again';
  throw new StorageError(
    'INVALID_STATE',
    `replica ${address} must be closed, cannot add in state ${replica.state}: ${why}`,
  );
}

// Longhorn's ReplicaService over a replica: checks requests, translates messages, nothing else.
// Every method that changes something answers with the replica as it is afterwards.

import type {
  DiskInfo as DiskMessage,
  Replica as ReplicaMessage,
  ReplicaServiceDefinition,
} from '../api/generated/replica.js';
import { rosterMessage } from '../api/roster-message.js';
import { StorageError } from '../core/errors.js';
import type { DiskInfo } from '../image/chain.js';
import { ENGINE_GENERATION_KEY } from '../rpc/identity.js';
import type { RpcCall } from '../rpc/server-call.js';
import type { ServiceHandlers } from '../rpc/server.js';
import { ALL_CAPABILITIES } from '../wire/replica/constants.js';
import { diskWorkHandlers } from './disk-work-service.js';
import { expandError, invalidRequest } from './error-map.js';
import type { Replica } from './replica.js';
import type { ReplicaStatus } from './replica-shapes.js';
import { rosterHandlers } from './roster-service.js';

function diskMessage(disk: DiskInfo): DiskMessage {
  return {
    name: disk.name,
    parent: disk.parent,
    children: Object.fromEntries(disk.children.map((child) => [child, true])),
    removed: disk.removed,
    userCreated: disk.userCreated,
    created: disk.created,
    size: String(disk.allocatedBytes),
    labels: { ...disk.labels },
  };
}

/** What an engine beside the replica may use instead of TCP. */
export interface LocalEndpoint {
  /** Boot id of this machine's kernel; '' when unknown. */
  readonly hostBootId: string;
  /** Unix socket of the data server; '' when there is none. */
  readonly localDataPath: string;
}

function replicaMessage(
  replica: Replica,
  status: ReplicaStatus,
  local: LocalEndpoint,
): ReplicaMessage {
  const { info, open, standing } = status;
  return {
    dirty: info.dirty,
    rebuilding: info.rebuilding,
    head: info.head,
    parent: info.parent,
    size: String(info.sizeBytes),
    sectorSize: info.sectorBytes,
    backingFile: info.backingFilePath,
    state: status.state,
    chain: open === null ? [] : [...open.liveChain],
    disks: Object.fromEntries((open?.disks ?? []).map((disk) => [disk.name, diskMessage(disk)])),
    remainSnapshots: open === null ? 0 : replica.snapshotMaxCount - open.usage.snapshotCount,
    revisionCounter: open?.revisionCounter ?? 0,
    lastModifyTime: String(open?.head.modifiedNs ?? 0),
    headFileSize: open?.head.allocatedBytes ?? 0,
    revisionCounterDisabled: open !== null && !replica.hasRevisionCounter,
    unmapMarkDiskChainRemoved: open !== null && replica.unmapMarkDiskChainRemoved,
    snapshotCountUsage: open?.usage.snapshotCount ?? 0,
    snapshotSizeUsage: open?.usage.snapshotBytes ?? 0,
    snapshotCountTotal: open?.usage.diskCount ?? 0,
    capabilities: [...ALL_CAPABILITIES],
    hostBootId: local.hostBootId,
    localDataPath: local.localDataPath,
    replicaId: standing.replicaId,
    engineGeneration: standing.engineGeneration,
    roster: standing.roster === null ? undefined : rosterMessage(standing.roster),
    rosterVoid: standing.isVoid,
    lacksUnflushed: standing.lacksUnflushed,
  };
}

/** Sizes travel as decimal text; the refusals are Go's. @throws INVALID_ARGUMENT. */
function parseSizeText(text: string): number {
  const refusal = (why: string): StorageError =>
    invalidRequest(`strconv.ParseInt: parsing ${JSON.stringify(text)}: ${why}`);
  if (!/^[+-]?\d+$/.test(text)) throw refusal('invalid syntax');
  const size = Number(text);
  if (!Number.isSafeInteger(size)) throw refusal('value out of range');
  return size;
}

function checkSnapshotRequest(name: string, created: string): void {
  if (name === '') throw invalidRequest('cannot accept empty snapshot name');
  if (created === '') throw invalidRequest('need to specific created time');
}

type Handlers = ServiceHandlers<typeof ReplicaServiceDefinition>;
type AnyHandler = (request: unknown, call: RpcCall) => unknown;

/** What an engine may ask before it has the replica open. */
const ASKED_BEFORE_OPEN = new Set<string>(['replicaGet', 'replicaOpen']);
/** What is done when the replica is closed afterwards. */
const ENDS_OPEN = new Set<string>(['replicaClose', 'replicaDelete']);

/**
 * Longhorn's replica answers that all is well when it is told to do something while it is closed. An
 * engine that has lost its replica, without knowing it yet, must not take that for done.
 * @throws NOT_OPEN.
 */
async function inOneOpen(replica: Replica, operation: () => unknown): Promise<unknown> {
  const serial = replica.openSerial;
  const result = await operation();
  if (replica.openSerial === serial) return result;
  throw new StorageError('NOT_OPEN', 'the replica was closed before the operation was done');
}

/**
 * Handlers of ReplicaService; register them with statusUnknown, as Longhorn's clients expect. Calls
 * that an engine makes after a newer one came are refused.
 */
export function replicaHandlers(replica: Replica, local: LocalEndpoint): Handlers {
  const fenced = Object.entries(handlersOf(replica, local)).map(([name, handler]) => {
    // The type of the service ties each handler to its messages; the fence looks at neither.
    const inner = handler as AnyHandler;
    const outer: AnyHandler = (request, call) => {
      const generation = Number(call.metadata(ENGINE_GENERATION_KEY) ?? 0);
      if (generation === 0 || ASKED_BEFORE_OPEN.has(name)) return inner(request, call);
      replica.checkCaller(generation);
      if (ENDS_OPEN.has(name)) return inner(request, call);
      return inOneOpen(replica, () => inner(request, call));
    };
    return [name, outer];
  });
  return Object.fromEntries(fenced) as Handlers;
}

function handlersOf(replica: Replica, local: LocalEndpoint): Handlers {
  /** Waits for a change, then tells what became of the replica. */
  const after = async (change?: Promise<void>): Promise<{ replica: ReplicaMessage }> => {
    await change;
    return { replica: replicaMessage(replica, await replica.status(), local) };
  };
  return {
    replicaGet: () => after(),
    replicaCreate: async ({ size }) => after(replica.create(parseSizeText(size))),
    replicaOpen: ({ isUpgrade, expectedBackendSize, engineGeneration }) =>
      after(replica.open({ isUpgrade, expectedBytes: expectedBackendSize, engineGeneration })),
    replicaClose: () => after(replica.close()),
    replicaReload: () => after(replica.reload()),
    replicaDelete: async () => {
      await replica.delete();
      return {};
    },
    replicaSnapshot: async ({ name, userCreated, created, labels, isBrief }) => {
      checkSnapshotRequest(name, created);
      const taken = replica.snapshot({ name, userCreated, created, labels });
      if (!isBrief) return after(taken);
      await taken;
      return { replica: undefined };
    },
    snapshotPrepare: async ({ name, userCreated, created, labels }) => {
      checkSnapshotRequest(name, created);
      await replica.prepareSnapshot({ name, userCreated, created, labels });
      return {};
    },
    replicaRevert: async ({ name, created }) => {
      checkSnapshotRequest(name, created);
      return after(replica.revert(name, created));
    },
    replicaExpand: async ({ size }) => {
      await replica.expand(size).catch((error: unknown) => {
        throw expandError(error);
      });
      return after();
    },
    diskMarkAsRemoved: ({ name }) => after(replica.markRemoved(name)),
    diskPrepareRemove: async ({ name }) => ({ operations: await replica.prepareRemove(name) }),
    diskRemove: ({ name, force }) => after(replica.removeDisk(name, force)),
    diskReplace: ({ target, source }) => after(replica.replaceDisk(target, source)),
    rebuildingSet: ({ rebuilding }) => after(replica.setRebuilding(rebuilding)),
    revisionCounterSet: ({ counter }) => after(replica.setRevisionCounter(counter)),
    unmapMarkDiskChainRemovedSet: ({ enabled }) =>
      after(replica.setUnmapMarkDiskChainRemoved(enabled)),
    snapshotMaxCountSet: ({ count }) => after(replica.setSnapshotMaxCount(count)),
    snapshotMaxSizeSet: ({ size }) => after(replica.setSnapshotMaxBytes(size)),
    ...rosterHandlers(replica),
    ...diskWorkHandlers(replica),
  };
}

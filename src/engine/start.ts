// Starting a volume: connect every replica, decide which to trust and how large the volume is
// (start-rules.ts), drop the rest. A replica that is not used is closed again, so that the next
// start finds it closed.

import { StorageError, toStorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import type { ReplicaInfo, ReplicaPort } from './ports.js';
import type { ReplicaGroup } from './replica-group.js';
import type { EngineSettings } from './settings.js';
import { behindByRevision, decideVolumeSize, salvage } from './start-rules.js';

export interface StartRequest {
  readonly addresses: readonly string[];
  readonly sizeBytes: number;
  readonly currentSizeBytes: number;
}

interface Connected {
  readonly address: string;
  readonly port: ReplicaPort;
  readonly info: ReplicaInfo;
}

interface Rejected {
  readonly address: string;
  readonly error: StorageError;
}

/** Adds the replicas to the group and returns the volume's size. @throws NO_BACKEND, INVALID_ARGUMENT. */
export async function startReplicas(
  group: ReplicaGroup,
  settings: EngineSettings,
  request: StartRequest,
  log: Logger,
): Promise<number> {
  checkDuplicates(request.addresses);
  const connected: Connected[] = [];
  const rejected: Rejected[] = [];
  const isOnly = request.addresses.length === 1;
  await Promise.all(
    request.addresses.map(async (address) => {
      try {
        connected.push(await connectOne(group, settings, address, request, isOnly));
      } catch (error) {
        rejected.push({ address, error: toStorageError(error) });
      }
    }),
  );
  // In the order they were given, whichever answered first.
  connected.sort(
    (a, b) => request.addresses.indexOf(a.address) - request.addresses.indexOf(b.address),
  );
  const sizes = connected.map((replica) => replica.port.sizeBytes);
  const volumeBytes = decideVolumeSize(request.sizeBytes, request.currentSizeBytes, sizes);
  const trusted = selectTrusted(connected, rejected, settings, volumeBytes);
  for (const { port } of connected.filter((replica) => !trusted.includes(replica))) {
    group.closePort(port);
  }
  for (const { address, error } of rejected)
    log.error('replica.rejected', { replica: address, error });
  if (trusted.length === 0) throw noBackend(request.addresses, rejected);
  for (const address of request.addresses) {
    const port = trusted.find((replica) => replica.address === address)?.port ?? null;
    const member = group.add(address, port === null ? 'ERR' : 'RW', port);
    member.failure = rejected.find((replica) => replica.address === address)?.error ?? null;
  }
  return volumeBytes;
}

function checkDuplicates(addresses: readonly string[]): void {
  const duplicate = addresses.find((address, index) => addresses.indexOf(address) !== index);
  if (duplicate === undefined) return;
  const text = `invalid ReplicaAddress: duplicate replica addresses ${duplicate}`;
  throw new StorageError('INVALID_ARGUMENT', text);
}

async function connectOne(
  group: ReplicaGroup,
  settings: EngineSettings,
  address: string,
  request: StartRequest,
  isOnly: boolean,
): Promise<Connected> {
  const port = await group.connect(address, settings.isUpgrade, request.currentSizeBytes);
  try {
    let info = await port.control.get();
    if (isOnly && info.rebuilding) {
      await port.control.setRebuilding(false);
      info = await port.control.get();
    }
    if (info.state !== 'open' && info.state !== 'dirty') {
      throw new StorageError('INVALID_STATE', `invalid state ${info.state} for replica ${address}`);
    }
    if (info.unmapMarkDiskChainRemoved !== settings.unmapMarkSnapChainRemoved) {
      await port.control.setUnmapMarkDiskChainRemoved(settings.unmapMarkSnapChainRemoved);
    }
    return { address, port, info };
  } catch (error) {
    group.closePort(port);
    throw error;
  }
}

function selectTrusted(
  connected: readonly Connected[],
  rejected: Rejected[],
  settings: EngineSettings,
  volumeBytes: number,
): Connected[] {
  const sectorBytes = connected[0]?.info.sectorSize;
  let candidates = connected.filter((replica) => {
    const { info, port } = replica;
    const fits = port.sizeBytes === volumeBytes && info.sectorSize === sectorBytes;
    if (!fits)
      reject(rejected, replica, `its size ${info.size} is not the volume's ${volumeBytes}`);
    return fits;
  });
  if (settings.isUpgrade) return candidates;
  const counterDisabled = settings.revisionCounterDisabled;
  const behind = behindByRevision(candidates, counterDisabled);
  candidates = candidates.filter((replica) => {
    if (!behind.includes(replica.address)) return true;
    reject(rejected, replica, 'its revision counter is behind or kept differently');
    return false;
  });
  if (!counterDisabled || !settings.salvageRequested) return candidates;
  const chosen = salvage(candidates);
  for (const replica of candidates) {
    if (replica.address !== chosen?.address) reject(rejected, replica, 'salvage chose another');
  }
  return candidates.filter((replica) => replica.address === chosen?.address);
}

function reject(rejected: Rejected[], replica: Connected, reason: string): void {
  const { address } = replica;
  const text = `replica ${address} is not used: ${reason}`;
  rejected.push({ address, error: new StorageError('INVALID_STATE', text) });
}

function noBackend(addresses: readonly string[], rejected: readonly Rejected[]): StorageError {
  const unreachable = rejected.some(({ error }) =>
    ['CONNECTION_REFUSED', 'CONNECTION_LOST'].includes(error.code),
  );
  const why = unreachable ? 'service unavailable' : 'replica error';
  const text = `no available backend due to ${why} from the addresses [${addresses.join(' ')}]`;
  const reasons = rejected.map(({ address, error }) => `${address}: ${error.message}`);
  return new StorageError('NO_BACKEND', text, { unreachable, reasons });
}

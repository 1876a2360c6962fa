// What the snapshot and hash commands do.

import type { Command } from 'commander';
import { Connections } from '../client/connections.js';
import { cloneSnapshot, cloneStatuses } from '../client/snapshot-clone.js';
import { checkSnapshot } from '../client/snapshot-check.js';
import { cancelHash, hashSnapshot, hashStatuses } from '../client/snapshot-hash.js';
import {
  markSnapshotsRemoved,
  purgeSnapshots,
  purgeStatuses,
  type SnapshotInfo,
  snapshotInfos,
  snapshotNames,
} from '../client/snapshots.js';
import { realClock } from '../core/clock-real.js';
import { StorageError } from '../core/errors.js';
import { withEngine } from './engine-session.js';
import type { OutputFormat } from './flag-values.js';
import { parseLabels } from './labels.js';
import { type Column, jsonText, listingText, print } from './output.js';

interface CreateFlags {
  readonly label: string[];
  readonly freezeFs: boolean;
}

export function create(name: string, flags: CreateFlags, command: Command): Promise<void> {
  let labels: Record<string, string>;
  try {
    labels = parseLabels(flags.label);
  } catch (error) {
    if (!(error instanceof StorageError)) throw error;
    command.error(error.message);
  }
  return withEngine(command, async (connections) => {
    const what = name === '' ? 'a snapshot' : `snapshot ${name}`;
    const reply = await connections.onEngine(`create ${what} for volume`, (engine) =>
      engine.volumeSnapshot({ name, labels, freezeFilesystem: flags.freezeFs }),
    );
    print(reply.name);
  });
}

export function revert(name: string, command: Command): Promise<void> {
  return withEngine(command, async (connections) => {
    await connections.onEngine(`revert to snapshot ${name} for volume`, (engine) =>
      engine.volumeRevert({ name }),
    );
  });
}

export async function remove(names: string[], command: Command): Promise<void> {
  if (names.length === 0) return;
  await withEngine(command, (connections) => markSnapshotsRemoved(connections, names));
}

const COLUMNS: readonly Column<SnapshotInfo>[] = [
  { title: 'ID', text: ({ name }) => name },
  { title: 'PARENT', text: ({ parent }) => (parent === '' ? '-' : parent), isWide: true },
  { title: 'CREATED', text: ({ created }) => created, isWide: true },
  { title: 'BYTES', text: ({ size }) => size, isWide: true },
  { title: 'BY', text: ({ usercreated }) => (usercreated ? 'user' : 'system'), isWide: true },
  {
    title: 'LABELS',
    text: ({ labels }) =>
      Object.entries(labels)
        .map(([key, value]) => `${key}=${value}`)
        .join(','),
    isWide: true,
  },
];

export function list(format: OutputFormat, command: Command): Promise<void> {
  return withEngine(command, async (connections) => {
    const names = await snapshotNames(connections);
    const infos = format === 'table' ? null : await snapshotInfos(connections);
    const rows = names.map((name) => infos?.[name] ?? unknownSnapshot(name));
    print(listingText(format, rows, COLUMNS, (row) => row));
  });
}

/** A row of which only the name is needed, or known. */
function unknownSnapshot(name: string): SnapshotInfo {
  return {
    name,
    parent: '',
    children: {},
    removed: false,
    usercreated: false,
    created: '',
    size: '',
    labels: {},
  };
}

export function info(command: Command): Promise<void> {
  return withEngine(command, async (connections) =>
    print(jsonText(await snapshotInfos(connections))),
  );
}

export function purge(skipIfInProgress: boolean, command: Command): Promise<void> {
  return withEngine(command, (connections) => purgeSnapshots(connections, skipIfInProgress));
}

export function purgeStatus(command: Command): Promise<void> {
  return withEngine(command, async (connections) =>
    print(jsonText(await purgeStatuses(connections))),
  );
}

interface CloneFlags {
  readonly snapshotName: string;
  readonly fromControllerAddress: string;
  readonly fromVolumeName: string;
  readonly fromControllerInstanceName: string;
  readonly exportBackingImageIfExist: boolean;
  readonly fileSyncHttpClientTimeout: number;
  readonly grpcTimeoutSeconds: number;
}

export function clone(flags: CloneFlags, command: Command): Promise<void> {
  return withEngine(command, async (connections) => {
    const source = new Connections({
      clock: realClock,
      engineAddress: flags.fromControllerAddress,
      volumeName: flags.fromVolumeName,
      engineInstanceName: flags.fromControllerInstanceName,
    });
    try {
      await cloneSnapshot(connections, source, {
        snapshotName: flags.snapshotName,
        exportBackingImage: flags.exportBackingImageIfExist,
        httpTimeoutSeconds: flags.fileSyncHttpClientTimeout,
        deadlineSeconds: flags.grpcTimeoutSeconds,
      });
    } finally {
      source.close();
    }
  });
}

export function cloneStatus(command: Command): Promise<void> {
  return withEngine(command, async (connections) =>
    print(jsonText(await cloneStatuses(connections))),
  );
}

export function hash(name: string, rehash: boolean, command: Command): Promise<void> {
  return withEngine(command, (connections) => hashSnapshot(connections, name, rehash));
}

export function hashCancel(name: string, command: Command): Promise<void> {
  return withEngine(command, (connections) => cancelHash(connections, name));
}

export function hashStatus(name: string, command: Command): Promise<void> {
  return withEngine(command, async (connections) =>
    print(jsonText(await hashStatuses(connections, name))),
  );
}

export function check(name: string, command: Command): Promise<void> {
  return withEngine(command, async (connections) => {
    const results = await checkSnapshot(connections, name);
    print(jsonText(results));
    const withVerdict = (wanted: string): string[] =>
      Object.entries(results).flatMap(([address, { verdict }]) =>
        verdict === wanted ? [address] : [],
      );
    const [corrupted, undecided, unknown] = ['corrupted', 'undecided', 'unknown'].map(withVerdict);
    if (corrupted?.length) {
      const text = `snapshot ${name} was corrupted on ${corrupted.join(' ')}, now ERR`;
      throw new StorageError('CHECKSUM_MISMATCH', text);
    }
    if (undecided?.length) {
      const where = undecided.join(' ');
      const text = `snapshot ${name} is corrupted, and no copy is known to be good (${where}); none was taken out`;
      throw new StorageError('CHECKSUM_MISMATCH', text);
    }
    if (unknown?.length) {
      const text = `snapshot ${name} could not be hashed on ${unknown.join(' ')}`;
      throw new StorageError('PEER_ERROR', text);
    }
  });
}

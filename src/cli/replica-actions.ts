// What the replica commands do, except add-replica.

import type { Command } from 'commander';
import { rebuildStatuses } from '../client/rebuild-status.js';
import {
  type DescribedReplica,
  describeReplicas,
  removeReplica,
  startVolume,
  updateReplica,
  verifyRebuild,
} from '../client/replicas.js';
import { withEngine } from './engine-session.js';
import type { OutputFormat } from './flag-values.js';
import { type Column, jsonText, listingText, print } from './output.js';

interface StartFlags {
  readonly size: number;
  readonly currentSize: number;
}

export function start(addresses: string[], flags: StartFlags, command: Command): Promise<void> {
  const { size, currentSize } = flags;
  return withEngine(command, (connections) =>
    startVolume(connections, { addresses, sizeBytes: size, currentSizeBytes: currentSize }),
  );
}

export function rebuildStatus(command: Command): Promise<void> {
  return withEngine(command, async (connections) =>
    print(jsonText(await rebuildStatuses(connections))),
  );
}

export function verify(address: string, command: Command): Promise<void> {
  return withEngine(command, (connections) => verifyRebuild(connections, address));
}

/** As Go prints a list of strings; nothing for a replica that was not asked. */
function chainText({ info }: DescribedReplica): string {
  return info === null ? '' : `[${info.chain.join(' ')}]`;
}

const COLUMNS: readonly Column<DescribedReplica>[] = [
  { title: 'ADDRESS', text: ({ address }) => address },
  { title: 'MODE', text: ({ mode }) => mode },
  { title: 'STATE', text: ({ info }) => info?.state ?? '-', isWide: true },
  { title: 'SIZE', text: ({ info }) => info?.size ?? '-', isWide: true },
  { title: 'HEAD-BYTES', text: ({ info }) => String(info?.headFileSize ?? '-'), isWide: true },
  { title: 'SNAPSHOTS', text: ({ info }) => String(info?.snapshotCountUsage ?? '-'), isWide: true },
  {
    title: 'SNAPSHOT-BYTES',
    text: ({ info }) => String(info?.snapshotSizeUsage ?? '-'),
    isWide: true,
  },
  { title: 'REVISION', text: ({ info }) => String(info?.revisionCounter ?? '-'), isWide: true },
  { title: 'CHAIN', text: chainText },
];

function replicaData(replica: DescribedReplica): unknown {
  const { address, mode, info } = replica;
  if (info === null) return { address, mode };
  return {
    address,
    mode,
    state: info.state,
    size: info.size,
    dirty: info.dirty,
    rebuilding: info.rebuilding,
    head: info.head,
    headBytes: info.headFileSize,
    snapshotCount: info.snapshotCountUsage,
    snapshotBytes: info.snapshotSizeUsage,
    revisionCounter: info.revisionCounterDisabled ? null : info.revisionCounter,
    chain: info.chain,
  };
}

export function list(format: OutputFormat, command: Command): Promise<void> {
  return withEngine(command, async (connections) => {
    const replicas = await describeReplicas(connections);
    print(listingText(format, replicas, COLUMNS, replicaData));
  });
}

export function remove(address: string, command: Command): Promise<void> {
  return withEngine(command, (connections) => removeReplica(connections, address));
}

/** @param mode Longhorn's client names RO too, which no engine accepts. */
export function update(address: string, mode: string, command: Command): Promise<void> {
  if (mode !== 'RW' && mode !== 'ERR') {
    command.error(`unsupported replica mode: ${mode}; it can be RW or ERR`);
  }
  return withEngine(command, (connections) => updateReplica(connections, address, mode));
}

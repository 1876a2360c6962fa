// The fork of a returning replica (docs/adr/0007-roster.md): before it joins again, its old head becomes
// the layer of the snapshot that the others cut when it left. It must never be cut on a replica whose
// content may have gone another way since: then everything is compared instead.

import type { DiskInfo, Replica as ReplicaInfo } from '../api/generated/replica.js';
import { RETURNED_LABEL } from '../core/roster.js';
import type { Connections, ReplicaApi } from './connections.js';
import { getReplica, listReplicas } from './replicas.js';

/** What a member says of the fork. */
export interface Fork {
  readonly diskName: string;
  /** Of the member's disk. */
  readonly disk: DiskInfo;
  /** Disk below it when it was cut. */
  readonly parent: string;
  /** False when the replica did not take part in the same history until then. */
  readonly isTrusted: boolean;
}

/** Null when no member knows when the replica left. */
export async function forkOf(connections: Connections, replica: ReplicaInfo): Promise<Fork | null> {
  const { replicaId, roster, rosterVoid } = replica;
  if (replicaId === '') return null;
  for (const { address, mode } of await listReplicas(connections)) {
    if (mode !== 'RW') continue;
    // A member that cannot be asked, or is Longhorn's, cannot testify.
    const member = await getReplica(connections, address).catch(() => null);
    const known = await connections
      .replica(address)
      .absenceGet({ replicaId })
      .catch(() => null);
    const diskName = known?.absent?.forkDisk ?? '';
    const disk = member?.disks[diskName];
    const parent = known?.unchangedDisks[diskName];
    if (member === null || disk === undefined || parent === undefined) continue;
    // Whoever ran it without this member has told it so.
    const isTrusted = roster?.members.includes(member.replicaId) === true && !rosterVoid;
    return { diskName, disk, parent, isTrusted };
  }
  return null;
}

/** Leaves the open replica with the fork cut, or with none that could be taken for its old head. */
export async function standOnFork(
  api: ReplicaApi,
  opened: ReplicaInfo,
  fork: Fork | null,
): Promise<void> {
  if (fork === null) return;
  const { diskName, disk } = fork;
  const existing = opened.disks[diskName];
  if (existing !== undefined) {
    const isClaimed = existing.labels[RETURNED_LABEL] !== undefined;
    if (isClaimed && !fork.isTrusted) await api.diskRemove({ name: diskName, force: true });
    return;
  }
  // A head above another disk was begun when it joined before: then it is not what it held at the fork.
  const headParent = opened.disks[opened.head]?.parent ?? opened.parent;
  if (!fork.isTrusted || headParent !== fork.parent) return;
  await api.replicaSnapshot({
    name: diskName.replace(/^volume-snap-(.*)\.img$/, '$1'),
    userCreated: disk.userCreated,
    created: disk.created,
    labels: { ...disk.labels, [RETURNED_LABEL]: 'true' },
    isBrief: false,
  });
}

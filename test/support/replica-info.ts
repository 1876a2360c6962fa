// What a replica says of itself, as a message, for tests that need only a few of its fields.

import type { Replica } from '../../src/api/generated/replica.js';

/** A closed replica without disks, but for the given fields. */
export function replicaInfo(fields: Partial<Replica>): Replica {
  return {
    dirty: false,
    rebuilding: false,
    head: 'volume-head-000.img',
    parent: '',
    size: '0',
    sectorSize: 512,
    backingFile: '',
    state: 'closed',
    chain: [],
    disks: {},
    remainSnapshots: 0,
    revisionCounter: 0,
    lastModifyTime: '0',
    headFileSize: 0,
    revisionCounterDisabled: false,
    unmapMarkDiskChainRemoved: false,
    snapshotCountUsage: 0,
    snapshotSizeUsage: 0,
    snapshotCountTotal: 0,
    capabilities: [],
    hostBootId: '',
    localDataPath: '',
    replicaId: '',
    engineGeneration: 0,
    roster: undefined,
    rosterVoid: false,
    lacksUnflushed: false,
    ...fields,
  };
}

// What a returning replica needs, rule by rule: each case changes one thing of a replica that left and
// came back, and says which files are copied, in which ranges.

import t from 'tap';
import type { ReplicaInfo, WriteIntents } from '../../src/engine/ports.js';
import { filesToSync, missedRanges, type Return } from '../../src/engine/resync.js';
import { type AbsentReplica, RETURNED_LABEL } from '../../src/core/roster.js';
import { replicaInfo } from '../support/replica-info.js';

const KIB = 1024;
const FORK = 'volume-snap-fork.img';
const OLD = 'volume-snap-old.img';
const BASE = 'volume-snap-base.img';
const SIDE = 'volume-snap-side.img';
const NEW = 'volume-snap-new.img';
const MISSED = [{ beginOffset: 4 * KIB, endOffset: 12 * KIB }];

interface DiskChange {
  readonly parent?: string;
  readonly removed?: boolean;
  readonly size?: string;
  readonly labels?: Record<string, string>;
}

/** base ← old ← fork, and side beside them on base; the members have new above the fork. */
function chain(isMember: boolean, changes: Readonly<Record<string, DiskChange>>): ReplicaInfo {
  const labels: Record<string, string> = isMember ? {} : { [RETURNED_LABEL]: 'true' };
  const parents: [string, string, Record<string, string>][] = [
    [BASE, '', {}],
    [SIDE, BASE, {}],
    [OLD, BASE, {}],
    [FORK, OLD, labels],
    ...(isMember ? [[NEW, FORK, {}] as [string, string, Record<string, string>]] : []),
  ];
  const disks = Object.fromEntries(
    parents.map(([name, parent, ownLabels]) => [
      name,
      {
        name,
        parent,
        children: {},
        removed: false,
        userCreated: true,
        created: '',
        size: '65536',
        labels: ownLabels,
        ...changes[name],
      },
    ]),
  );
  const head = { ...disks[FORK], name: 'volume-head-003.img', parent: isMember ? NEW : FORK };
  return replicaInfo({
    head: head.name,
    backingFile: 'backing.img',
    disks: {
      ...disks,
      [head.name]: head as ReplicaInfo['disks'][string],
      'backing.img': head as ReplicaInfo['disks'][string],
    },
    capabilities: ['ranges'],
  });
}

function absent(fields: Partial<AbsentReplica> = {}): AbsentReplica {
  return {
    replicaId: 'away',
    forkDisk: FORK,
    inFlight: [{ beginOffset: 0, endOffset: 4 * KIB }],
    unflushed: [{ beginOffset: 4 * KIB, endOffset: 8 * KIB }],
    hostBootId: 'boot-1',
    isExact: true,
    memberCountBefore: 2,
    ...fields,
  };
}

const UNCHANGED = { [BASE]: '', [SIDE]: BASE, [OLD]: BASE, [FORK]: OLD };

interface FileCase {
  readonly what: string;
  readonly source?: Readonly<Record<string, DiskChange>>;
  readonly target?: Readonly<Record<string, DiskChange>>;
  readonly targetFields?: Partial<ReplicaInfo>;
  readonly unchanged?: Readonly<Record<string, string>>;
  readonly ranges?: Return['ranges'];
  readonly isUnknown?: boolean;
  /** Data that is copied: whole, or the missed ranges. New is always whole. */
  readonly copied: Readonly<Record<string, 'whole' | 'ranges'>>;
}

const EVERYTHING = { [BASE]: 'whole', [SIDE]: 'whole', [OLD]: 'whole', [FORK]: 'whole' } as const;
const FORK_ONLY = { [FORK]: 'ranges' } as const;

const FILE_CASES: readonly FileCase[] = [
  { what: 'it left and came back', copied: FORK_ONLY },
  { what: 'it missed nothing below the fork', ranges: [], copied: {} },
  { what: 'nobody knows when it left', isUnknown: true, copied: EVERYTHING },
  {
    what: 'its sync agent copies whole files only',
    targetFields: { capabilities: [] },
    copied: EVERYTHING,
  },
  {
    what: 'it did not cut the fork itself',
    target: { [FORK]: { labels: {} } },
    copied: EVERYTHING,
  },
  {
    what: 'its fork is above another disk than the members recorded',
    unchanged: { ...UNCHANGED, [FORK]: BASE },
    copied: EVERYTHING,
  },
  {
    what: 'the members changed the fork since',
    unchanged: { [BASE]: '', [SIDE]: BASE, [OLD]: BASE },
    copied: EVERYTHING,
  },
  {
    what: 'the members have the disk below the fork above another one',
    source: { [OLD]: { parent: SIDE } },
    copied: EVERYTHING,
  },
  {
    what: 'it has the disk below the fork above another one',
    target: { [OLD]: { parent: SIDE } },
    copied: EVERYTHING,
  },
  {
    what: 'the members changed a disk since the fork',
    unchanged: { [SIDE]: BASE, [OLD]: BASE, [FORK]: OLD },
    copied: { ...FORK_ONLY, [BASE]: 'whole' },
  },
  {
    what: 'the members moved a disk beside the fork',
    source: { [SIDE]: { parent: OLD } },
    copied: { ...FORK_ONLY, [SIDE]: 'whole' },
  },
  {
    what: 'it has a disk beside the fork elsewhere',
    target: { [SIDE]: { parent: OLD } },
    copied: { ...FORK_ONLY, [SIDE]: 'whole' },
  },
  {
    what: 'both have it elsewhere than at the fork',
    source: { [SIDE]: { parent: OLD } },
    target: { [SIDE]: { parent: OLD } },
    copied: { ...FORK_ONLY, [SIDE]: 'whole' },
  },
  {
    what: 'one of them has begun to purge',
    target: { [BASE]: { size: '4096' } },
    copied: { ...FORK_ONLY, [BASE]: 'whole' },
  },
  {
    what: 'the fork may differ in size: it is what differs',
    target: { [FORK]: { size: '4096' } },
    copied: FORK_ONLY,
  },
  {
    what: 'a removed disk below the fork was trimmed through',
    source: { [OLD]: { removed: true } },
    copied: { ...FORK_ONLY, [OLD]: 'ranges' },
  },
  {
    what: 'it removed the disk below the fork',
    target: { [OLD]: { removed: true } },
    copied: { ...FORK_ONLY, [OLD]: 'ranges' },
  },
  {
    what: 'trims do not reach a removed disk beside the fork',
    source: { [SIDE]: { removed: true } },
    copied: FORK_ONLY,
  },
];

t.test('files that a joining replica needs', async (t) => {
  for (const item of FILE_CASES) {
    const source = chain(true, item.source ?? {});
    const target = { ...chain(false, item.target ?? {}), ...item.targetFields };
    const absence = { absent: absent(), unchangedDisks: item.unchanged ?? UNCHANGED };
    const returned = item.isUnknown ? null : { absence, ranges: item.ranges ?? MISSED };
    const files = filesToSync(source, target, returned);
    const isMeta = ({ fromFileName }: { fromFileName: string }): boolean =>
      fromFileName.endsWith('.meta');
    const data = files.filter((file) => !isMeta(file));
    const found = data.map(({ fromFileName, ranges }) => [
      fromFileName,
      ranges.length === 0 ? 'whole' : 'ranges',
    ]);
    t.same(Object.fromEntries(found), { ...item.copied, [NEW]: 'whole' }, item.what);
    for (const file of data) {
      const isWhole = file.ranges.length === 0;
      t.same(file.ranges, isWhole ? [] : MISSED, `${item.what}: ranges`);
      t.equal(file.actualSize, isWhole ? 64 * KIB : 8 * KIB, `${item.what}: bytes`);
    }
    const records = [BASE, SIDE, OLD, FORK, NEW].map((name) => `${name}.meta`);
    const names = files.filter(isMeta).map(({ fromFileName }) => fromFileName);
    t.same(names, records, `${item.what}: every record, without head and backing image`);
    t.ok(files.every(({ fromFileName, toFileName }) => fromFileName === toFileName));
  }
});

t.test('a disk that the returning replica lacks is copied whole', async (t) => {
  const source = chain(true, {});
  const target = chain(false, {});
  delete target.disks[SIDE];
  const absence = { absent: absent(), unchangedDisks: UNCHANGED };
  const files = filesToSync(source, target, { absence, ranges: MISSED });
  const side = files.find(({ fromFileName }) => fromFileName === SIDE);
  t.same(side, { fromFileName: SIDE, toFileName: SIDE, actualSize: 64 * KIB, ranges: [] });
});

t.test('ranges that a returning replica may lack', async (t) => {
  const intents: WriteIntents = [{ beginOffset: 64 * KIB, endOffset: 128 * KIB }];
  const inFlight = { beginOffset: 0, endOffset: 4 * KIB };
  const both = { beginOffset: 0, endOffset: 8 * KIB };
  const cases: [string, AbsentReplica, string, WriteIntents, readonly object[] | null][] = [
    ['the same kernel kept what was not flushed', absent(), 'boot-1', [], [inFlight]],
    ['another kernel: what was not flushed may be lost', absent(), 'boot-2', [], [both]],
    ['an unknown kernel now', absent(), '', [], [both]],
    ['unknown kernels are not the same', absent({ hostBootId: '' }), '', [], [both]],
    ['watched: its own intents do not matter', absent(), 'boot-1', intents, [inFlight]],
    ['watched: nor that it has none', absent(), 'boot-1', null, [inFlight]],
    [
      'unwatched: what only it wrote counts too',
      absent({ isExact: false }),
      'boot-1',
      intents,
      [inFlight, ...intents],
    ],
    [
      'unwatched, on another kernel',
      absent({ isExact: false }),
      'boot-2',
      intents,
      [both, ...intents],
    ],
    ['unwatched, without intents: anything', absent({ isExact: false }), 'boot-1', null, null],
  ];
  for (const [what, entry, bootId, own, expected] of cases) {
    t.same(missedRanges(entry, bootId, own), expected, what);
  }
});

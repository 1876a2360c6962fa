// Power is cut after every changing file-system call of every operation (promise P7). Whatever the
// disk kept of the un-synced calls, the directory opens again, no flushed data is lost, leftovers
// are gone, and the chain goes on working.

import t from 'tap';

import { BLOCK_OP } from '../../src/core/block-device.js';
import { SECTOR_BYTES } from '../../src/core/units.js';
import { ImageChain } from '../../src/image/chain.js';
import {
  chainDefaults,
  control,
  CREATED,
  memoryDisk,
  openChain,
  purge,
  readAll,
  sectorBytes,
  sectorsOf,
  snapshot,
  writeBytes,
} from '../support/image-chains.js';
import {
  EVERYTHING_SURVIVES,
  NOTHING_SURVIVES,
  type MemoryDisk,
  type Survivors,
} from '../support/memory-disk.js';

const SECTORS = 8;
const DIRECTORY = '/volume';

const SURVIVORS: Record<string, Survivors> = {
  nothing: NOTHING_SURVIVES,
  everything: EVERYTHING_SURVIVES,
  'only data': { page: () => true, directoryChanges: () => 0 },
  'only names': { page: () => false, directoryChanges: (_path, count) => count },
  'half of each': {
    page: (_path, index) => index % 2 === 0,
    directoryChanges: (_path, count) => Math.floor(count / 2),
  },
  'room for data without the data': {
    page: () => false,
    directoryChanges: (_path, count) => count,
    eighths: () => 1,
  },
  'only room for data': { page: () => false, directoryChanges: () => 0, eighths: () => 1 },
  'all but the last name': {
    page: (_path, index) => index % 2 === 1,
    directoryChanges: (_path, count) => Math.max(0, count - 1),
  },
};

/**
 * s1 (1 1 1 1 . . . .) ← s2 (. 2 2 . 2 . . .) ← s3 (. . 3 . . 3 . .) ← head (4 . . . . . 4 .)
 * with side branch s2 ← b1 (. . . . . . . 9).
 */
async function build(): Promise<{ disk: MemoryDisk; chain: ImageChain }> {
  const disk = memoryDisk();
  const sizeBytes = SECTORS * SECTOR_BYTES;
  await ImageChain.create(disk, DIRECTORY, { sizeBytes, ...chainDefaults });
  const chain = await openChain(disk, DIRECTORY);
  await writeBytes(disk, chain, 0, sectorsOf(1, 4));
  await snapshot(chain, 's1');
  await writeBytes(disk, chain, SECTOR_BYTES, sectorsOf(2, 2));
  await writeBytes(disk, chain, 4 * SECTOR_BYTES, sectorsOf(2));
  await snapshot(chain, 's2');
  await writeBytes(disk, chain, 7 * SECTOR_BYTES, sectorsOf(9));
  await snapshot(chain, 'b1');
  await chain.revert('s2', CREATED);
  await writeBytes(disk, chain, 2 * SECTOR_BYTES, sectorsOf(3));
  await writeBytes(disk, chain, 5 * SECTOR_BYTES, sectorsOf(3));
  await snapshot(chain, 's3');
  await writeBytes(disk, chain, 0, sectorsOf(4));
  await writeBytes(disk, chain, 6 * SECTOR_BYTES, sectorsOf(4));
  await control(chain, BLOCK_OP.flush);
  return { disk, chain };
}

const HEAD = [4, 2, 3, 1, 2, 3, 4, 0];
const AT: Record<string, number[]> = {
  s1: [1, 1, 1, 1, 0, 0, 0, 0],
  s2: [1, 2, 2, 1, 2, 0, 0, 0],
  b1: [1, 2, 2, 1, 2, 0, 0, 9],
  s3: [1, 2, 3, 1, 2, 3, 0, 0],
};

interface Scenario {
  readonly name: string;
  /** Before the cut; its effects are durable. */
  readonly prepare?: (chain: ImageChain, disk: MemoryDisk) => Promise<unknown>;
  readonly run: (chain: ImageChain, disk: MemoryDisk) => Promise<unknown>;
  /** Contents of the head that are right when the operation was cut; the first is the old one. */
  readonly heads?: readonly number[][];
  /** Un-flushed trims: each sector reads as in the first or in the second of heads. */
  readonly isMixed?: boolean;
  /** Contents of the head that are right once the operation was acknowledged. */
  readonly headAfter?: number[];
  /** A snapshot that is there, and reads as the head did before, once the operation was acknowledged. */
  readonly makes?: string;
  /** Snapshots that may be gone or changed. */
  readonly losable?: readonly string[];
}

const UNDER_S4 = [4, 5, 5, 5, 5, 3, 4, 0];
const TRIMMED = [0, 2, 0, 0, 2, 3, 4, 0];

const SCENARIOS: readonly Scenario[] = [
  { name: 'snapshot', run: (chain) => snapshotAndTidy(chain, 'new'), makes: 'new' },
  { name: 'preparing a snapshot', run: (chain) => prepareNew(chain) },
  {
    name: 'taking a prepared snapshot',
    prepare: prepareNew,
    run: (chain) => snapshotAndTidy(chain, 'new'),
    makes: 'new',
  },
  {
    name: 'preparing and taking a snapshot',
    run: async (chain) => {
      await prepareNew(chain);
      await snapshotAndTidy(chain, 'new');
    },
    makes: 'new',
  },
  {
    name: 'another snapshot than the prepared one',
    prepare: prepareNew,
    run: (chain) => snapshotAndTidy(chain, 'other'),
    makes: 'other',
  },
  {
    name: 'revert after a snapshot was prepared',
    prepare: prepareNew,
    run: (chain) => chain.revert('s1', CREATED),
    heads: [HEAD, AT['s1'] as number[]],
    headAfter: AT['s1'] as number[],
  },
  {
    name: 'close after a snapshot was prepared',
    prepare: prepareNew,
    run: (chain) => chain.close(),
  },
  {
    name: 'expand',
    run: (chain) => chain.expand(16 * SECTOR_BYTES),
  },
  {
    name: 'revert',
    run: (chain) => chain.revert('s1', CREATED),
    heads: [HEAD, AT['s1'] as number[]],
    headAfter: AT['s1'] as number[],
  },
  {
    name: 'revert to a side branch without children',
    run: (chain) => chain.revert('b1', CREATED),
    heads: [HEAD, AT['b1'] as number[]],
    headAfter: AT['b1'] as number[],
  },
  { name: 'mark removed', run: (chain) => chain.markRemoved('s3') },
  {
    name: 'removal of a side branch',
    run: (chain) => chain.removeDisk('b1', false),
    losable: ['b1'],
  },
  {
    name: 'purge of the oldest snapshot into its child',
    prepare: (chain) => chain.removeDisk('b1', false),
    run: (chain) => purge(chain, 's1'),
    losable: ['s1', 'b1'],
  },
  {
    name: 'purge of a snapshot in the middle',
    prepare: (chain) => chain.removeDisk('b1', false),
    run: (chain) => purge(chain, 's2'),
    losable: ['s2', 'b1'],
  },
  {
    name: 'purge of a snapshot into a larger child, which hides a part of it',
    prepare: async (chain, disk) => {
      await chain.removeDisk('b1', false);
      await writeBytes(disk, chain, SECTOR_BYTES, sectorsOf(5, 4));
      await snapshot(chain, 's4');
    },
    run: (chain) => purge(chain, 's3'),
    heads: [UNDER_S4],
    headAfter: UNDER_S4,
    losable: ['s3', 'b1'],
  },
  {
    name: 'purge of a snapshot into a child that is larger in both senses',
    prepare: async (chain, disk) => {
      await chain.removeDisk('b1', false);
      await chain.expand(16 * SECTOR_BYTES);
      await writeBytes(disk, chain, SECTOR_BYTES, sectorsOf(5, 4));
      await snapshot(chain, 's4');
    },
    run: (chain) => purge(chain, `expand-${16 * SECTOR_BYTES}`),
    heads: [UNDER_S4],
    headAfter: UNDER_S4,
    losable: ['b1'],
  },
  {
    name: 'purge of the oldest snapshot, which is smaller than its child',
    prepare: async (chain, disk) => {
      await chain.removeDisk('b1', false);
      await purge(chain, 's2');
      await writeBytes(disk, chain, 2 * SECTOR_BYTES, sectorsOf(5, 6));
      await snapshot(chain, 's4');
      await purge(chain, 's3');
      await writeBytes(disk, chain, 0, sectorsOf(6));
    },
    run: (chain) => purge(chain, 's1'),
    heads: [[6, 2, 5, 5, 5, 5, 5, 5]],
    headAfter: [6, 2, 5, 5, 5, 5, 5, 5],
    losable: ['s1', 's2', 's3', 'b1'],
  },
  {
    name: 'prune of the snapshot behind the head',
    prepare: async (chain, disk) => {
      await writeBytes(disk, chain, 2 * SECTOR_BYTES, sectorsOf(3));
    },
    run: (chain) => purge(chain, 's3'),
    losable: ['s3'],
  },
  {
    name: 'trim over older data',
    run: (chain) => trimTwice(chain),
    heads: [HEAD, TRIMMED],
    isMixed: true,
    headAfter: TRIMMED,
  },
  {
    name: 'trim that reclaims removed snapshots',
    prepare: async (chain) => {
      await chain.removeDisk('b1', false);
      chain.setUnmapMarkDiskChainRemoved(true);
    },
    run: (chain) => trimTwice(chain),
    heads: [HEAD, TRIMMED],
    isMixed: true,
    headAfter: TRIMMED,
    losable: ['s1', 's2', 's3', 'b1'],
  },
  { name: 'rebuilding flag', run: (chain) => chain.setRebuilding(true) },
  { name: 'close', run: (chain) => chain.close() },
];

function prepareNew(chain: ImageChain): Promise<void> {
  return chain.prepareSnapshot({ name: 'new', userCreated: true, created: CREATED });
}

/** A snapshot, and the removal of the old head's names, which goes on after its answer. */
async function snapshotAndTidy(chain: ImageChain, name: string): Promise<void> {
  await snapshot(chain, name);
  // Nobody is told when that fails.
  await chain.disks().catch(() => undefined);
}

/** Sectors 0, 2 and 3, then a flush. */
async function trimTwice(chain: ImageChain): Promise<void> {
  await control(chain, BLOCK_OP.unmap, 0, SECTOR_BYTES);
  await control(chain, BLOCK_OP.unmap, 2 * SECTOR_BYTES, 2 * SECTOR_BYTES);
  await control(chain, BLOCK_OP.flush);
}

for (const scenario of SCENARIOS) {
  t.test(`power cut at any call of: ${scenario.name}`, async (t) => {
    const calls = await countCalls(scenario);
    t.ok(calls > 0, `${calls} calls`);
    for (const [name, survivors] of Object.entries(SURVIVORS)) {
      for (let cut = 0; cut <= calls; cut++) {
        const problem = await cutAt(scenario, cut, survivors);
        if (problem !== null) t.fail(`cut after call ${cut}, ${name} survives: ${problem}`);
      }
      t.pass(`${calls + 1} cuts, ${name} survives`);
    }
  });
}

async function prepared(scenario: Scenario): Promise<{ disk: MemoryDisk; chain: ImageChain }> {
  const built = await build();
  await scenario.prepare?.(built.chain, built.disk);
  await control(built.chain, BLOCK_OP.flush);
  await built.disk.syncDirectory(DIRECTORY);
  await built.disk.syncDirectory('/');
  return built;
}

async function countCalls(scenario: Scenario): Promise<number> {
  const { disk, chain } = await prepared(scenario);
  const before = disk.changeCount;
  await scenario.run(chain, disk);
  return disk.changeCount - before;
}

/** null when everything is right afterwards, else what is wrong. */
async function cutAt(
  scenario: Scenario,
  cut: number,
  survivors: Survivors,
): Promise<string | null> {
  const { disk, chain } = await prepared(scenario);
  disk.crashAfter(cut);
  const isAcknowledged = await scenario.run(chain, disk).then(
    () => true,
    () => false,
  );
  disk.restart(survivors);
  try {
    return await check(scenario, disk, isAcknowledged);
  } catch (error) {
    return `${String(error)} in ${(await disk.list(DIRECTORY)).join(' ')}`;
  }
}

async function check(
  scenario: Scenario,
  disk: MemoryDisk,
  isAcknowledged: boolean,
): Promise<string | null> {
  const chain = await openChain(disk, DIRECTORY);
  const heads = isAcknowledged ? [scenario.headAfter ?? HEAD] : (scenario.heads ?? [HEAD]);
  const head = await sectorBytes(disk, chain);
  const isRight =
    scenario.isMixed === true && !isAcknowledged
      ? head.every((byte, i) => heads.some((right) => right[i] === byte))
      : heads.some((right) => startsWith(head, right));
  if (!isRight) return `the head reads ${head.join(' ')}`;
  if (isAcknowledged && scenario.makes !== undefined) {
    const made = { readOnly: true, headDiskName: scenario.makes };
    const bytes = await sectorBytes(disk, await openChain(disk, DIRECTORY, made));
    if (!startsWith(bytes, HEAD)) return `${scenario.makes} reads ${bytes.join(' ')}`;
  }
  const problem = (await checkSnapshots(scenario, disk)) ?? (await checkFiles(disk, chain));
  if (problem !== null) return problem;
  await snapshot(chain, 'after-crash');
  await writeBytes(disk, chain, 0, sectorsOf(7));
  await chain.close();
  const reopened = await openChain(disk, DIRECTORY);
  const expected = [7, ...head.slice(1)];
  const last = await sectorBytes(disk, reopened);
  return startsWith(last, expected) ? null : `later the head reads ${last.join(' ')}`;
}

function startsWith(bytes: number[], right: readonly number[]): boolean {
  return bytes.every((byte, i) => byte === (right[i] ?? 0));
}

async function checkSnapshots(scenario: Scenario, disk: MemoryDisk): Promise<string | null> {
  for (const [name, right] of Object.entries(AT)) {
    if (scenario.losable?.includes(name) === true) continue;
    const frozen = await openChain(disk, DIRECTORY, { readOnly: true, headDiskName: name });
    const bytes = await sectorBytes(disk, frozen);
    if (!startsWith(bytes, right)) return `${name} reads ${bytes.join(' ')}`;
  }
  return null;
}

/** Every file belongs to a disk of the chain: nothing is left over, nothing is missing. */
async function checkFiles(disk: MemoryDisk, chain: ImageChain): Promise<string | null> {
  const names = new Set(['volume.meta']);
  for (const { name } of await chain.disks()) names.add(name).add(`${name}.meta`);
  const found = await disk.list(DIRECTORY);
  const extra = found.filter((name) => !names.has(name));
  const missing = [...names].filter((name) => !found.includes(name));
  if (extra.length + missing.length === 0) return null;
  return `left over: ${extra.join(' ')}; missing: ${missing.join(' ')}`;
}

t.test('power cut at any call of create: nothing or a usable volume', async (t) => {
  const sizeBytes = SECTORS * SECTOR_BYTES;
  const whole = memoryDisk();
  await ImageChain.create(whole, DIRECTORY, { sizeBytes, ...chainDefaults });
  for (const [name, survivors] of Object.entries(SURVIVORS)) {
    for (let cut = 0; cut <= whole.changeCount; cut++) {
      const disk = memoryDisk();
      disk.crashAfter(cut);
      const create = (): Promise<void> =>
        ImageChain.create(disk, DIRECTORY, { sizeBytes, ...chainDefaults });
      const isAcknowledged = await create().then(
        () => true,
        () => false,
      );
      disk.restart(survivors);
      if (!isAcknowledged) await create();
      const chain = await openChain(disk, DIRECTORY);
      const content = await readAll(disk, chain);
      if (content.length !== sizeBytes || content.some((byte) => byte !== 0)) {
        t.fail(`cut after call ${cut}, ${name} survives`);
      }
    }
  }
  t.pass(`${whole.changeCount} calls`);
});

t.test(
  'power cut at any call of delete: the directory counts as empty and can be used again',
  async (t) => {
    const counted = await build();
    const before = counted.disk.changeCount;
    await counted.chain.delete();
    const calls = counted.disk.changeCount - before;
    t.strictSame(await counted.disk.list(DIRECTORY), []);
    for (let cut = 0; cut <= calls; cut++) {
      const { disk, chain } = await build();
      disk.crashAfter(cut);
      await chain.delete().catch(() => undefined);
      disk.restart(EVERYTHING_SURVIVES);
      const isThere = (await ImageChain.probe(disk, DIRECTORY)) !== null;
      if (!isThere) continue;
      const reopened = await openChain(disk, DIRECTORY);
      t.strictSame(
        await sectorBytes(disk, reopened),
        HEAD,
        `cut after call ${cut}: all or nothing`,
      );
    }
  },
);

// Single ranges of a file between two sync agents: what a delta resync moves.

import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';

import { silentLogger } from '../../src/core/log.js';
import { KIB, MIB, SECTOR_BYTES } from '../../src/core/units.js';
import { createNativeDisk, createSlab } from '../../src/disk/native-disk.js';
import { startSyncNode } from '../support/sync-node.js';
import { extentsOf, makeSparseFile, randomPart } from '../support/sync-transfer.js';

const base = mkdtempSync(join(tmpdir(), 'sync-ranges-'));
const disk = createNativeDisk({ slab: createSlab(4 * MIB), log: silentLogger });
t.teardown(async () => {
  await disk.shutdown();
  rmSync(base, { recursive: true });
});

/** A source and a target with the file `d.img`, each with data as given, and a sync of ranges. */
async function syncRanges(
  name: string,
  sizes: { readonly source: number; readonly target: number | null },
  ranges: readonly { beginOffset: number; endOffset: number }[],
): Promise<{ source: Buffer; before: Buffer; after: Buffer; received: number; path: string }> {
  const from = join(base, `${name}-source`);
  mkdirSync(from);
  const into = join(base, `${name}-target`);
  mkdirSync(into);
  const path = join(into, 'd.img');
  const parts = [randomPart(0, MIB), randomPart(2 * MIB, MIB)];
  await makeSparseFile(disk, join(from, 'd.img'), sizes.source, parts);
  let before = Buffer.alloc(0);
  if (sizes.target !== null) {
    await makeSparseFile(disk, path, sizes.target, [randomPart(0, 3 * MIB)]);
    before = readFileSync(path);
  }
  const source = await startSyncNode(disk, from);
  const target = await startSyncNode(disk, into);
  await target.client.filesSync({
    fromAddress: source.address,
    toHost: '127.0.0.1',
    syncFileInfoList: [
      { fromFileName: 'd.img', toFileName: 'd.img', actualSize: 1, ranges: [...ranges] },
    ],
    fastSync: true,
    fileSyncHttpClientTimeout: 5,
    grpcTimeoutSeconds: 0,
    bytesPerSecondMax: 0,
    localSync: undefined,
    fromAddressMap: {},
  });
  const { receivedBytes } = await target.client.replicaRebuildStatus({});
  await Promise.all([source.end(), target.end()]);
  const content = readFileSync(join(from, 'd.img'));
  return { source: content, before, after: readFileSync(path), received: receivedBytes, path };
}

t.test('only the ranges of a file are made equal, holes included', async (t) => {
  const ranges = [
    { beginOffset: 64 * KIB + 100, endOffset: 64 * KIB + 5000 },
    { beginOffset: MIB - 8 * KIB, endOffset: MIB + 256 * KIB },
  ];
  const sizes = { source: 4 * MIB, target: 4 * MIB };
  const { source, before, after, received, path } = await syncRanges('ranges', sizes, ranges);
  const expected = Buffer.from(before);
  for (const [begin, end] of [
    [64 * KIB, 72 * KIB],
    [MIB - 8 * KIB, MIB + 256 * KIB],
  ] as const) {
    source.copy(expected, begin, begin, end);
  }
  t.ok(after.equals(expected), 'whole sectors of the ranges, and nothing else');
  t.equal(received, 16 * KIB, 'only data moves');
  t.same(
    await extentsOf(disk, path),
    [
      [0, MIB],
      [MIB + 256 * KIB, 2 * MIB - 256 * KIB],
    ],
    'what is a hole at the source is one',
  );
});

t.test('ranges of a file that is missing or has another size are not trusted', async (t) => {
  const ranges = [{ beginOffset: 0, endOffset: SECTOR_BYTES }];
  for (const target of [null, 3 * MIB, 8 * MIB]) {
    const sizes = { source: 4 * MIB, target };
    const { source, after } = await syncRanges(`size-${target}`, sizes, ranges);
    t.ok(after.equals(source), `a target of ${target} bytes becomes the source`);
  }
});

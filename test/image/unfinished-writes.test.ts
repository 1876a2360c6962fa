// What a power failure leaves of a write into a hole must not hide the older layer (P2). On a real
// file system this is shown by test/crash/power-loss.test.ts.

import t from 'tap';
import { BLOCK_OP } from '../../src/core/block-device.js';
import { SECTOR_BYTES } from '../../src/core/units.js';
import {
  control,
  memoryChain,
  openChain,
  sectorBytes,
  sectorsOf,
  snapshot,
  writeBytes,
} from '../support/image-chains.js';

const S = SECTOR_BYTES;

t.test('P2: an unfinished write leaves what was there before it', async (t) => {
  const { disk, chain } = await memoryChain(6);
  await writeBytes(disk, chain, 0, sectorsOf(1, 6));
  await snapshot(chain, 'a');
  await writeBytes(disk, chain, 0, sectorsOf(2), true);
  await control(chain, BLOCK_OP.unmap, S, S);
  await control(chain, BLOCK_OP.flush);
  disk.allocateUnwritten(`/volume/${chain.info().head}`, 2 * S, 4 * S);
  disk.restart();
  const unfinishedRanges = [{ beginOffset: 0, endOffset: 3 * S }];
  const again = await openChain(disk, '/volume', { unfinishedRanges });
  t.strictSame(
    await sectorBytes(disk, again),
    [2, 0, 1, 0, 1, 1],
    'written data and trimmed zeros stay; outside the ranges an extent may be there on purpose',
  );
  disk.restart();
  t.strictSame(await sectorBytes(disk, await openChain(disk, '/volume')), [2, 0, 1, 0, 1, 1]);
});

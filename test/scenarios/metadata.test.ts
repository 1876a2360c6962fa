// Metadata of a replica as no program of ours leaves it: cut at any byte, doubled, with keys of a later
// version. Either the volume opens and reads what it held, or it is refused and left as it is (P8).

import t from 'tap';
import { StorageError } from '../../src/core/errors.js';
import { MIB, SECTOR_BYTES } from '../../src/core/units.js';
import {
  memoryChain,
  openChain,
  sectorBytes,
  sectorsOf,
  snapshot,
  writeBytes,
} from '../support/image-chains.js';
import type { MemoryDisk } from '../support/memory-disk.js';

const CONTENT = [1, 2, 3, 0];
const REFUSALS = new Set(['BAD_METADATA', 'CHAIN_BROKEN', 'NOT_FOUND', 'IMAGE_TRUNCATED']);

async function closedVolume(): Promise<{ disk: MemoryDisk; metas: Map<string, Buffer> }> {
  const { disk, chain } = await memoryChain(CONTENT.length);
  for (const [i, name] of ['a', 'b'].entries()) {
    await writeBytes(disk, chain, i * SECTOR_BYTES, sectorsOf(i + 1));
    await snapshot(chain, name);
  }
  await writeBytes(disk, chain, 2 * SECTOR_BYTES, sectorsOf(3));
  await chain.close();
  const metas = new Map<string, Buffer>();
  for (const name of await disk.list('/volume')) {
    if (name.endsWith('.meta')) metas.set(name, await disk.readFile(`/volume/${name}`, MIB));
  }
  return { disk, metas };
}

/** Opens the volume with one file changed. @returns the refusal's code, or what it reads. */
async function outcomeWith(
  disk: MemoryDisk,
  metas: ReadonlyMap<string, Buffer>,
  name: string,
  content: Buffer,
): Promise<string> {
  await disk.writeFile(`/volume/${name}`, content);
  const files = await disk.list('/volume');
  try {
    const chain = await openChain(disk, '/volume');
    const read = await sectorBytes(disk, chain);
    await chain.close();
    return read.join();
  } catch (error) {
    if (!(error instanceof StorageError)) throw error;
    const isUntouched =
      (await disk.readFile(`/volume/${name}`, MIB)).equals(content) &&
      (await disk.list('/volume')).join() === files.join();
    return isUntouched ? error.code : `${error.code}, and the directory was changed`;
  } finally {
    for (const [original, bytes] of metas) await disk.writeFile(`/volume/${original}`, bytes);
  }
}

t.test('metadata cut at any byte is refused, or does not matter', async (t) => {
  const { disk, metas } = await closedVolume();
  t.equal(metas.size, 4);
  for (const [name, bytes] of metas) {
    const outcomes = new Map<string, number>();
    for (let length = 0; length < bytes.byteLength; length++) {
      const outcome = await outcomeWith(disk, metas, name, bytes.subarray(0, length));
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    }
    const wrong = [...outcomes.keys()].filter(
      (outcome) => outcome !== CONTENT.join() && !REFUSALS.has(outcome),
    );
    t.same(wrong, [], name);
    t.equal(outcomes.get(CONTENT.join()), 1, `${name}: all but the newline can be missed`);
  }
  t.equal(
    await outcomeWith(disk, metas, 'volume.meta', metas.get('volume.meta') as Buffer),
    CONTENT.join(),
  );
});

t.test('doubled metadata and unknown keys change nothing', async (t) => {
  const { disk, metas } = await closedVolume();
  for (const [name, bytes] of metas) {
    const text = bytes.toString();
    const variants = [
      text + text,
      `${text}garbage`,
      text.replace('{', '{"Future":{"Parent":["x",{"Size":1}]},'),
      text.replace('}', ',"Later":null}'),
      text.replaceAll(',', ' ,\n\t'),
      text.replace('"Parent":', '"Parent":"volume-snap-nosuch.img","Parent":'),
    ];
    for (const variant of variants) {
      t.equal(await outcomeWith(disk, metas, name, Buffer.from(variant)), CONTENT.join(), variant);
    }
  }
});

t.test('wrong types are refused', async (t) => {
  const { disk, metas } = await closedVolume();
  for (const [name, bytes] of metas) {
    const fields = Object.keys(JSON.parse(bytes.toString()) as object);
    const ignored = new Set(['Name', 'Error', 'Labels', 'Created']);
    for (const field of fields.filter((key) => !ignored.has(key))) {
      const value = JSON.parse(bytes.toString()) as Record<string, unknown>;
      value[field] = [7];
      const outcome = await outcomeWith(disk, metas, name, Buffer.from(JSON.stringify(value)));
      t.ok(REFUSALS.has(outcome), `${name}: ${field}: ${outcome}`);
    }
  }
});

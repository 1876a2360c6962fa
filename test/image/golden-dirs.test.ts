// Directories written by Longhorn itself: this program must read from them exactly what Longhorn
// reads, the head and every snapshot (scenario 153, our half of it).

import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

import t, { type Test } from 'tap';

import { ImageChain } from '../../src/image/chain.js';
import { committedFixturesDir, fixturesDir } from '../support/fixtures.js';
import {
  contentSha256,
  nativeFixture,
  openChain,
  type NativeFixture,
} from '../support/image-chains.js';

interface Manifest {
  readonly case: string;
  readonly size: number;
  readonly contentMeaningful: boolean;
  readonly revisionCounterEnabled: boolean;
  readonly revisionCounterLive?: number | string;
  readonly volumeMeta: { Head: string; Parent: string; Dirty: boolean; Rebuilding: boolean };
  readonly files: Record<
    string,
    { text?: string; size: number; sha256: string; allocatedBytes: number }
  >;
  readonly chain: string[];
  readonly headSha256: string;
  readonly snapshots: Record<
    string,
    { file: string; sha256?: string; exportSha256?: string; meta: { Removed?: boolean } }
  >;
}

const directories = [
  join(committedFixturesDir, 'replica-dirs'),
  ...(fixturesDir() === null ? [] : [join(fixturesDir() as string, 'replica-dirs')]),
].filter((directory) => existsSync(directory));

function extract(archive: string, into: string): void {
  execFileSync('sh', ['-c', 'zstd -dc "$0" | tar --extract --sparse -C "$1"', archive, into]);
}

function readMetas(directory: string): Record<string, string> {
  const metas: Record<string, string> = {};
  for (const name of readdirSync(directory)) {
    if (name.endsWith('.meta')) metas[name] = readFileSync(join(directory, name), 'utf8');
  }
  return metas;
}

const seen = new Set<string>();
for (const source of directories) {
  for (const fileName of readdirSync(source).filter((name) => name.endsWith('.manifest.json'))) {
    if (seen.has(fileName)) continue;
    seen.add(fileName);
    const manifest = JSON.parse(readFileSync(join(source, fileName), 'utf8')) as Manifest;
    t.test(`Longhorn's directory ${manifest.case} reads as Longhorn reads it`, async (t) => {
      const fixture = await nativeFixture();
      t.teardown(() => fixture.end());
      extract(join(source, `${manifest.case}.tar.zst`), fixture.directory);
      await checkDirectory(t, fixture, manifest);
    });
  }
}

t.ok(seen.size > 0, 'there are golden directories');

async function checkDirectory(t: Test, fixture: NativeFixture, manifest: Manifest): Promise<void> {
  const { disk } = fixture;
  const directory = join(fixture.directory, manifest.case);
  const before = readMetas(directory);
  for (const [name, facts] of Object.entries(manifest.snapshots)) {
    const chain = await openChain(disk, directory, { readOnly: true, headDiskName: name });
    t.equal(chain.sizeBytes, manifest.size);
    const expected = facts.exportSha256 ?? facts.sha256;
    if (manifest.contentMeaningful) {
      t.equal(await contentSha256(disk, chain), expected, `content of snapshot ${name}`);
    }
    await chain.close();
  }
  const readOnly = await openChain(disk, directory, { readOnly: true });
  if (manifest.contentMeaningful) {
    t.equal(await contentSha256(disk, readOnly), manifest.headSha256, 'content of the head');
  }
  t.strictSame(readOnly.liveChain(), manifest.chain);
  await readOnly.close();
  t.strictSame(readMetas(directory), before, 'reading changes no metadata');
  await checkWritableOpen(t, fixture, manifest, directory, before);
}

async function checkWritableOpen(
  t: Test,
  { disk }: NativeFixture,
  manifest: Manifest,
  directory: string,
  before: Record<string, string>,
): Promise<void> {
  const { volumeMeta } = manifest;
  const probed = await ImageChain.probe(disk, directory);
  t.equal(probed?.head, volumeMeta.Head);
  const revisionCounter = manifest.revisionCounterEnabled;
  const chain = await openChain(disk, directory, { revisionCounter });
  t.equal(chain.info().dirty, volumeMeta.Dirty, 'the state after open says how it was closed');
  t.equal(chain.info().rebuilding, volumeMeta.Rebuilding);
  if (manifest.revisionCounterLive !== undefined) {
    t.equal(chain.revisionCounter, Number(manifest.revisionCounterLive));
  }
  const disks = await chain.disks();
  t.strictSame(
    disks.map((d) => [d.name, d.imageBytes]),
    Object.entries(manifest.files)
      .filter(([name]) => name.endsWith('.img'))
      .map(([name, facts]) => [name, facts.size])
      .sort(),
  );
  for (const { name, allocatedBytes } of disks) {
    const recorded = manifest.files[name]?.allocatedBytes ?? -1;
    // A file system may count a few blocks of its own.
    t.ok(Math.abs(allocatedBytes - recorded) <= 65536, `${name} occupies about what it did`);
  }
  const text = readFileSync(join(directory, 'volume.meta'), 'utf8');
  t.equal(text, before['volume.meta']?.replace('"Dirty":false', '"Dirty":true'));
  if (manifest.contentMeaningful) t.equal(await contentSha256(disk, chain), manifest.headSha256);
  await chain.close();
  const after = { ...before };
  after['volume.meta'] = (before['volume.meta'] as string).replace('"Dirty":true', '"Dirty":false');
  t.strictSame(
    readMetas(directory),
    after,
    'opening and closing rewrites volume.meta byte for byte',
  );
}

// Directories written by Longhorn live on here: a real replica opens them for an engine of ours,
// writes, snapshots, reverts and purges; what Longhorn would find afterwards is its own format, beside
// files of ours that it ignores (scenario 153, our half of it).

import { execFileSync } from 'node:child_process';
import { createHash, randomUUID } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { BLOCK_OP, submitAndWait } from '../../src/core/block-device.js';
import { realClock } from '../../src/core/clock-real.js';
import { silentLogger } from '../../src/core/log.js';
import { MIB } from '../../src/core/units.js';
import { createNativeDisk, createSlab } from '../../src/disk/native-disk.js';
import { Replica } from '../../src/replica/replica.js';
import { committedFixturesDir, fixturesDir } from '../support/fixtures.js';

interface Manifest {
  readonly case: string;
  readonly size: number;
  readonly contentMeaningful: boolean;
  readonly revisionCounterEnabled: boolean;
  readonly headSha256: string;
  readonly snapshots: Record<
    string,
    { sha256?: string; exportSha256?: string; meta: { Removed?: boolean } }
  >;
}

const GENERATION = 7_000_000;
const CREATED = '2026-11-24T10:00:00Z';
/** Each reads the whole volume: a chain of thirty is sampled. */
const REVERTS_MAX = 2;
const VOLUME_KEYS =
  'Size Head Dirty Rebuilding Error Parent SectorSize BackingFilePath Encrypted'.split(' ');
const DISK_KEYS = 'Name Parent Removed UserCreated Created Labels'.split(' ');
const OF_LONGHORN =
  /^(?:volume\.meta|revision\.counter|volume-(?:head-\d{3}|snap-.+)\.img(?:\.meta|\.checksum)?)$/;
const OUR_OWN = new Set(['volume.roster', 'volume.intents', '.data.sock']);

t.setTimeout(180_000);

const disk = createNativeDisk({ slab: createSlab(4 * MIB), log: silentLogger });
t.teardown(() => disk.shutdown());

const buffer = disk.slab.allocate(MIB);

async function contentOf(replica: Replica): Promise<Buffer> {
  const parts: Buffer[] = [];
  for (let offsetBytes = 0; offsetBytes < replica.sizeBytes; offsetBytes += MIB) {
    const lengthBytes = Math.min(MIB, replica.sizeBytes - offsetBytes);
    const fields = { op: BLOCK_OP.read, offsetBytes, lengthBytes, bufferOffset: buffer };
    await submitAndWait(replica, fields);
    parts.push(Buffer.from(disk.slab.bytes.subarray(buffer, buffer + lengthBytes)));
  }
  return Buffer.concat(parts);
}

function sha256(content: Uint8Array): string {
  return createHash('sha256').update(content).digest('hex');
}

/** Change times of Longhorn's files but volume.meta: no byte is written without a new one. */
function changeTimes(directory: string): Record<string, bigint> {
  const names = readdirSync(directory).filter((name) => OF_LONGHORN.test(name));
  return Object.fromEntries(
    names
      .filter((name) => name !== 'volume.meta')
      .map((name) => [name, statSync(join(directory, name), { bigint: true }).ctimeNs]),
  );
}

/** One opened directory and what it must hold. */
class Life {
  readonly replica: Replica;
  readonly directory: string;
  model: Buffer = Buffer.alloc(0);

  constructor(replica: Replica, directory: string) {
    this.replica = replica;
    this.directory = directory;
  }

  open(): Promise<void> {
    return this.replica.open({ isUpgrade: false, expectedBytes: 0, engineGeneration: GENERATION });
  }

  async fill(offsetBytes: number, lengthBytes: number, byte: number): Promise<void> {
    disk.slab.bytes.fill(byte, buffer, buffer + lengthBytes);
    const fields = { op: BLOCK_OP.write, offsetBytes, lengthBytes, bufferOffset: buffer };
    await submitAndWait(this.replica, fields);
    this.model.fill(byte, offsetBytes, offsetBytes + lengthBytes);
  }

  async holds(content: Buffer): Promise<boolean> {
    return (await contentOf(this.replica)).equals(content);
  }

  /** What a sync agent does for `snapshots purge`; a former branch point goes with the next purge. */
  async purgeAll(): Promise<void> {
    const before = (await this.replica.status()).open?.disks ?? [];
    const names = before.map(({ name }) => name).filter((name) => name.startsWith('volume-snap-'));
    for (const name of names) await this.replica.markRemoved(name);
    for (const name of names) {
      for (const { action, source, target } of await this.replica.prepareRemove(name)) {
        if (action === 'coalesce') await this.replica.coalesce(source, target);
        else if (action === 'replace') await this.replica.replaceDisk(target, source);
        else if (action === 'prune') await this.replica.prune(source);
        else await this.replica.removeDisk(source, false);
      }
    }
  }

  checkFormat(t: Test, when: string): void {
    const names = readdirSync(this.directory);
    const foreign = names.filter((name) => !OF_LONGHORN.test(name) && !OUR_OWN.has(name));
    t.same(foreign, [], `${when}: only Longhorn's file names and ours`);
    t.same(
      [...OUR_OWN].filter((name) => name.endsWith('.meta') || name.endsWith('.img')),
      [],
      'Longhorn looks at none of ours',
    );
    const images = names.filter((name) => name.endsWith('.img'));
    t.same(
      names.filter((name) => name.endsWith('.img.meta')),
      images.map((name) => `${name}.meta`),
      `${when}: each image has its record`,
    );
    for (const name of names.filter((candidate) => candidate.endsWith('.meta'))) {
      const text = readFileSync(join(this.directory, name), 'utf8');
      const keys = Object.keys(JSON.parse(text) as object);
      const wanted = name === 'volume.meta' ? VOLUME_KEYS : DISK_KEYS;
      const inOrder = wanted.filter((key) => keys.includes(key));
      if (keys.join() !== inOrder.join()) t.fail(`${when}: ${name} has the keys ${keys.join()}`);
      if (!text.endsWith('}\n')) t.fail(`${when}: ${name} does not end as Go writes it`);
    }
  }
}

async function extracted(t: Test, archive: string, manifest: Manifest): Promise<Life> {
  const parent = await mkdtemp(join(tmpdir(), 'longhorn-golden-'));
  const unpack = 'zstd -dc "$0" | tar --extract --sparse -C "$1"';
  execFileSync('sh', ['-c', unpack, archive, parent]);
  const directory = join(parent, manifest.case);
  const replica = await Replica.at({
    hostBootId: 'boot-1',
    disk,
    directory,
    clock: realClock,
    log: silentLogger,
    revisionCounter: manifest.revisionCounterEnabled,
    encrypted: false,
    unmapMarkDiskChainRemoved: false,
    snapshotMaxCount: 250,
    snapshotMaxBytes: 0,
    newId: randomUUID,
  });
  t.teardown(async () => {
    await replica.close();
    await rm(parent, { recursive: true });
  });
  return new Life(replica, directory);
}

/** Opened and closed for an engine of ours, each of Longhorn's files is what it was. */
async function checkUntouched(t: Test, life: Life): Promise<void> {
  const { directory } = life;
  const before = changeTimes(directory);
  const metaBefore = readFileSync(join(directory, 'volume.meta'), 'utf8');
  await life.open();
  const { standing } = await life.replica.status();
  const { replicaId } = standing;
  const roster = { number: 1, members: [replicaId], absent: [], isClean: false };
  await life.replica.setRoster({ ...roster, generation: GENERATION });
  await life.replica.close();
  const metaAfter = readFileSync(join(directory, 'volume.meta'), 'utf8');
  t.equal(metaAfter, metaBefore.replace('"Dirty":true', '"Dirty":false'));
  t.same(changeTimes(directory), before, 'no other file of Longhorn was written to');
  t.ok(existsSync(join(directory, 'volume.roster')), 'the roster is beside them');
  life.checkFormat(t, 'opened');
}

async function checkLife(t: Test, life: Life, manifest: Manifest): Promise<void> {
  const { replica } = life;
  const isMeaningful = manifest.contentMeaningful;
  await life.open();
  life.model = await contentOf(replica);
  if (isMeaningful) t.equal(sha256(life.model), manifest.headSha256, 'the head');
  await life.fill(4096, 100_000, 0xa1);
  await replica.snapshot({ name: 'ours', userCreated: true, created: CREATED, labels: { a: 'b' } });
  const ours = Buffer.from(life.model);
  await life.fill(manifest.size - MIB, MIB, 0xa2);
  await life.fill(50_000, 5000, 0xa3);
  await replica.close();
  life.checkFormat(t, 'written');
  await life.open();
  t.ok(await life.holds(life.model), 'after a reopen');

  const kept = Object.entries(manifest.snapshots).filter(([, { meta }]) => meta.Removed !== true);
  const step = Math.max(1, Math.ceil(kept.length / REVERTS_MAX));
  for (const [name, facts] of kept.filter((_, i) => i % step === 0)) {
    await replica.revert(`volume-snap-${name.replace(/^volume-snap-|\.img$/g, '')}.img`, CREATED);
    const content = await contentOf(replica);
    const expected = facts.exportSha256 ?? facts.sha256;
    if (isMeaningful) t.equal(sha256(content), expected, `reverted to ${name}`);
    life.model = content;
    await life.fill(0, 4096, 0xa4);
    await life.fill(manifest.size - 8192, 4096, 0xa4);
  }
  if (kept.length > 0) t.ok(await life.holds(life.model), 'and written to');
  await replica.revert('volume-snap-ours.img', CREATED);
  t.ok(await life.holds(ours), 'reverted to ours');
  life.model = ours;
  await life.fill(MIB, MIB, 0xa5);
  for (let i = 0; i < 2; i++) await life.purgeAll();
  t.ok(await life.holds(life.model), 'purged');
  const disks = (await replica.status()).open?.disks ?? [];
  t.equal(disks.length, 2, `the head and what is behind it: ${disks.map(({ name }) => name)}`);
  await replica.close();
  life.checkFormat(t, 'purged');
  await life.open();
  t.ok(await life.holds(life.model), 'purged and reopened');
}

const sources = [committedFixturesDir, fixturesDir()]
  .filter((root) => root !== null)
  .map((root) => join(root, 'replica-dirs'))
  .filter((directory) => existsSync(directory));
const seen = new Set<string>();
for (const source of sources) {
  for (const fileName of readdirSync(source).filter((name) => name.endsWith('.manifest.json'))) {
    if (seen.has(fileName)) continue;
    seen.add(fileName);
    const manifest = JSON.parse(readFileSync(join(source, fileName), 'utf8')) as Manifest;
    t.test(`#153 Longhorn's directory ${manifest.case} lives on`, async (t) => {
      const life = await extracted(t, join(source, `${manifest.case}.tar.zst`), manifest);
      await checkUntouched(t, life);
      await checkLife(t, life, manifest);
    });
  }
}

t.ok(seen.size > 0, 'there are golden directories');

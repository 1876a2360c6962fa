// SyncAgentService over real gRPC, with a real replica beside it: the recorded calls of Longhorn's
// clients, rebuilds from several sources, purges and hashes.

import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';

import { SyncAgentServiceDefinition } from '../../src/api/generated/syncagent.js';
import { silentLogger } from '../../src/core/log.js';
import { KIB, MIB, SECTOR_BYTES } from '../../src/core/units.js';
import { createNativeDisk, createSlab } from '../../src/disk/native-disk.js';
import { ImageChain } from '../../src/image/chain.js';
import { RPC_STATUS, RpcError } from '../../src/rpc/status.js';
import { crc64OfFile } from '../../src/sync/hash-job.js';
import { createProcessLock } from '../../src/sync/node-lock.js';
import { readChecksumRecord, writeChecksumRecord } from '../../src/sync/checksum-store.js';
import { FIXTURES_MISSING, fixturesDir } from '../support/fixtures.js';
import { chainDefaults, contentSha256, sectorsOf, writeBytes } from '../support/image-chains.js';
import { startSyncNode } from '../support/sync-node.js';
import type { SyncNode } from '../support/sync-node.js';
import { extentsOf, fastClock, sha256Of } from '../support/sync-transfer.js';

const base = mkdtempSync(join(tmpdir(), 'sync-agent-'));
const disk = createNativeDisk({ slab: createSlab(4 * MIB), log: silentLogger });
t.teardown(async () => {
  await disk.shutdown();
  rmSync(base, { recursive: true });
});

const fixtures = fixturesDir();
const skip = fixtures === null ? FIXTURES_MISSING : false;
const SIZE_BYTES = 8 * MIB;

/** A closed replica directory with the given snapshots below the head, data in each. */
async function makeReplica(name: string, snapshots: readonly string[]): Promise<string> {
  const directory = join(base, name);
  mkdirSync(directory);
  await ImageChain.create(disk, directory, { ...chainDefaults, sizeBytes: SIZE_BYTES });
  const chain = await ImageChain.open(disk, directory, chainDefaults);
  for (const [index, snapshot] of snapshots.entries()) {
    await writeBytes(disk, chain, index * 256 * KIB, sectorsOf(index + 1, 100));
    await writeBytes(disk, chain, 4 * MIB + index * SECTOR_BYTES, sectorsOf(index + 65, 8));
    const created = '2026-08-21T10:11:12Z';
    await chain.snapshot({ name: snapshot, userCreated: !snapshot.startsWith('sys'), created });
  }
  await writeBytes(disk, chain, 6 * MIB, sectorsOf(99, 16));
  await chain.close();
  return directory;
}

/** Hash of the whole volume, read through the chain of a closed directory. */
async function volumeSha256(directory: string): Promise<string> {
  const chain = await ImageChain.open(disk, directory, { ...chainDefaults, readOnly: true });
  try {
    return await contentSha256(disk, chain);
  } finally {
    await chain.close();
  }
}

async function openNode(
  directory: string,
  extra: Parameters<typeof startSyncNode>[2] = {},
): Promise<SyncNode> {
  const node = await startSyncNode(disk, directory, extra);
  await node.replica.open({ isUpgrade: false, expectedBytes: 0, engineGeneration: 0 });
  return node;
}

interface Step {
  readonly method: string;
  readonly code: number;
  readonly message: string;
  readonly requestHex: string;
  readonly responseHex?: string;
}

type Client = Record<string, (request: unknown) => Promise<unknown>>;

/** What a step gives here, in the transcript's terms. */
async function runStep(node: SyncNode, step: Step): Promise<{ code: number; result: unknown }> {
  const name = step.method.split('/').at(-1) ?? '';
  const key = name.charAt(0).toLowerCase() + name.slice(1);
  const methods: Record<string, { requestType: { decode(bytes: Uint8Array): unknown } }> =
    SyncAgentServiceDefinition.methods;
  const request = methods[key]?.requestType.decode(Buffer.from(step.requestHex, 'hex'));
  try {
    const call = (node.client as unknown as Client)[key];
    return { code: 0, result: await call?.(request) };
  } catch (error) {
    if (!(error instanceof RpcError)) throw error;
    return { code: error.status, result: error.message };
  }
}

function expectedOf(step: Step, node: SyncNode, directory: string): unknown {
  if (step.code !== 0) return step.message;
  const name = step.method.split('/').at(-1) ?? '';
  const key = name.charAt(0).toLowerCase() + name.slice(1);
  const methods: Record<string, { responseType: { decode(bytes: Uint8Array): unknown } }> =
    SyncAgentServiceDefinition.methods;
  const bytes = Buffer.from(step.responseHex ?? '', 'hex');
  const response = methods[key]?.responseType.decode(bytes) as Record<string, unknown>;
  if (typeof response['error'] === 'string') {
    response['error'] = response['error'].replace(/\/var\/lib\S*\/r1(?=\/)/, directory);
  }
  if (typeof response['port'] === 'number') {
    response['port'] = response['port'] - 21_403 + node.firstReceiverPort;
  }
  return response;
}

async function untilEnded(status: () => Promise<{ state: string }>): Promise<void> {
  while ((await status()).state === 'in_progress') await new Promise(setImmediate);
}

t.test('the recorded calls get the recorded answers', { skip }, async (t) => {
  const directory = await makeReplica('transcript', ['snap-a']);
  const node = await openNode(directory);
  const path = join(fixtures ?? '', 'grpc', 'syncagent.json');
  const { steps } = JSON.parse(readFileSync(path, 'utf8')) as { steps: Step[] };
  const later = /\/Backup\w+$/;
  const checksum = await crc64OfFile(
    disk,
    join(directory, 'volume-snap-snap-a.img'),
    new AbortController().signal,
  );
  for (const step of steps) {
    const { code, result } = await runStep(node, step);
    if (later.test(step.method)) {
      t.equal(code, RPC_STATUS.UNIMPLEMENTED, `${step.method} comes later and says so`);
      continue;
    }
    const expected = expectedOf(step, node, directory) as { checksum?: string };
    // The snapshot's content was not recorded, so its hash is ours.
    if (expected.checksum === '49a1cdfccf4f291f') expected.checksum = checksum;
    t.equal(code, step.code, `${step.method} ${JSON.stringify(step.message)}`);
    // How a connection fails is grpc-go's wording; what comes before it is Longhorn's.
    const wording = /: rpc error: .*|: connect E.*/;
    const masked = (value: unknown): unknown =>
      typeof value === 'string' ? value.replace(wording, '') : value;
    t.same(masked(result), masked(expected), step.method);
    for (const snapshotName of ['nosuch', 'snap-a']) {
      await untilEnded(() => node.client.snapshotHashStatus({ snapshotName }));
    }
    await untilEnded(() => node.client.snapshotPurgeStatus({}));
  }
  await node.end();
});

t.test('a rebuild takes its files from several sources', async (t) => {
  const from = await makeReplica('source-1', ['s1', 's2', 's3']);
  const also = await makeReplica('source-2', ['s1', 's2', 's3']);
  const into = join(base, 'target-1');
  mkdirSync(into);
  const sources = [await openNode(from), await openNode(also)];
  const target = await startSyncNode(disk, into);
  const names = ['s1', 's2', 's3'].flatMap((name) => [
    `volume-snap-${name}.img`,
    `volume-snap-${name}.img.meta`,
  ]);
  const syncFileInfoList = names.map((name) => ({
    fromFileName: name,
    toFileName: name,
    actualSize: name.endsWith('.img') ? 442_368 : 0,
    ranges: [],
  }));
  const fromAddressMap = Object.fromEntries(sources.map((source) => [source.address, true]));
  const request = {
    fromAddress: '',
    toHost: '127.0.0.1',
    syncFileInfoList,
    fastSync: true,
    fileSyncHttpClientTimeout: 5,
    grpcTimeoutSeconds: 0,
    bytesPerSecondMax: 0,
    localSync: undefined,
    fromAddressMap,
  };
  await target.client.filesSync(request);
  t.match(await target.client.replicaRebuildStatus({}), {
    isRebuilding: false,
    error: '',
    progress: 100,
    state: 'complete',
    fromReplicaAddress: '',
    fromReplicaAddressList: sources.map((source) => source.address),
  });
  for (const name of names) {
    const pair = [join(from, name), join(into, name)] as const;
    t.equal(await sha256Of(disk, pair[1]), await sha256Of(disk, pair[0]), name);
    t.same(await extentsOf(disk, pair[1]), await extentsOf(disk, pair[0]), `${name}: extents`);
  }
  await Promise.all([...sources, target].map((node) => node.end()));
});

t.test('a rebuild on one node copies without the network, or else with it', async (t) => {
  const from = await makeReplica('source-local', ['s1']);
  const source = await openNode(from);
  const name = 'volume-snap-s1.img';
  const request = {
    fromAddress: source.address,
    toHost: '127.0.0.1',
    syncFileInfoList: [{ fromFileName: name, toFileName: name, actualSize: 442_368, ranges: [] }],
    fastSync: false,
    fileSyncHttpClientTimeout: 5,
    grpcTimeoutSeconds: 0,
    bytesPerSecondMax: 0,
    fromAddressMap: {},
  };
  for (const sourcePath of [from, '/nosuch']) {
    const into = join(base, `target-local-${sourcePath === from}`);
    mkdirSync(into);
    const target = await startSyncNode(disk, into, { hostRoot: '' });
    await target.client.filesSync({ ...request, localSync: { sourcePath, targetPath: into } });
    t.equal(await sha256Of(disk, join(into, name)), await sha256Of(disk, join(from, name)));
    await target.end();
  }
  await source.end();
});

t.test('a file that no source can send fails the rebuild after three attempts', async (t) => {
  const from = await makeReplica('source-broken', ['s1']);
  const source = await openNode(from);
  const into = join(base, 'target-broken');
  mkdirSync(into);
  const target = await startSyncNode(disk, into, { clock: fastClock(1000) });
  const call = target.client.filesSync({
    fromAddress: source.address,
    toHost: '127.0.0.1',
    syncFileInfoList: [
      { fromFileName: 'nosuch.img', toFileName: 'nosuch.img', actualSize: 1, ranges: [] },
    ],
    bytesPerSecondMax: 0,
    fastSync: false,
    fileSyncHttpClientTimeout: 5,
    grpcTimeoutSeconds: 100_000,
    localSync: undefined,
    fromAddressMap: {},
  });
  await t.rejects(call, { message: /nosuch.img: no such file/ });
  t.match(await target.client.replicaRebuildStatus({}), { state: 'error', isRebuilding: false });
  t.match(await target.client.replicaRebuildStatus({}), { error: /nosuch.img/ });
  await Promise.all([source.end(), target.end()]);
});

t.test('names of other directories and the live head are refused', async (t) => {
  const node = await openNode(await makeReplica('names', ['s1']));
  for (const name of ['../x', '/etc/passwd', '..', 'volume-head-001.img']) {
    await t.rejects(node.client.receiverLaunch({ toFileName: name }), RpcError, name);
  }
  await t.rejects(node.client.fileRemove({ fileName: '../names/volume.meta' }), RpcError);
  await t.rejects(
    node.client.fileRename({ oldFileName: 'volume.meta', newFileName: '../x' }),
    RpcError,
  );
  await node.end();
});

t.test('a newer receiver of a file ends the older one', async (t) => {
  const node = await openNode(await makeReplica('supersede', ['s1']));
  const first = await node.client.receiverLaunch({ toFileName: 'x.img' });
  const second = await node.client.receiverLaunch({ toFileName: 'x.img' });
  t.not(first.port, second.port);
  for (let i = 0; i < 6; i++) await node.client.receiverLaunch({ toFileName: `y${i}.img` });
  await t.rejects(node.client.receiverLaunch({ toFileName: 'z.img' }), { message: 'out of ports' });
  await node.end();
});

t.test('an exported snapshot is the volume as it was, merged from its layers', async (t) => {
  const directory = await makeReplica('export', ['s1', 's2', 's3']);
  const into = join(base, 'export-target');
  mkdirSync(into);
  const node = await openNode(directory);
  const target = await startSyncNode(disk, into);
  for (const name of ['s1', 's3']) {
    const toFileName = `volume-snap-${name}.img`;
    const { port } = await target.client.receiverLaunch({ toFileName });
    await node.client.volumeExport({
      snapshotFileName: name,
      host: '127.0.0.1',
      port,
      exportBackingImageIfExist: false,
      fileSyncHttpClientTimeout: 5,
    });
    const chain = await ImageChain.open(disk, directory, {
      ...chainDefaults,
      readOnly: true,
      headDiskName: name,
    });
    t.equal(await sha256Of(disk, join(into, toFileName)), await contentSha256(disk, chain), name);
    await chain.close();
    const data = (await extentsOf(disk, join(into, toFileName))).map(([, length]) => length ?? 0);
    const count = name === 's1' ? 1 : 3;
    // Parts of 100 sectors overlap by 36; those of 8 sectors by 7.
    const bytes = ((count - 1) * 64 + 100 + 8 + count - 1) * SECTOR_BYTES;
    t.equal(
      data.reduce((a, b) => a + b, 0),
      bytes,
      `${name}: holes stay holes`,
    );
  }
  await Promise.all([node.end(), target.end()]);
});

t.test('a clone holds what the snapshot of the other volume held', async (t) => {
  const from = await makeReplica('clone-source', ['s1', 's2']);
  const into = join(base, 'clone-target');
  mkdirSync(into);
  await ImageChain.create(disk, into, { ...chainDefaults, sizeBytes: SIZE_BYTES });
  const source = await openNode(from);
  const target = await openNode(into);
  const request = {
    fromAddress: source.address,
    toHost: '127.0.0.1',
    snapshotFileName: 's1',
    exportBackingImageIfExist: false,
    fileSyncHttpClientTimeout: 5,
    fromVolumeName: '',
  };
  await t.rejects(target.client.snapshotClone({ ...request, snapshotFileName: 'nosuch' }), {
    message: /cannot find snapshot nosuch in the source replica/,
  });
  await target.client.snapshotClone(request);
  t.same(await target.client.snapshotCloneStatus({}), {
    isCloning: false,
    error: '',
    progress: 100,
    state: 'complete',
    fromReplicaAddress: source.address,
    snapshotName: 's1',
  });
  t.equal((await target.replica.status()).info.parent, 'volume-snap-s1.img');
  await Promise.all([source.end(), target.end()]);
  const snapshot = await ImageChain.open(disk, from, {
    ...chainDefaults,
    readOnly: true,
    headDiskName: 's1',
  });
  const expected = await contentSha256(disk, snapshot);
  await snapshot.close();
  t.equal(await volumeSha256(into), expected);
});

t.test('a purge folds removed snapshots and keeps the volume', async (t) => {
  const directory = await makeReplica('purge', ['s1', 'sys2', 's3', 's4']);
  const before = await volumeSha256(directory);
  const node = await openNode(directory);
  await node.replica.markRemoved('s1');
  await node.client.snapshotPurge({});
  await untilEnded(() => node.client.snapshotPurgeStatus({}));
  t.same(await node.client.snapshotPurgeStatus({}), {
    isPurging: false,
    error: '',
    progress: 100,
    state: 'complete',
  });
  const { open } = await node.replica.status();
  t.same(open?.disks.map((d) => d.name).sort(), [
    'volume-head-004.img',
    'volume-snap-s3.img',
    'volume-snap-s4.img',
  ]);
  await node.end();
  t.equal(await volumeSha256(directory), before);
});

t.test('a purge frees what the head hides of the snapshot behind it', async (t) => {
  const directory = await makeReplica('prune', ['s1']);
  const chain = await ImageChain.open(disk, directory, chainDefaults);
  await writeBytes(disk, chain, 0, sectorsOf(7, 100));
  await chain.close();
  const before = await volumeSha256(directory);
  const node = await openNode(directory);
  await node.replica.markRemoved('s1');
  await node.client.snapshotPurge({});
  await untilEnded(() => node.client.snapshotPurgeStatus({}));
  t.match(await node.client.snapshotPurgeStatus({}), { state: 'complete', error: '' });
  await node.end();
  t.same(await extentsOf(disk, join(directory, 'volume-snap-s1.img')), [[4 * MIB, 8 * 4096]]);
  t.equal(await volumeSha256(directory), before);
});

t.test('a purge of a closed replica reports its error', async (t) => {
  const node = await startSyncNode(disk, await makeReplica('closed', ['s1']));
  await node.end();
  const dead = node.agent;
  dead.startPurge();
  await untilEnded(async () => dead.purgeStatus);
  t.equal(dead.purgeStatus.state, 'error');
  t.not(dead.purgeStatus.error, '');
});

t.test('hashes are those Longhorn recorded', { skip }, async (t) => {
  const archive = join(fixtures ?? '', 'replica-dirs', 'hashed.tar.zst');
  const directory = join(base, 'hashed');
  mkdirSync(directory);
  execFileSync('sh', ['-c', `zstd -dc '${archive}' | tar -x --sparse -C '${directory}'`]);
  const manifest = JSON.parse(
    readFileSync(join(fixtures ?? '', 'replica-dirs', 'hashed.manifest.json'), 'utf8'),
  ) as { files: Record<string, { text?: string }> };
  const found = execFileSync('find', [directory, '-name', '*.checksum']).toString().trim();
  for (const recordPath of found.split('\n')) {
    const name = recordPath.split('/').at(-1) ?? '';
    const text = manifest.files[name]?.text ?? '';
    const imagePath = recordPath.slice(0, -'.checksum'.length);
    const crc = await crc64OfFile(disk, imagePath, new AbortController().signal);
    t.equal(crc, (JSON.parse(text) as { checksum: string }).checksum, name);
  }
  t.equal(found.split('\n').length, 2);
});

t.test('a changed hash of an unchanged file is reported as silent corruption', async (t) => {
  const directory = await makeReplica('corrupt', ['s1']);
  const node = await openNode(directory);
  const snapshotName = 's1';
  const hash = async (rehash: boolean): Promise<unknown> => {
    await node.client.snapshotHash({ snapshotName, rehash });
    await untilEnded(() => node.client.snapshotHashStatus({ snapshotName }));
    return await node.client.snapshotHashStatus({ snapshotName });
  };
  const path = join(directory, 'volume-snap-s1.img');
  t.match(await hash(false), { state: 'complete', silentlyCorrupted: false, error: '' });
  const good = await readChecksumRecord(disk, path);
  const { changedNs } = await disk.stat(path);
  t.match(good?.lastHashedAt, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
  // A record of other content for the same change time stands for a disk that changed bits.
  const record = { method: 'crc64', checksum: '00000000000000aa', changedNs };
  await writeChecksumRecord(disk, path, record);
  t.match(await hash(false), { checksum: '00000000000000aa', silentlyCorrupted: false });
  t.match(await hash(true), { checksum: '00000000000000aa', silentlyCorrupted: true });
  t.match(await hash(true), { silentlyCorrupted: true }, 'and stays so');
  // A later change time makes a new record.
  await writeChecksumRecord(disk, path, { ...record, changedNs: changedNs - 1n });
  t.match(await hash(false), { checksum: good?.checksum, silentlyCorrupted: false });
  await node.end();
});

t.test('one hash job holds the lock of the node, others wait and can be cancelled', async (t) => {
  const hashLock = createProcessLock();
  const node = await openNode(await makeReplica('lock', ['s1']), { hashLock });
  const held = await hashLock.tryAcquire();
  t.same(await node.client.snapshotHashLockState({}), { isLocked: true });
  await node.client.snapshotHash({ snapshotName: 's1', rehash: false });
  t.match(await node.client.snapshotHashStatus({ snapshotName: 's1' }), { state: 'in_progress' });
  await node.client.snapshotHashCancel({ snapshotName: 's1' });
  t.match(await node.client.snapshotHashStatus({ snapshotName: 's1' }), { state: 'error' });
  await held?.release();
  t.same(await node.client.snapshotHashLockState({}), { isLocked: false });
  await node.end();
});

// Files and directories of the native disk: the control side, with real errors of a real kernel.

import { existsSync, readdirSync, readlinkSync } from 'node:fs';
import { appendFile, mkdtemp, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import t from 'tap';

import { addon } from '../../src/addon/addon.js';
import type { LogFields, Logger } from '../../src/core/log.js';
import { silentLogger } from '../../src/core/log.js';
import { KIB, MIB, SECTOR_BYTES } from '../../src/core/units.js';
import { DISK_OP, type FileExtent } from '../../src/disk/disk.js';
import { diskErrorOfResult, errnoName } from '../../src/disk/disk-error.js';
import { diskFixture, submit } from '../support/native-disk.js';

const NOWHERE = '/proc/longhorn-does-not-exist';
/** Memory file system that every Linux has; it lists no extents. */
const SHM = '/dev/shm';

function openDescriptors(directory: string): string[] {
  return readdirSync('/proc/self/fd').filter((fd) => {
    const link = `/proc/self/fd/${fd}`;
    return linkTarget(link).startsWith(directory);
  });
}

function linkTarget(link: string): string {
  try {
    return readlinkSync(link);
  } catch {
    return '';
  }
}

t.test('open: each refusal has its code and names the path', async (t) => {
  const { disk, path, end } = await diskFixture();
  t.teardown(end);
  await t.rejects(disk.open(path('none'), { writable: true }), {
    code: 'NOT_FOUND',
    message: new RegExp(path('none')),
  });
  const file = await disk.open(path('a'), { writable: true, create: true, exclusive: true });
  t.equal((await stat(path('a'))).mode & 0o777, 0o600);
  await t.rejects(disk.open(path('a'), { writable: true, create: true, exclusive: true }), {
    code: 'ALREADY_EXISTS',
  });
  await t.rejects(disk.open(path('a/b'), { writable: true }), { code: 'INVALID_ARGUMENT' });
  await t.rejects(disk.open(path(''), { writable: true }), {
    code: 'IO_ERROR',
    details: { errno: 'EISDIR' },
  });
  await symlink('loop', path('loop'));
  await t.rejects(disk.open(path('loop'), { writable: true }), {
    code: 'IO_ERROR',
    details: { errno: 'ELOOP' },
  });
  await file.truncate(MIB);
  const cut = await disk.open(path('a'), { writable: true, truncate: true });
  t.equal(await file.sizeBytes(), 0);
  t.equal(cut.isDirect, true);
  const buffered = await disk.open(path('a'), { writable: true, direct: false });
  t.equal(buffered.isDirect, false);
  t.equal(disk.directIo, true, 'asking for buffered I/O is no refusal');
});

t.test(
  'open: where O_DIRECT is refused the file is buffered, and the log says so once',
  async (t) => {
    const lines: [string, LogFields | undefined][] = [];
    const log: Logger = { ...silentLogger, warn: (event, fields) => lines.push([event, fields]) };
    const { disk, end } = await diskFixture('auto', log);
    t.teardown(end);
    const file = await disk.open('/proc/self/status', { writable: false });
    const second = await disk.open('/proc/self/stat', { writable: false });
    t.equal(file.isDirect, false);
    t.equal(second.isDirect, false);
    t.equal(disk.directIo, false);
    t.same(
      lines.map(([event, fields]) => [event, fields?.['path']]),
      [['disk.direct.refused', '/proc/self/status']],
    );
    const lengthBytes = SECTOR_BYTES;
    t.ok((await submit(disk, file, DISK_OP.read, { lengthBytes })) > 100, 'and can be read');
  },
);

t.test(
  'extents: data, holes, unwritten and delayed ranges; merged, clipped, limited',
  async (t) => {
    const { disk, path, end } = await diskFixture();
    t.teardown(end);
    const file = await disk.open(path('a'), { writable: true, create: true });
    t.same(await file.extents(0, MIB, 10), [], 'of an empty file');
    await file.truncate(4 * MIB);
    t.same(await file.extents(0, 4 * MIB, 10), [], 'of a hole');

    const write = (offset: number, length: number): Promise<number> =>
      submit(disk, file, DISK_OP.write, { lengthBytes: length, fileOffsetBytes: offset });
    await write(64 * KIB, 64 * KIB);
    await file.allocate(128 * KIB, 64 * KIB); // unwritten, next to written data
    await file.allocate(MIB, 64 * KIB);
    await write(MIB + 16 * KIB, 4 * KIB); // written inside unwritten
    const all: FileExtent[] = [
      { beginOffset: 64 * KIB, endOffset: 192 * KIB },
      { beginOffset: MIB, endOffset: MIB + 64 * KIB },
    ];
    t.same(await file.extents(0, 4 * MIB, 10), all);
    t.same(await file.extents(0, 4 * MIB, 1), all.slice(0, 1), 'limited');
    t.same(await file.extents(192 * KIB, 4 * MIB, 1), all.slice(1), 'continued');
    t.same(await file.extents(100 * KIB, MIB + 4 * KIB, 10), [
      { beginOffset: 100 * KIB, endOffset: 192 * KIB },
      { beginOffset: MIB, endOffset: MIB + 4 * KIB },
    ]);
    t.same(await file.extents(MIB, MIB, 10), [], 'of an empty range');
    t.same(await file.extents(0, MIB, 0), [], 'none asked for');

    await appendFile(path('a'), Buffer.alloc(10_000, 1)); // in the page cache, not yet on disk
    const [last] = await file.extents(4 * MIB, 8 * MIB, 10);
    t.same(last, { beginOffset: 4 * MIB, endOffset: 4 * MIB + 12 * KIB }, 'delayed allocation');
  },
);

t.test('extents: thousands come in one call, or in pieces', async (t) => {
  const { disk, path, end } = await diskFixture();
  t.teardown(end);
  const file = await disk.open(path('a'), { writable: true, create: true });
  const count = 3000;
  const results = Array.from({ length: count }, (_, i) =>
    submit(disk, file, DISK_OP.write, { lengthBytes: 4096, fileOffsetBytes: i * 2 * 4096 }),
  );
  t.ok((await Promise.all(results)).every((result) => result === 4096));
  const endOffset = count * 2 * 4096;
  const expected = Array.from({ length: count }, (_, i) => ({
    beginOffset: i * 2 * 4096,
    endOffset: (i * 2 + 1) * 4096,
  }));
  t.same(await file.extents(0, endOffset, count + 1), expected);
  const pieces: FileExtent[] = [];
  for (let begin = 0; ; begin = pieces.at(-1)?.endOffset ?? 0) {
    const piece = await file.extents(begin, endOffset, 700);
    if (piece.length === 0) break;
    t.ok(piece.length <= 700);
    pieces.push(...piece);
  }
  t.same(pieces, expected);
});

t.test(
  'extents: a file system without them says EXTENTS_UNSUPPORTED',
  {
    skip: existsSync(SHM) ? false : `there is no ${SHM}`,
  },
  async (t) => {
    const { disk, end } = await diskFixture();
    const directory = await mkdtemp(join(SHM, 'longhorn-'));
    t.teardown(async () => {
      await end();
      await rm(directory, { recursive: true });
    });
    const file = await disk.open(join(directory, 'a'), { writable: true, create: true });
    await file.truncate(MIB);
    await t.rejects(file.extents(0, MIB, 10), { code: 'EXTENTS_UNSUPPORTED', message: /extents/ });
  },
);

t.test('sizes, space and times of an open file', async (t) => {
  const { disk, path, end } = await diskFixture();
  t.teardown(end);
  const file = await disk.open(path('a'), { writable: true, create: true });
  await file.truncate(5 * 1024 * MIB);
  t.equal(await file.sizeBytes(), 5 * 1024 * MIB);
  t.equal(await file.allocatedBytes(), 0);
  await submit(disk, file, DISK_OP.write, { lengthBytes: MIB });
  await file.sync();
  t.equal(await file.allocatedBytes(), MIB);
  await file.truncate(SECTOR_BYTES);
  t.equal(await file.allocatedBytes(), SECTOR_BYTES);
  const readOnly = await disk.open(path('a'), { writable: false });
  await t.rejects(readOnly.truncate(0), { code: 'IO_ERROR', details: { errno: 'EINVAL' } });
});

t.test('tryLock: one holder among open files, until it closes', async (t) => {
  const { disk, path, end } = await diskFixture();
  t.teardown(end);
  const first = await disk.open(path('lock'), { writable: true, create: true });
  const second = await disk.open(path('lock'), { writable: true });
  t.equal(await first.tryLock(), true);
  t.equal(await second.tryLock(), false);
  await first.close();
  t.equal(await second.tryLock(), true);
});

t.test('a closed file refuses everything; its descriptor is gone', async (t) => {
  const { disk, path, directory, end } = await diskFixture();
  t.teardown(end);
  const file = await disk.open(path('a'), { writable: true, create: true });
  t.equal(openDescriptors(directory).length, 1);
  // Operations under way when close() is called still succeed.
  const [size, closed, again] = [file.sizeBytes(), file.close(), file.close()];
  t.equal(await size, 0);
  await Promise.all([closed, again]);
  t.same(openDescriptors(directory), []);
  const operations: (() => Promise<unknown>)[] = [
    () => file.sizeBytes(),
    () => file.allocatedBytes(),
    () => file.extents(0, 1, 1),
    () => file.truncate(0),
    () => file.sync(),
    () => file.tryLock(),
  ];
  for (const operation of operations) {
    await t.rejects(operation() as Promise<void>, { code: 'CLOSED' });
  }
  for (let i = 0; i < 3; i++) await disk.open(path('a'), { writable: true });
  t.equal(openDescriptors(directory).length, 3);
  await disk.shutdown();
  t.same(openDescriptors(directory), [], 'shutdown closes what is open');
});

t.test('small files: written whole and durable, read with a limit', async (t) => {
  const { disk, path, end } = await diskFixture();
  t.teardown(end);
  await disk.writeFile(path('meta'), Buffer.from('{"a":1}'));
  t.equal((await stat(path('meta'))).mode & 0o777, 0o600);
  t.equal((await disk.readFile(path('meta'), 7)).toString(), '{"a":1}');
  await t.rejects(disk.readFile(path('meta'), 6), { code: 'LIMIT_EXCEEDED' });
  await disk.writeFile(path('meta'), Buffer.from('{}'));
  t.equal(await readFile(path('meta'), 'utf8'), '{}', 'replaced, not patched');
  await t.rejects(disk.readFile(path('none'), 10), { code: 'NOT_FOUND', message: /none/ });
  await t.rejects(disk.writeFile(path('no/such'), Buffer.alloc(1)), { code: 'NOT_FOUND' });
});

t.test('directories and names', async (t) => {
  const { disk, path, directory, end } = await diskFixture();
  t.teardown(end);
  await disk.makeDirectory(path('d'));
  t.equal((await stat(path('d'))).mode & 0o777, 0o700);
  await t.rejects(disk.makeDirectory(path('d')), { code: 'ALREADY_EXISTS' });
  for (const name of ['b', 'a', 'c']) await writeFile(path(`d/${name}`), name);
  t.same(await disk.list(path('d')), ['a', 'b', 'c']);
  await t.rejects(disk.list(path('none')), { code: 'NOT_FOUND' });
  await t.rejects(disk.list(path('d/a')), { code: 'INVALID_ARGUMENT' });
  await t.rejects(disk.removeDirectory(path('d')), { code: 'INVALID_STATE' });

  await disk.rename(path('d/a'), path('d/b'));
  t.equal(await readFile(path('d/b'), 'utf8'), 'a');
  await disk.exchange(path('d/b'), path('d/c'));
  t.equal(await readFile(path('d/b'), 'utf8'), 'c');
  t.equal(await readFile(path('d/c'), 'utf8'), 'a');
  await t.rejects(disk.exchange(path('d/b'), path('d/none')), { code: 'NOT_FOUND' });
  await disk.link(path('d/b'), path('d/e'));
  await t.rejects(disk.link(path('d/b'), path('d/c')), { code: 'ALREADY_EXISTS' });
  const [one, two] = [await disk.stat(path('d/b')), await disk.stat(path('d/e'))];
  t.equal(one.inode, two.inode);
  t.equal(one.sizeBytes, 1);
  t.equal(one.allocatedBytes, SECTOR_BYTES);
  t.equal(one.isDirectory, false);
  t.equal((await disk.stat(directory)).isDirectory, true);
  t.ok(one.modifiedNs > 1_700_000_000_000_000_000n && one.changedNs >= one.modifiedNs);
  t.equal(one.modifiedMs, Number(one.modifiedNs / 1_000_000n));
  await disk.syncDirectory(path('d'));
  await t.rejects(disk.syncDirectory(path('none')), { code: 'NOT_FOUND' });

  for (const name of ['b', 'c', 'e']) await disk.unlink(path(`d/${name}`));
  await t.rejects(disk.unlink(path('d/b')), { code: 'NOT_FOUND' });
  await disk.removeDirectory(path('d'));
  await t.rejects(disk.stat(path('d')), { code: 'NOT_FOUND' });
  await t.rejects(disk.list(NOWHERE), { code: 'NOT_FOUND', message: new RegExp(NOWHERE) });
});

t.test('errno values have names, codes and texts', (t) => {
  t.equal(errnoName(28), 'ENOSPC');
  t.equal(errnoName(122), 'EDQUOT');
  t.equal(errnoName(11), 'EAGAIN');
  t.equal(errnoName(95), 'EOPNOTSUPP');
  t.equal(errnoName(117), 'EUCLEAN');
  t.equal(errnoName(9999), 'E9999');
  t.match(diskErrorOfResult(-28, 'write', '/x/y'), {
    code: 'NO_SPACE',
    message: 'cannot write /x/y: no space left on device',
  });
  t.match(diskErrorOfResult(-5, 'read', '/x/y'), {
    code: 'IO_ERROR',
    message: 'cannot read /x/y: EIO',
    details: { errno: 'EIO', path: '/x/y' },
  });
  t.end();
});

t.test('the addon refuses arguments of the wrong kind with a TypeError', (t) => {
  const files = new addon.FileTable();
  const slab = addon.allocateSlab(4096);
  const wrong = undefined as unknown as number;
  const done = (): void => undefined;
  t.throws(() => addon.allocateSlab(0), TypeError);
  t.throws(() => addon.allocateSlab(2 ** 40), TypeError);
  t.throws(() => addon.allocateSlab(wrong), TypeError);
  t.throws(() => files.truncate(0, -1), TypeError);
  t.throws(() => files.truncate(0, 0.5), TypeError);
  t.throws(() => files.extents(0, 0, 1, wrong), TypeError);
  t.throws(() => files.open(wrong as unknown as string, 0, 0, true), TypeError);
  t.throws(() => new addon.DiskQueue(new ArrayBuffer(4096), files, 'auto', done), TypeError);
  t.throws(() => new addon.DiskQueue(slab, {} as typeof files, 'auto', done), TypeError);
  t.throws(
    () => new addon.DiskQueue(slab, files, 'auto', wrong as unknown as () => void),
    TypeError,
  );
  t.throws(() => new addon.DiskQueue(slab, files, 'best' as 'auto', done), /disk backend 'best'/);
  t.end();
});

t.test('a number of a closed file never means another file', async (t) => {
  const { path, end } = await diskFixture();
  t.teardown(end);
  const files = new addon.FileTable();
  await writeFile(path('a'), 'a');
  const numbers = new Set<number>();
  let file = -1;
  for (let i = 0; i < 100; i++) {
    file = await files.open(path('a'), 0, 0, false);
    t.ok(file >= 0 && !numbers.has(file));
    numbers.add(file);
    t.equal(await files.close(file), 0);
    t.equal(await files.close(file), -9);
    t.equal(await files.stat(file), -9);
  }
  t.equal(await files.sync(12345, true), -9);
});

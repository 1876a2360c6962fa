// The disk queue on both backends, against real files with O_DIRECT.

import { execFileSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { constants } from 'node:os';

import t from 'tap';

import { GIB, KIB, MIB, SECTOR_BYTES } from '../../src/core/units.js';
import { DISK_OP, type DiskFile, type DiskOp } from '../../src/disk/disk.js';
import {
  BACKENDS,
  diskFixture,
  mountRefusal,
  mountSmall,
  refusal,
  submit,
} from '../support/native-disk.js';

const { EBADF, EFAULT, EINVAL, ENOSPC } = constants.errno;

function fillSector(bytes: Uint8Array, bufferOffset: number, sector: number): void {
  const view = new DataView(bytes.buffer, bufferOffset, SECTOR_BYTES);
  for (let i = 0; i < SECTOR_BYTES; i += 4) view.setUint32(i, sector * 4096 + i);
}

function isSector(bytes: Uint8Array, offset: number, sector: number): boolean {
  const view = new DataView(bytes.buffer, bytes.byteOffset + offset, SECTOR_BYTES);
  for (let i = 0; i < SECTOR_BYTES; i += 4) {
    if (view.getUint32(i) !== sector * 4096 + i) return false;
  }
  return true;
}

const noMount = mountRefusal();

for (const backend of BACKENDS) {
  const skip = refusal(backend);

  t.test(`${backend}: what is written directly is what any reader finds`, { skip }, async (t) => {
    const { disk, path, end } = await diskFixture(backend);
    t.teardown(end);
    t.equal(disk.backend, backend);
    const file = await disk.open(path('data'), { writable: true, create: true });
    for (const lengthBytes of [SECTOR_BYTES, 64 * KIB, MIB]) {
      const bufferOffset = disk.slab.allocate(lengthBytes);
      const readOffset = disk.slab.allocate(lengthBytes);
      for (let at = 0; at < lengthBytes; at += SECTOR_BYTES) {
        fillSector(disk.slab.bytes, bufferOffset + at, at / SECTOR_BYTES);
      }
      const place = { lengthBytes, fileOffsetBytes: 2 * lengthBytes };
      t.equal(await submit(disk, file, DISK_OP.write, { ...place, bufferOffset }), lengthBytes);
      t.equal(await submit(disk, file, DISK_OP.sync), 0);
      t.equal(
        await submit(disk, file, DISK_OP.read, { ...place, bufferOffset: readOffset }),
        lengthBytes,
      );
      const written = disk.slab.bytes.subarray(bufferOffset, bufferOffset + lengthBytes);
      const read = disk.slab.bytes.subarray(readOffset, readOffset + lengthBytes);
      t.equal(Buffer.compare(written, read), 0, `${lengthBytes} bytes through the queue`);
      const whole = await readFile(path('data'));
      const found = whole.subarray(2 * lengthBytes, 3 * lengthBytes);
      t.equal(Buffer.compare(written, found), 0, `${lengthBytes} bytes through the page cache`);
    }
  });

  t.test(
    `${backend}: thousands of requests of one turn all finish, each with its own data`,
    { skip },
    async (t) => {
      const { disk, path, end } = await diskFixture(backend);
      t.teardown(end);
      const file = await disk.open(path('data'), { writable: true, create: true });
      const count = 5000;
      // Each buffer serves several sectors, one after the other.
      const buffers = Array.from({ length: 500 }, () => disk.slab.allocate(SECTOR_BYTES));
      for (let first = 0; first < count; first += buffers.length) {
        const results = buffers.map((bufferOffset, i) => {
          fillSector(disk.slab.bytes, bufferOffset, first + i);
          return submit(disk, file, DISK_OP.write, {
            bufferOffset,
            lengthBytes: SECTOR_BYTES,
            fileOffsetBytes: (first + i) * SECTOR_BYTES,
          });
        });
        t.ok((await Promise.all(results)).every((result) => result === SECTOR_BYTES));
      }
      const target = disk.slab.allocate(SECTOR_BYTES);
      let finished = 0;
      await new Promise<void>((resolve) => {
        for (let i = 0; i < count; i++) {
          void submit(disk, file, DISK_OP.read, {
            bufferOffset: target,
            lengthBytes: SECTOR_BYTES,
            fileOffsetBytes: i * SECTOR_BYTES,
          }).then((result) => {
            if (result === SECTOR_BYTES && ++finished === count) resolve();
          });
        }
        t.equal(disk.queue.pendingCount, count, 'more than the kernel takes at a time');
      });
      t.equal(disk.queue.pendingCount, 0);
      const whole = await readFile(path('data'));
      const wrong = Array.from({ length: count }, (_, i) => i).filter(
        (i) => !isSector(whole, i * SECTOR_BYTES, i),
      );
      t.same(wrong, [], 'every sector holds its own data');
    },
  );

  t.test(
    `${backend}: a request may submit itself again, thousands of times`,
    { skip },
    async (t) => {
      const { disk, path, end } = await diskFixture(backend);
      t.teardown(end);
      const file = await disk.open(path('data'), { writable: true, create: true });
      await file.truncate(MIB);
      await Promise.all(
        [1, 2, 3, 4, 5].map(
          (lane) =>
            new Promise<void>((resolve, reject) => {
              let left = 1000;
              disk.queue.submit({
                op: DISK_OP.write,
                file,
                bufferOffset: lane * SECTOR_BYTES,
                lengthBytes: SECTOR_BYTES,
                fileOffsetBytes: lane * SECTOR_BYTES,
                complete(result) {
                  if (result !== SECTOR_BYTES) reject(new Error(`result ${result}`));
                  else if (--left === 0) resolve();
                  else disk.queue.submit(this);
                },
              });
            }),
        ),
      );
      t.pass('all lanes ended');
    },
  );

  t.test(`${backend}: a read is short at the end of the file`, { skip }, async (t) => {
    const { disk, path, end } = await diskFixture(backend);
    t.teardown(end);
    for (const direct of [true, false]) {
      const file = await disk.open(path(`data-${direct}`), {
        writable: true,
        create: true,
        direct,
      });
      const read = (fileOffsetBytes: number): Promise<number> =>
        submit(disk, file, DISK_OP.read, { lengthBytes: 64 * KIB, fileOffsetBytes });
      await file.truncate(64 * KIB + 3 * SECTOR_BYTES + 512);
      t.equal(await read(64 * KIB), 3 * SECTOR_BYTES + 512);
      await file.truncate(64 * KIB + 777);
      t.equal(await read(64 * KIB), 777, 'at an odd length');
      t.equal(await read(0), 64 * KIB);
      t.equal(await read(128 * KIB), 0, 'beyond the end');
      await file.close();
    }
  });

  t.test(`${backend}: offsets beyond 4 GiB reach their place`, { skip }, async (t) => {
    const { disk, path, end } = await diskFixture(backend);
    t.teardown(end);
    const file = await disk.open(path('data'), { writable: true, create: true });
    const far = 6 * GIB + 3 * SECTOR_BYTES;
    disk.slab.bytes.fill(0xa5, 0, SECTOR_BYTES);
    for (const fileOffsetBytes of [far, 0]) {
      const place = { lengthBytes: SECTOR_BYTES, fileOffsetBytes };
      t.equal(await submit(disk, file, DISK_OP.write, place), SECTOR_BYTES);
    }
    t.same(await file.extents(0, 8 * GIB, 10), [
      { beginOffset: 0, endOffset: SECTOR_BYTES },
      { beginOffset: far, endOffset: far + SECTOR_BYTES },
    ]);
    const hole = { lengthBytes: 5 * GIB, fileOffsetBytes: 2 * GIB };
    t.equal(await submit(disk, file, DISK_OP.punchHole, hole), 0, 'a hole longer than 4 GiB');
    t.same(await file.extents(0, 8 * GIB, 10), [{ beginOffset: 0, endOffset: SECTOR_BYTES }]);
  });

  t.test(
    `${backend}: a punched hole frees its blocks, reads zero and keeps the size`,
    { skip },
    async (t) => {
      const { disk, path, end } = await diskFixture(backend);
      t.teardown(end);
      const file = await disk.open(path('data'), { writable: true, create: true });
      const bufferOffset = disk.slab.allocate(MIB);
      disk.slab.bytes.fill(0x5a, bufferOffset, bufferOffset + MIB);
      await submit(disk, file, DISK_OP.write, { bufferOffset, lengthBytes: MIB });
      const before = await file.allocatedBytes();
      const hole = { lengthBytes: 256 * KIB, fileOffsetBytes: 512 * KIB };
      t.equal(await submit(disk, file, DISK_OP.punchHole, hole), 0);
      t.equal(before - (await file.allocatedBytes()), 256 * KIB);
      t.equal(await file.sizeBytes(), MIB);
      t.same(await file.extents(0, MIB, 10), [
        { beginOffset: 0, endOffset: 512 * KIB },
        { beginOffset: 768 * KIB, endOffset: MIB },
      ]);
      await submit(disk, file, DISK_OP.read, { bufferOffset, lengthBytes: MIB });
      const bytes = disk.slab.bytes.subarray(bufferOffset, bufferOffset + MIB);
      t.ok(bytes.subarray(0, 512 * KIB).every((byte) => byte === 0x5a));
      t.ok(bytes.subarray(512 * KIB, 768 * KIB).every((byte) => byte === 0));
      t.ok(bytes.subarray(768 * KIB).every((byte) => byte === 0x5a));
    },
  );

  t.test(`${backend}: a zeroed range reads zero and is an extent`, { skip }, async (t) => {
    const { disk, path, end } = await diskFixture(backend);
    t.teardown(end);
    const file = await disk.open(path('data'), { writable: true, create: true });
    await file.truncate(MIB);
    const range = { lengthBytes: 64 * KIB, fileOffsetBytes: 128 * KIB };
    t.equal(await submit(disk, file, DISK_OP.zeroRange, range), 0);
    t.same(await file.extents(0, MIB, 10), [{ beginOffset: 128 * KIB, endOffset: 192 * KIB }]);
    disk.slab.bytes.fill(1, 0, SECTOR_BYTES);
    const sector = { lengthBytes: SECTOR_BYTES, fileOffsetBytes: 128 * KIB };
    t.equal(await submit(disk, file, DISK_OP.read, sector), SECTOR_BYTES);
    t.ok(disk.slab.bytes.subarray(0, SECTOR_BYTES).every((byte) => byte === 0));
    t.equal(await file.sizeBytes(), MIB);
  });

  t.test(`${backend}: a bad request fails alone, with an errno`, { skip }, async (t) => {
    const { disk, path, end } = await diskFixture(backend);
    t.teardown(end);
    const file = await disk.open(path('data'), { writable: true, create: true });
    const whole = { lengthBytes: SECTOR_BYTES };
    const slabBytes = disk.slab.memory.byteLength;
    t.equal(
      await submit(disk, file, DISK_OP.write, { ...whole, bufferOffset: slabBytes - 512 }),
      -EFAULT,
      'a buffer that leaves the slab',
    );
    t.equal(await submit(disk, file, DISK_OP.write, { lengthBytes: 2 ** 33 }), -EFAULT);
    t.equal(
      await submit(disk, file, DISK_OP.write, { ...whole, bufferOffset: 100 }),
      -EINVAL,
      'an unaligned buffer',
    );
    t.equal(await submit(disk, file, 9 as DiskOp, whole), -EINVAL, 'an unknown operation');
    t.equal(
      await submit(disk, file, DISK_OP.read, { ...whole, fileOffsetBytes: 2 ** 63 }),
      -EINVAL,
    );
    const readOnly = await disk.open(path('data'), { writable: false });
    t.equal(await submit(disk, readOnly, DISK_OP.write, whole), -EBADF, 'a read-only file');
    t.equal(await submit(disk, file, DISK_OP.write, whole), SECTOR_BYTES, 'the queue lives on');
  });

  t.test(
    `${backend}: close waits for earlier requests and refuses later ones`,
    { skip },
    async (t) => {
      const { disk, path, end } = await diskFixture(backend);
      t.teardown(end);
      const file = await disk.open(path('data'), { writable: true, create: true });
      await file.truncate(MIB);
      const events: string[] = [];
      const write = (name: string, to: DiskFile): Promise<void> =>
        submit(disk, to, DISK_OP.write, { lengthBytes: MIB }).then((result) => {
          events.push(result === MIB ? name : `${name} ${result}`);
        });
      // More than the addon takes at a time, so that some still wait in JavaScript at close().
      const early = Array.from({ length: 1500 }, () => write('early', file));
      const closed = file.close().then(() => events.push('closed'));
      const late = write('late', file);
      const other = await disk.open(path('data'), { writable: true });
      t.not(other.slot, file.slot);
      await Promise.all([...early, closed, late]);
      t.equal(events.filter((event) => event === 'early').length, 1500);
      t.ok(events.indexOf('closed') > events.lastIndexOf('early'), 'closed after the last write');
      t.ok(events.includes(`late ${-EBADF}`));
      await write('other', other);
      t.equal(events.at(-1), 'other', 'another file on the same path is not affected');
    },
  );

  t.test(
    `${backend}: shutdown waits, closes every file and refuses what follows`,
    { skip },
    async (t) => {
      const { disk, path, end } = await diskFixture(backend);
      t.teardown(end);
      const file = await disk.open(path('data'), { writable: true, create: true });
      const idle = await disk.open(path('data'), { writable: false });
      const writes = Array.from({ length: 1200 }, (_, i) =>
        submit(disk, file, DISK_OP.write, { lengthBytes: SECTOR_BYTES, fileOffsetBytes: i * 4096 }),
      );
      let written = 0;
      for (const write of writes) void write.then(() => written++);
      await disk.shutdown();
      t.equal(written, 1200);
      t.equal(await submit(disk, file, DISK_OP.sync), -EBADF);
      await t.rejects(idle.sizeBytes(), { code: 'CLOSED' });
      await t.rejects(disk.open(path('data'), { writable: false }), { code: 'CLOSED' });
      await disk.shutdown();
    },
  );

  t.test(
    `${backend}: a full file system says ENOSPC and the queue lives on`,
    { skip: skip || noMount },
    async (t) => {
      const { disk, path, directory, end } = await diskFixture(backend);
      mountSmall(directory);
      t.teardown(async () => {
        await disk.shutdown();
        execFileSync('umount', [directory]);
        await end();
      });
      const file = await disk.open(path('data'), { writable: true, create: true });
      const results = [];
      for (let i = 0; i < 4; i++) {
        const place = { lengthBytes: MIB, fileOffsetBytes: i * MIB };
        results.push(await submit(disk, file, DISK_OP.write, place));
      }
      t.same(results, [MIB, MIB, -ENOSPC, -ENOSPC]);
      await t.rejects(disk.writeFile(path('more'), Buffer.alloc(MIB)), {
        code: 'NO_SPACE',
        message: /more.*no space left on device/,
      });
      await t.rejects(file.allocate(0, 4 * MIB), { code: 'NO_SPACE' });
      await file.truncate(0);
      t.equal(await submit(disk, file, DISK_OP.write, { lengthBytes: MIB }), MIB);
    },
  );
}

// The programs people use against the server, on a memory device: what they say of it and what
// they copy must be right. A program that is not installed is named and left out.

import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { nbdUri } from '../../src/frontend/nbd/server.js';
import { MIB } from '../../src/core/units.js';
import { isInstalled, run, startNbdService, type NbdService } from '../support/nbd-service.js';

const SIZE_BYTES = 32 * MIB;

interface Target {
  readonly service: NbdService;
  /** Over the unix socket, then over TCP. */
  readonly uris: readonly [string, string];
}

/** A test that is left out, with a word about it, where the program is not installed. */
function withProgram(
  program: string,
  claim: string,
  body: (t: Test, target: Target) => Promise<void>,
): void {
  void t.test(`${program}: ${claim}`, async (t) => {
    if (!(await isInstalled(program))) {
      t.pass('left out', { skip: `${program} is not installed` });
      return;
    }
    const service = await startNbdService({ sizeBytes: SIZE_BYTES });
    t.teardown(() => service.stop());
    const unix = nbdUri({ kind: 'unix', path: service.socketPath }, 'vol');
    const tcp = nbdUri({ kind: 'tcp', host: '127.0.0.1', port: service.port }, 'vol');
    await body(t, { service, uris: [unix, tcp] });
    while (service.server.connections() > 0) {
      await new Promise((resolve) => setImmediate(resolve));
    }
    t.equal(service.buffersInUse(), 0, 'no buffer leaked');
  });
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** A sparse image: data at the start, a hole, data that ends inside a sector. */
function sparseImage(): Buffer {
  const image = Buffer.alloc(SIZE_BYTES);
  for (let i = 0; i < 3 * MIB; i++) image[i] = (i * 131 + (i >> 9)) & 0xff;
  for (let i = 20 * MIB + 512; i < 21 * MIB + 77; i++) image[i] = (i * 17) & 0xff;
  return image;
}

withProgram(
  'nbdinfo',
  'tells the export, lists it and maps its holes',
  async (t, { service, uris }) => {
    for (const uri of uris) {
      const info = JSON.parse(await run('nbdinfo', '--json', uri)) as Record<string, unknown>;
      t.match(info, { protocol: 'newstyle-fixed', TLS: false, structured: true });
      const [exported] = info['exports'] as Record<string, unknown>[];
      t.match(exported, {
        'export-name': 'vol',
        description: 'test volume',
        'export-size': SIZE_BYTES,
        can_multi_conn: true,
        can_fast_zero: true,
        is_read_only: false,
        block_size_preferred: 4096,
        block_size_maximum: 32 * MIB,
      });
    }
    const [uri] = uris;
    const listed = await run('nbdinfo', '--list', '--json', uri.replace('/vol?', '/?'));
    t.match(JSON.parse(listed), { exports: [{ 'export-name': 'vol' }] });
    service.device.content.fill(1, MIB, 2 * MIB);
    service.device.allocated.fill(1, 256, 512);
    const map = JSON.parse(await run('nbdinfo', '--map', '--json', uri)) as unknown;
    t.same(map, [
      { offset: 0, length: MIB, type: 3, description: 'hole,zero' },
      { offset: MIB, length: MIB, type: 0, description: 'data' },
      { offset: 2 * MIB, length: 30 * MIB, type: 3, description: 'hole,zero' },
    ]);
  },
);

withProgram('nbdcopy', 'copies in and out without a changed byte', async (t, { service, uris }) => {
  const image = sparseImage();
  const source = join(service.directory, 'source');
  writeFileSync(source, image);
  for (const [index, uri] of uris.entries()) {
    service.device.content.fill(0xaa);
    service.device.allocated.fill(1);
    await run('nbdcopy', '--connections=4', source, uri);
    t.equal(sha256(service.device.content), sha256(image), 'in');
    t.equal(service.device.allocated[5 * 256], 0, 'a hole stays one');
    const copy = join(service.directory, `copy-${index}`);
    await run('nbdcopy', uri, copy);
    t.equal(sha256(readFileSync(copy)), sha256(image), 'out');
  }
});

withProgram('qemu-img', 'converts in and out, and compares', async (t, { service, uris }) => {
  const image = sparseImage();
  const source = join(service.directory, 'source');
  writeFileSync(source, image);
  for (const uri of uris) {
    service.device.content.fill(0xaa);
    await run('qemu-img', 'convert', '-n', '-f', 'raw', '-O', 'raw', source, uri);
    t.equal(sha256(service.device.content), sha256(image));
    t.match(await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', source, uri), /identical/);
    const copy = join(service.directory, 'copy.qcow2');
    await run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', uri, copy);
    t.match(
      await run('qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', source, copy),
      /identical/,
    );
  }
});

withProgram('qemu-io', 'writes, zeroes and discards unaligned ranges', async (t, { uris }) => {
  for (const uri of uris) {
    const output = await run(
      'qemu-io',
      ...['-f', 'raw'],
      ...['-c', 'write -P 5 1 3M', '-c', 'read -P 5 1 3M', '-c', 'write -f -P 6 511 1'],
      ...['-c', 'read -P 6 511 1', '-c', 'read -P 5 512 100', '-c', 'write -z 1000 1M'],
      ...['-c', 'write -z -u 2M 64k', '-c', 'read -P 0 2M 64k', '-c', 'discard 4k 8k'],
      ...[
        '-c',
        'read -P 0 1000 1M',
        '-c',
        'flush',
        '-c',
        'aio_write -P 7 8M 9M',
        '-c',
        'aio_flush',
      ],
      ...['-c', 'read -P 7 8M 9M', uri],
    );
    t.notMatch(output, /failed|error/i);
    t.match(output, /read 9437184\/9437184/);
  }
});

withProgram('nbd-client', 'lists the exports', async (t, { service }) => {
  const output = await run('nbd-client', '-l', '127.0.0.1', String(service.port));
  t.match(output, /vol: test volume/);
});

withProgram(
  'fio',
  'verifies what it wrote, at depth 32 over several connections',
  async (t, target) => {
    if (!(await run('fio', '--enghelp')).includes('nbd')) {
      t.pass('left out', { skip: 'this fio has no nbd engine' });
      return;
    }
    const [unix, tcp] = target.uris;
    const blocks = [
      [unix, '4k-4k'],
      [tcp, '512-256k'],
      [unix, '512k-2m'],
    ] as const;
    for (const [uri, range] of blocks) {
      const output = await run(
        'fio',
        ...['--name=verify', '--ioengine=nbd', `--uri=${uri}`, '--rw=randwrite'],
        ...[`--bsrange=${range}`, '--iodepth=32', '--size=8m', '--offset_increment=8m'],
        ...['--numjobs=4', '--thread', '--verify=crc32c', '--verify_fatal=1', '--group_reporting'],
        ...['--output-format=json', `--aux-path=${target.service.directory}`],
      );
      const report = JSON.parse(output.slice(output.indexOf('{'))) as {
        jobs: { error: number; read: { total_ios: number }; write: { total_ios: number } }[];
      };
      const [job] = report.jobs;
      t.equal(job?.error, 0);
      t.ok((job?.write.total_ios ?? 0) > 0);
      t.equal(job?.read.total_ios, job?.write.total_ios, `${range}: all of it was read back`);
    }
  },
);

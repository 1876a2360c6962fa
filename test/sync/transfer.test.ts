// Our sender and our receiver together, on a real file system: what arrives is the same file, hole
// for hole, and what fails fails loudly and can be done again.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';

import { StorageError } from '../../src/core/errors.js';
import { silentLogger } from '../../src/core/log.js';
import { MIB } from '../../src/core/units.js';
import type { Disk } from '../../src/disk/disk.js';
import { createNativeDisk } from '../../src/disk/native-disk.js';
import { BandwidthLimit } from '../../src/sync/bandwidth.js';
import { readChecksumRecord, writeChecksumRecord } from '../../src/sync/checksum-store.js';
import { RECEIVER_IDLE_MS } from '../../src/sync/constants.js';
import { copyLocally } from '../../src/sync/local-copy.js';
import { ManualClock } from '../support/manual-clock.js';
import { MemoryDisk } from '../support/memory-disk.js';
import {
  RawConnection,
  extentsOf,
  fastClock,
  launchReceiver,
  makeSparseFile,
  randomPart,
  rawRequest,
  send,
  sha256Of,
} from '../support/sync-transfer.js';

const directory = mkdtempSync(join(tmpdir(), 'ssync-'));
const disk = createNativeDisk({ log: silentLogger });
t.teardown(async () => {
  await disk.shutdown();
  rmSync(directory, { recursive: true });
});

const SIZE_BYTES = 16 * MIB;
/** Odd places and lengths, one piece above 2 MiB, and the file's first and last sector. */
const PARTS = [
  randomPart(0, 4096),
  randomPart(MIB + 4096, 5 * MIB + 12_288),
  randomPart(9 * MIB, 4096),
  { offsetBytes: 10 * MIB, data: Buffer.alloc(8192) },
  randomPart(SIZE_BYTES - 4096, 4096),
];
const DATA_BYTES = PARTS.reduce((sum, part) => sum + part.data.length, 0);

function at(name: string): string {
  return join(directory, name);
}

async function sameFile(source: Disk, from: string, target: Disk, to: string): Promise<boolean> {
  const same = (await sha256Of(source, from)) === (await sha256Of(target, to));
  const fromExtents = JSON.stringify(await extentsOf(source, from));
  return same && fromExtents === JSON.stringify(await extentsOf(target, to));
}

function buffersAreFree(d: Disk): boolean {
  return d.slab.freeCounts().every((c) => c.freeCount === c.count);
}

await makeSparseFile(disk, at('source.img'), SIZE_BYTES, PARTS);

t.test('a new file arrives extent for extent, zeros that were written included', async (t) => {
  const progress: number[] = [];
  const received: number[] = [];
  const receiver = await launchReceiver(disk, directory, 'new.img', {
    onProgress: (bytes) => received.push(bytes),
  });
  const result = await send(disk, at('source.img'), receiver.port, {
    onProgress: (bytes) => progress.push(bytes),
  });
  t.equal(await receiver.done, 'closed');
  t.ok(await sameFile(disk, at('source.img'), disk, at('new.img')));
  t.match(result, { sizeBytes: SIZE_BYTES, dataBytes: DATA_BYTES, sentBytes: DATA_BYTES });
  const sum = (values: number[]): number => values.reduce((a, b) => a + b, 0);
  t.equal(sum(progress), DATA_BYTES, 'the sender reports every byte once');
  t.equal(sum(received), DATA_BYTES, 'so does the receiver');
  t.ok(buffersAreFree(disk));
});

t.test('an equal file costs no data, a different one only what differs', async (t) => {
  const again = await launchReceiver(disk, directory, 'new.img');
  t.equal((await send(disk, at('source.img'), again.port)).sentBytes, 0);
  t.equal(await again.done, 'closed');

  const file = await disk.open(at('new.img'), { writable: true });
  await file.close();
  await makeSparseFile(disk, at('new.img'), SIZE_BYTES, [
    randomPart(9 * MIB, 4096), // other content
    randomPart(12 * MIB, 4096), // data in a hole of the source
  ]);
  const repair = await launchReceiver(disk, directory, 'new.img');
  t.equal((await send(disk, at('source.img'), repair.port)).sentBytes, 4096);
  t.equal(await repair.done, 'closed');
  t.ok(await sameFile(disk, at('source.img'), disk, at('new.img')));
});

t.test('a destination that is larger is cut, one that is smaller grows', async (t) => {
  for (const sizeBytes of [32 * MIB, MIB]) {
    await makeSparseFile(disk, at('sized.img'), sizeBytes, [randomPart(sizeBytes - 4096, 4096)]);
    const receiver = await launchReceiver(disk, directory, 'sized.img');
    await send(disk, at('source.img'), receiver.port);
    t.equal(await receiver.done, 'closed');
    t.ok(await sameFile(disk, at('source.img'), disk, at('sized.img')), `from ${sizeBytes}`);
  }
});

t.test('a .meta file whose end is inside a sector replaces the old one at once', async (t) => {
  for (const text of ['{"Name":"a"}\n', `{"Name":"${'b'.repeat(5000)}"}\n`, '']) {
    await disk.writeFile(at('source.img.meta'), Buffer.from(text));
    const receiver = await launchReceiver(disk, directory, 'target.img.meta');
    await send(disk, at('source.img.meta'), receiver.port);
    t.equal(await receiver.done, 'closed');
    t.equal((await disk.readFile(at('target.img.meta'), MIB)).toString(), text);
  }
});

t.test('a .meta transfer that breaks off leaves the old file whole', async (t) => {
  await disk.writeFile(at('kept.img.meta'), Buffer.from('old'));
  const receiver = await launchReceiver(disk, directory, 'kept.img.meta');
  const connection = new RawConnection(receiver.port);
  await connection.exchange(rawRequest('GET', '/v1-ssync/open?begin=0&end=50&directIO=false'));
  const head = 'POST /v1-ssync/writeData?begin=0&end=10 HTTP/1.1\r\nHost: x\r\n';
  await connection.exchange(`${head}Content-Length: 10\r\n\r\n0123456789`);
  const answer = await connection.exchange(
    rawRequest('POST', '/v1-ssync/close?checksum=&checksumMethod='),
  );
  t.match(answer?.statusLine, /409/);
  t.equal(await receiver.done, 'failed');
  t.equal((await disk.readFile(at('kept.img.meta'), MIB)).toString(), 'old');
});

t.test('fast sync skips a file whose hash record agrees and is current', async (t) => {
  const { changedNs } = await disk.stat(at('source.img'));
  const record = { method: 'crc64', checksum: '0123456789abcdef' };
  await writeChecksumRecord(disk, at('source.img'), { ...record, changedNs });
  t.teardown(() => disk.unlink(at('source.img.checksum')));

  const first = await launchReceiver(disk, directory, 'fast.img');
  const sent = await send(disk, at('source.img'), first.port, { isFastSync: true });
  t.match(sent, { wasSkipped: false, sentBytes: DATA_BYTES });
  t.equal(await first.done, 'closed');
  t.match(await readChecksumRecord(disk, at('fast.img')), record, 'the record came with the file');

  const second = await launchReceiver(disk, directory, 'fast.img');
  t.match(await send(disk, at('source.img'), second.port, { isFastSync: true }), {
    wasSkipped: true,
    dataBytes: 0,
  });
  t.equal(await second.done, 'closed');

  // Whatever touches the file makes its record worthless.
  await makeSparseFile(disk, at('fast.img'), SIZE_BYTES, [randomPart(9 * MIB, 4096)]);
  const third = await launchReceiver(disk, directory, 'fast.img');
  t.match(await send(disk, at('source.img'), third.port, { isFastSync: true }), {
    wasSkipped: false,
    sentBytes: 4096,
  });
  t.equal(await third.done, 'closed');
  t.ok(await sameFile(disk, at('source.img'), disk, at('fast.img')));
});

t.test('a receiver killed in mid-transfer fails the sender; a second run resumes', async (t) => {
  const main = fileURLToPath(new URL('../support/sync-receiver-main.js', import.meta.url));
  const child = spawn(process.execPath, [main, directory, 'killed.img'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [port] = (await once(child.stdout, 'data')) as [Buffer];
  let pieces = 0;
  const killed = send(disk, at('source.img'), Number(port), {
    clock: fastClock(100),
    timeoutMs: 1_000_000,
    onProgress: () => {
      pieces++;
      if (pieces === 2) child.kill('SIGKILL');
    },
  });
  await t.rejects(killed, { name: 'StorageError', code: /CONNECTION_/ });
  t.ok(buffersAreFree(disk), 'no buffer is left behind');

  const receiver = await launchReceiver(disk, directory, 'killed.img');
  const result = await send(disk, at('source.img'), receiver.port);
  t.equal(await receiver.done, 'closed');
  t.ok(result.sentBytes < DATA_BYTES, 'what had arrived is not sent again');
  t.ok(await sameFile(disk, at('source.img'), disk, at('killed.img')));
});

t.test('a full disk is reported as one and not retried', async (t) => {
  const small = new MemoryDisk({ capacityBytes: 2 * MIB });
  const receiver = await launchReceiver(small, '/', 'full.img');
  await t.rejects(send(disk, at('source.img'), receiver.port), {
    code: 'NO_SPACE',
    message: /no space left on device/,
  });
  t.equal(await receiver.done, 'closed', 'the failed sender frees the port');
  t.ok(buffersAreFree(small));
});

t.test('after a failed transfer no checksum is recorded', async (t) => {
  const { changedNs } = await disk.stat(at('source.img'));
  const record = { method: 'crc64', checksum: '0123456789abcdef', changedNs };
  await writeChecksumRecord(disk, at('source.img'), record);
  t.teardown(() => disk.unlink(at('source.img.checksum')));
  const closes: string[] = [];
  const server = createServer((request, response) => {
    request.resume();
    if (request.url?.includes('/close') === true) closes.push(request.url);
    response.statusCode = request.url?.includes('/sendHole') === true ? 400 : 200;
    response.end('false');
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await t.rejects(send(disk, at('source.img'), port), { code: 'PEER_ERROR' });
  server.close();
  t.same(closes, ['/v1-ssync/close?checksum=&checksumMethod=']);
});

t.test('a receiver does not record a checksum a peer sends for an incomplete file', async (t) => {
  const target = new MemoryDisk();
  const receiver = await launchReceiver(target, '/', 'part.img');
  const connection = new RawConnection(receiver.port);
  await connection.exchange(rawRequest('GET', '/v1-ssync/open?begin=0&end=8192&directIO=true'));
  await connection.exchange(rawRequest('POST', '/v1-ssync/sendHole?begin=0&end=4096'));
  await connection.exchange(
    rawRequest('POST', '/v1-ssync/close?checksum=0123456789abcdef&checksumMethod=crc64'),
  );
  t.equal(await receiver.done, 'closed');
  await t.rejects(target.stat('/part.img.checksum'), { code: 'NOT_FOUND' });
});

t.test('garbage and wrong ranges get an error and touch nothing', async (t) => {
  const target = new MemoryDisk();
  const receiver = await launchReceiver(target, '/', 'g.img');
  const ask = async (request: string): Promise<string> => {
    const connection = new RawConnection(receiver.port);
    const answer = await connection.exchange(request);
    connection.close();
    return answer?.statusLine.split(' ')[1] ?? 'closed';
  };
  const body = (path: string, length: string, text = ''): string =>
    `POST /v1-ssync/${path} HTTP/1.1\r\nHost: x\r\n${length}\r\n\r\n${text}`;
  t.equal(await ask(rawRequest('POST', '/v1-ssync/sendHole?begin=0&end=4096')), '409', 'not open');
  t.equal(await ask(rawRequest('GET', '/v1-ssync/open?begin=0&end=100&directIO=true')), '400');
  t.equal(await ask(rawRequest('GET', '/v1-ssync/open?begin=0&end=8388608&directIO=true')), '200');
  const cases: [string, string][] = [
    [rawRequest('GET', '/v1-ssync/open?begin=0&end=4096&directIO=true'), '409'],
    [rawRequest('GET', '/'), '404'],
    [rawRequest('GET', '/v1-ssync/../../etc/passwd'), '404'],
    [rawRequest('POST', '/v1-ssync/open?begin=0&end=8388608&directIO=true'), '400'],
    [rawRequest('POST', '/v1-ssync/sendHole?begin=-1&end=4096'), '400'],
    [rawRequest('POST', '/v1-ssync/sendHole?begin=4096&end=0'), '400'],
    [rawRequest('POST', '/v1-ssync/sendHole?begin=0&end=99999999999999999999'), '400'],
    [rawRequest('POST', '/v1-ssync/sendHole?begin=0&end=16777216'), '400'],
    [rawRequest('POST', '/v1-ssync/sendHole?begin=1&end=4096'), '400'],
    [rawRequest('GET', '/v1-ssync/getChecksum?begin=0&end=4194304'), '400'],
    [body('writeData?begin=0&end=4194304', 'Content-Length: 4194304'), '400'],
    [body('writeData?begin=8388608&end=8392704', 'Content-Length: 4096'), '400'],
    [body('writeData?begin=0&end=4096', 'Content-Length: 4095'), '400'],
    [body('writeData?begin=0&end=4096', 'Content-Length: 4097'), '400'],
    [body('writeData?begin=100&end=4196', 'Content-Length: 4096'), '400'],
    [body('writeData?begin=0&end=4096', 'Transfer-Encoding: chunked', '0\r\n\r\n'), '400'],
    ['\0\0\0\0garbage\r\n\r\n', '400'],
  ];
  for (const [request, status] of cases) {
    t.equal(await ask(request), status, JSON.stringify(request.split('\r\n')[0]));
  }
  t.same(await extentsOf(target, '/g.img'), [], 'nothing was written');
  const half = new RawConnection(receiver.port);
  half.write(body('writeData?begin=0&end=8192', 'Content-Length: 8192', 'x'.repeat(4096)));
  half.socket.end();
  await half.ended();
  t.equal(await ask(rawRequest('POST', '/v1-ssync/sendHole?begin=0&end=4096')), '200', 'it lives');
  await receiver.cancel();
  t.ok(buffersAreFree(target), 'no buffer is left behind');
});

t.test('names that leave the directory are refused', async (t) => {
  for (const name of ['', '.', '..', '../x', 'a/b', 'a\\b', 'a\0b', 'x'.repeat(256)]) {
    await t.rejects(
      launchReceiver(disk, directory, name),
      { code: 'INVALID_NAME' },
      JSON.stringify(name.slice(0, 8)),
    );
  }
});

t.test('a receiver that nobody asks anything for 300 s stops', async (t) => {
  const clock = new ManualClock();
  const receiver = await launchReceiver(disk, directory, 'idle.img', { clock });
  clock.advance(RECEIVER_IDLE_MS - 1000);
  const connection = new RawConnection(receiver.port);
  await connection.exchange(rawRequest('GET', '/v1-ssync/open?begin=0&end=4096&directIO=true'));
  clock.advance(RECEIVER_IDLE_MS - 1000);
  const hole = rawRequest('POST', '/v1-ssync/sendHole?begin=0&end=4096');
  t.match((await connection.exchange(hole))?.statusLine, /200/, 'requests keep it alive');
  clock.advance(RECEIVER_IDLE_MS + 1000);
  clock.advance(RECEIVER_IDLE_MS + 1000);
  t.equal(await receiver.done, 'idle');
  await connection.ended();
});

t.test('the sender waits for a receiver that starts late and repeats what got a 500', async (t) => {
  const probe = createServer();
  probe.listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address() as AddressInfo;
  probe.close();
  await once(probe, 'close');
  const sending = send(disk, at('source.img'), port, {
    clock: fastClock(20),
    timeoutMs: 1_000_000,
  });
  const target = new MemoryDisk();
  let faults = 2;
  target.fault = (call) => {
    if (call.kind !== 'write' || faults === 0) return null;
    faults--;
    return 'IO_ERROR';
  };
  const receiver = await launchReceiver(target, '/', 'late.img', { port });
  await sending;
  t.equal(await receiver.done, 'closed');
  t.equal(faults, 0, 'it did fail twice');
  t.ok(await sameFile(disk, at('source.img'), target, '/late.img'));
});

t.test('what close has answered for survives a power failure at once', async (t) => {
  const target = new MemoryDisk();
  await disk.writeFile(at('durable.img.meta'), Buffer.from('{"Name":"durable"}'));
  const { changedNs } = await disk.stat(at('source.img'));
  const record = { method: 'crc64', checksum: '0123456789abcdef' };
  await writeChecksumRecord(disk, at('source.img'), { ...record, changedNs });
  t.teardown(() => disk.unlink(at('source.img.checksum')));
  for (const [from, to] of [
    ['source.img', 'd.img'],
    ['durable.img.meta', 'd.img.meta'],
  ] as const) {
    const receiver = await launchReceiver(target, '/', to);
    await send(disk, at(from), receiver.port);
    t.equal(await receiver.done, 'closed');
    target.restart(); // nothing that was not synced survives
    t.equal(await sha256Of(target, `/${to}`), await sha256Of(disk, at(from)), to);
  }
  t.match(await readChecksumRecord(target, '/d.img'), record);
});

t.test('a hash is not recorded when any piece failed on the way', async (t) => {
  const { changedNs } = await disk.stat(at('source.img'));
  const record = { method: 'crc64', checksum: '0123456789abcdef', changedNs };
  await writeChecksumRecord(disk, at('source.img'), record);
  t.teardown(() => disk.unlink(at('source.img.checksum')));
  const target = new MemoryDisk();
  let faults = 1;
  target.fault = (call) => (call.kind === 'write' && faults-- > 0 ? 'IO_ERROR' : null);
  const receiver = await launchReceiver(target, '/', 'once.img');
  await send(disk, at('source.img'), receiver.port, {
    clock: fastClock(20),
    timeoutMs: 1_000_000,
  });
  t.equal(await receiver.done, 'closed');
  t.ok(await sameFile(disk, at('source.img'), target, '/once.img'));
  await t.rejects(target.stat('/once.img.checksum'), { code: 'NOT_FOUND' });
});

t.test('cancelling the sender closes the receiver and fails with CANCELLED', async (t) => {
  const abort = new AbortController();
  const receiver = await launchReceiver(disk, directory, 'cancelled.img');
  const sending = send(disk, at('source.img'), receiver.port, {
    signal: abort.signal,
    onProgress: () => abort.abort(new StorageError('CANCELLED', 'enough')),
  });
  await t.rejects(sending, { code: 'CANCELLED', message: 'enough' });
  t.equal(await receiver.done, 'closed');
});

t.test('the bandwidth limit makes bytes wait for their turn', async (t) => {
  const clock = new ManualClock();
  const limit = new BandwidthLimit(clock, 1000);
  await limit.take(1000);
  let isThrough = false;
  const second = limit.take(500).then(() => {
    isThrough = true;
  });
  clock.advance(499);
  await new Promise(setImmediate);
  t.notOk(isThrough, 'half a second is not over');
  clock.advance(1);
  await second;
  t.ok(isThrough);
});

t.test('a local copy keeps holes and hash record', async (t) => {
  const { changedNs } = await disk.stat(at('source.img'));
  const record = { method: 'crc64', checksum: 'fedcba9876543210' };
  await writeChecksumRecord(disk, at('source.img'), { ...record, changedNs });
  t.teardown(() => disk.unlink(at('source.img.checksum')));
  const { signal } = new AbortController();
  const targetPath = at('local.img');
  await copyLocally({ disk, sourcePath: at('source.img'), targetPath, signal });
  t.ok(await sameFile(disk, at('source.img'), disk, targetPath));
  t.match(await readChecksumRecord(disk, targetPath), record);
});

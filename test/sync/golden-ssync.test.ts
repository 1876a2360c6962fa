// Conversations that Longhorn's own sync agents had, replayed against our receiver byte for byte
// and produced again by our sender. Masked in answers: the order of headers and Date; in requests:
// Host, User-Agent and Accept-Encoding, and which of the parallel connections carried a request.

import { createHash } from 'node:crypto';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import t, { type Test } from 'tap';

import type { Disk } from '../../src/disk/disk.js';
import { CHECKSUM_SUFFIX, decodeChecksumRecord } from '../../src/sync/checksum-record.js';
import { writeChecksumRecord } from '../../src/sync/checksum-store.js';
import { FIXTURES_MISSING, fixturesDir } from '../support/fixtures.js';
import { MemoryDisk } from '../support/memory-disk.js';
import {
  RawConnection,
  extentsOf,
  launchReceiver,
  loadConversation,
  makeSparseFile,
  send,
  sha256Of,
} from '../support/sync-transfer.js';
import type { GoldenConversation, HttpAnswer, Part } from '../support/sync-transfer.js';

const fixtures = fixturesDir();
const skip = fixtures === null ? FIXTURES_MISSING : false;
const SIZE_BYTES = 8 * 1024 * 1024;
const CHECKSUM = '7a74835b9544c092';

/** The source's data, which the conversation for a new destination carries completely. */
function sourceParts(): Part[] {
  const { connections } = loadConversation(fixtures ?? '', 'ssync-new-file');
  return connections.flat().flatMap((request) => {
    const match = /writeData\?begin=(\d+)/.exec(request.line);
    return match === null ? [] : [{ offsetBytes: Number(match[1]), data: request.body }];
  });
}

function masked(answer: HttpAnswer | null): unknown {
  if (answer === null) return null;
  const { Date: _date, ...headers } = answer.headers;
  const body = answer.body.replace(/"change_time":"[^"]*"/, '"change_time":"masked"');
  if (body !== answer.body) delete headers['Content-Length'];
  return { ...answer, headers, body };
}

function isFirst(line: string): boolean {
  return /getRecordedMetadata|\/open\?/.test(line);
}

/** Plays the conversation: what opens first, then connection by connection, close last. */
async function replay(
  t: Test,
  conversation: GoldenConversation,
  port: number,
  maskOf: (line: string, answer: HttpAnswer | null) => unknown = (_line, answer) => masked(answer),
): Promise<void> {
  const tracks = conversation.connections.map((requests) => ({
    connection: new RawConnection(port),
    requests,
  }));
  const play = async (select: (line: string) => boolean): Promise<void> => {
    for (const { connection, requests } of tracks) {
      for (const request of requests.filter((r) => select(r.line))) {
        const answer = await connection.exchange(request.bytes);
        t.same(maskOf(request.line, answer), maskOf(request.line, request.answer), request.line);
      }
    }
  };
  const isClose = (line: string): boolean => line.includes('/close?');
  await play(isFirst);
  await play((line) => !isFirst(line) && !isClose(line));
  await play(isClose);
  for (const { connection } of tracks) connection.close();
}

async function checkDestination(
  t: Test,
  disk: Disk,
  path: string,
  conversation: GoldenConversation,
): Promise<void> {
  t.equal(await sha256Of(disk, path), conversation.destSha256, 'content');
  t.same(await extentsOf(disk, path), conversation.destExtents, 'extents');
}

t.test('a Go sender makes a new file on our receiver', { skip }, async (t) => {
  const disk = new MemoryDisk();
  const conversation = loadConversation(fixtures ?? '', 'ssync-new-file');
  const receiver = await launchReceiver(disk, '/', 'dst.img');
  await replay(t, conversation, receiver.port);
  t.equal(await receiver.done, 'closed');
  await checkDestination(t, disk, '/dst.img', conversation);
  await t.rejects(disk.stat('/dst.img.checksum'), { code: 'NOT_FOUND' });
});

t.test('a Go sender finds an equal file on our receiver', { skip }, async (t) => {
  const disk = new MemoryDisk();
  const conversation = loadConversation(fixtures ?? '', 'ssync-existing-same');
  await makeSparseFile(disk, '/dst.img', SIZE_BYTES, sourceParts());
  const receiver = await launchReceiver(disk, '/', 'dst.img');
  await replay(t, conversation, receiver.port);
  t.equal(await receiver.done, 'closed');
  await checkDestination(t, disk, '/dst.img', conversation);
});

t.test('a Go sender repairs a different file on our receiver', { skip }, async (t) => {
  const disk = new MemoryDisk();
  const conversation = loadConversation(fixtures ?? '', 'ssync-existing-different');
  const wrong = Buffer.alloc(4096, 0x5a);
  await makeSparseFile(disk, '/dst.img', SIZE_BYTES, [
    ...sourceParts(),
    { offsetBytes: 1048576 + 8192, data: wrong },
    { offsetBytes: 4096 * 1000, data: wrong },
  ]);
  const receiver = await launchReceiver(disk, '/', 'dst.img');
  // The recorded hash of the wrong block is that of bytes which were not kept.
  const wrongPiece = /getChecksum\?begin=1048576&/;
  await replay(t, conversation, receiver.port, (line, answer) =>
    wrongPiece.test(line) && answer !== null
      ? masked({ ...answer, body: String(answer.body.length) })
      : masked(answer),
  );
  t.equal(await receiver.done, 'closed');
  await checkDestination(t, disk, '/dst.img', conversation);
});

t.test('a Go sender writes a .meta file whose end is inside a sector', { skip }, async (t) => {
  const disk = new MemoryDisk();
  const conversation = loadConversation(fixtures ?? '', 'ssync-meta');
  const receiver = await launchReceiver(disk, '/', 'dst.img.meta');
  await replay(t, conversation, receiver.port);
  t.equal(await receiver.done, 'closed');
  t.equal(await sha256Of(disk, '/dst.img.meta'), conversation.destSha256);
});

t.test('a Go sender records its hash with our receiver, which then skips', { skip }, async (t) => {
  const disk = new MemoryDisk();
  const first = loadConversation(fixtures ?? '', 'ssync-hashed-fast-1');
  const receiver = await launchReceiver(disk, '/', 'dst2.img');
  await replay(t, first, receiver.port);
  t.equal(await receiver.done, 'closed');
  await checkDestination(t, disk, '/dst2.img', first);
  const text = (await disk.readFile(`/dst2.img${CHECKSUM_SUFFIX}`, 4096)).toString();
  t.match(decodeChecksumRecord(text), { method: 'crc64', checksum: CHECKSUM, lastHashedAt: '' });

  const second = await launchReceiver(disk, '/', 'dst2.img');
  await replay(t, loadConversation(fixtures ?? '', 'ssync-hashed-fast-2'), second.port);
  t.equal(await second.done, 'closed');
  t.equal((await disk.readFile(`/dst2.img${CHECKSUM_SUFFIX}`, 4096)).toString(), text);
});

interface RecordedRequest {
  readonly line: string;
  readonly headers: Record<string, string | undefined>;
  readonly bodySha256: string;
}

/** A server that answers as the recorded receiver did and notes what it was asked. */
async function recordSender(
  conversation: GoldenConversation,
  run: (port: number) => Promise<unknown>,
): Promise<RecordedRequest[]> {
  const golden = conversation.connections.flat();
  const requests: RecordedRequest[] = [];
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
    const line = `${request.method} ${request.url} HTTP/1.1`;
    requests.push({
      line,
      headers: {
        accept: request.headers.accept,
        'content-length': request.headers['content-length'],
        connection: request.headers.connection,
      },
      bodySha256: createHash('sha256').update(Buffer.concat(chunks)).digest('hex'),
    });
    const answer = golden.find((candidate) => candidate.line === line)?.answer;
    response.statusCode = Number(answer?.statusLine.split(' ')[1] ?? 500);
    response.end(answer?.body ?? 'not in the conversation');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  try {
    await run((server.address() as AddressInfo).port);
  } finally {
    server.close();
  }
  return requests;
}

function goldenRequests(conversation: GoldenConversation): RecordedRequest[] {
  return conversation.connections.flat().map((request) => ({
    line: request.line,
    headers: {
      accept: 'application/json',
      'content-length': request.line.startsWith('POST') ? String(request.body.length) : undefined,
      connection: undefined,
    },
    bodySha256: createHash('sha256').update(request.body).digest('hex'),
  }));
}

function byLine(requests: RecordedRequest[]): RecordedRequest[] {
  return [...requests].sort((a, b) => (a.line < b.line ? -1 : 1));
}

const SENDER_CASES = [
  { name: 'ssync-new-file', file: 'volume-snap-ss1.img', isFastSync: false, hasRecord: false },
  { name: 'ssync-existing-same', file: 'volume-snap-ss1.img', isFastSync: false, hasRecord: false },
  { name: 'ssync-existing-different', file: 'x.img', isFastSync: false, hasRecord: false },
  { name: 'ssync-hashed-fast-1', file: 'x.img', isFastSync: true, hasRecord: true },
  { name: 'ssync-hashed-fast-2', file: 'x.img', isFastSync: true, hasRecord: true },
];

for (const { name, file, isFastSync, hasRecord } of SENDER_CASES) {
  t.test(`our sender asks what a Go sender asks: ${name}`, { skip }, async (t) => {
    const disk = new MemoryDisk();
    const path = `/${file}`;
    await makeSparseFile(disk, path, SIZE_BYTES, sourceParts());
    if (hasRecord) {
      const { changedNs } = await disk.stat(path);
      await writeChecksumRecord(disk, path, { method: 'crc64', checksum: CHECKSUM, changedNs });
    }
    const conversation = loadConversation(fixtures ?? '', name);
    const requests = await recordSender(conversation, (port) =>
      send(disk, path, port, { isFastSync }),
    );
    t.same(byLine(requests), byLine(goldenRequests(conversation)));
    const expectedFirst = isFastSync ? /getRecordedMetadata/ : /\/open\?/;
    t.match(requests[0]?.line, expectedFirst, 'it opens first');
    t.match(requests.at(-1)?.line, /\/close\?/, 'it closes last');
    t.ok(
      disk.slab.freeCounts().every((c) => c.freeCount === c.count),
      'no buffer is kept',
    );
  });
}

t.test('our sender asks what a Go sender asks: ssync-meta', { skip }, async (t) => {
  const disk = new MemoryDisk();
  const conversation = loadConversation(fixtures ?? '', 'ssync-meta');
  const body = conversation.connections.flat().find((r) => r.line.includes('writeData'))?.body;
  await disk.writeFile('/a.img.meta', body ?? Buffer.alloc(0));
  const requests = await recordSender(conversation, (port) => send(disk, '/a.img.meta', port));
  t.same(requests, goldenRequests(conversation));
});

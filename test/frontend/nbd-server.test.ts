// The server on real sockets: listeners, several clients, limits, an orderly end, and TLS.

import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import t from 'tap';
import { BLOCK_OP } from '../../src/core/block-device.js';
import { realClock } from '../../src/core/clock-real.js';
import { CONNECTIONS_MAX } from '../../src/core/limits.js';
import { silentLogger } from '../../src/core/log.js';
import { createNbdServer, nbdUri } from '../../src/frontend/nbd/server.js';
import { CMD, OPT, clientFlags, infoData, option, request } from '../support/nbd-client.js';
import { isInstalled, run, startNbdService } from '../support/nbd-service.js';
import { RawClient } from '../support/raw-client.js';

const GREETING_BYTES = 18;
const ACK = 1;
const TLS_REQUIRED = 0x80000005;

async function enter(client: RawClient, flags = clientFlags()): Promise<void> {
  await client.read(GREETING_BYTES);
  client.write(Buffer.concat([flags, option(OPT.go, infoData(''))]));
  while ((await client.readOptionReply()).type !== ACK);
}

async function call(client: RawClient, bytes: Buffer): Promise<number> {
  client.write(bytes);
  return (await client.read(16)).readUInt32BE(4);
}

const FLUSH = request({ command: CMD.flush, cookie: 1 });

t.test('URIs are those of libnbd and qemu', async (t) => {
  const unix = { kind: 'unix', path: '/run/my vol/nbd.sock' } as const;
  t.equal(nbdUri(unix, 'a/b c'), 'nbd+unix:///a%2Fb%20c?socket=/run/my%20vol/nbd.sock');
  t.equal(nbdUri({ kind: 'tcp', host: 'node-1', port: 9 }, 'v'), 'nbd://node-1:9/v');
  t.equal(nbdUri({ kind: 'tcp', host: '::1', port: 9 }, 'v', true), 'nbds://[::1]:9/v');
  t.equal(nbdUri(unix, '', true), 'nbds+unix:///?socket=/run/my%20vol/nbd.sock');
});

t.test('both endpoints serve several clients at once', async (t) => {
  const service = await startNbdService({ sizeBytes: 1 << 20 });
  t.teardown(() => service.stop());
  const clients = await Promise.all([
    RawClient.connect({ path: service.socketPath }),
    RawClient.connect({ path: service.socketPath }),
    RawClient.connect({ port: service.port }),
  ]);
  for (const client of clients) await enter(client);
  t.equal(service.server.connections(), 3);
  const payload = Buffer.from('seen by all');
  const [writer, ...readers] = clients as [RawClient, RawClient, RawClient];
  t.equal(await call(writer, request({ command: CMD.write, cookie: 1, offset: 5, payload })), 0);
  for (const reader of readers) {
    const read = request({ command: CMD.read, cookie: 1, offset: 5, length: payload.length });
    t.equal(await call(reader, read), 0);
    t.ok((await reader.read(payload.length)).equals(payload));
  }
  for (const client of clients) client.write(request({ command: CMD.disc, cookie: 1 }));
  for (const client of clients) await client.closed;
});

t.test('a client that vanishes mid-write leaves no trace, and others live on', async (t) => {
  const service = await startNbdService({ sizeBytes: 1 << 20 });
  t.teardown(() => service.stop());
  const witness = await RawClient.connect({ path: service.socketPath });
  await enter(witness);
  const bytes = request({ command: CMD.write, cookie: 1, payload: Buffer.alloc(200_000, 7) });
  for (const length of [20, 28, 5_000, 150_000]) {
    const client = await RawClient.connect({ path: service.socketPath });
    await enter(client);
    t.equal(await call(client, FLUSH), 0);
    client.write(bytes.subarray(0, length));
    (client.stream as Socket).destroySoon();
    await client.closed;
  }
  for (const damaged of [Buffer.alloc(500, 0xff), Buffer.from('GET / HTTP/1.1\r\n\r\n')]) {
    const client = await RawClient.connect({ port: service.port });
    await client.read(GREETING_BYTES);
    client.write(damaged);
    await client.closed;
  }
  t.equal(await call(witness, FLUSH), 0);
  t.equal(service.device.countOf(BLOCK_OP.write), 0);
  witness.destroy();
});

t.test('connections beyond the limit are refused, and there is room again', async (t) => {
  const service = await startNbdService({ sizeBytes: 1 << 20 });
  t.teardown(() => service.stop());
  const clients: RawClient[] = [];
  for (let i = 0; i < CONNECTIONS_MAX; i++) {
    const client = await RawClient.connect({ path: service.socketPath });
    await client.read(GREETING_BYTES);
    clients.push(client);
  }
  const refused = await RawClient.connect({ path: service.socketPath });
  await refused.closed;
  const [first] = clients as [RawClient];
  first.write(Buffer.concat([clientFlags(), option(OPT.abort)]));
  t.equal((await first.readOptionReply()).type, ACK);
  await first.closed;
  for (let isIn = false; !isIn; ) {
    // The server learns of an end a little after the client does.
    const client = await RawClient.connect({ path: service.socketPath });
    isIn = await client.read(GREETING_BYTES).then(
      () => true,
      () => false,
    );
    client.destroy();
  }
  for (const client of clients) client.destroy();
});

t.test('closing answers what is in flight, and breaks what does not end', async (t) => {
  const service = await startNbdService({ sizeBytes: 1 << 20 });
  const { device, server } = service;
  const [idle, busy, stuck, early] = (await Promise.all(
    [1, 2, 3, 4].map(() => RawClient.connect({ path: service.socketPath })),
  )) as [RawClient, RawClient, RawClient, RawClient];
  await early.read(GREETING_BYTES);
  for (const client of [idle, busy, stuck]) await enter(client);
  device.isHolding = true;
  for (const client of [busy, stuck]) client.write(FLUSH);
  while (device.held.length < 2) await new Promise((resolve) => setImmediate(resolve));
  const closing = server.close({ drainMs: 200 });
  await Promise.all([idle.closed, early.closed]);
  device.release(0);
  t.equal((await busy.read(16)).readUInt32BE(4), 0);
  await busy.closed;
  await stuck.closed;
  device.release();
  await closing;
  t.equal(server.connections(), 0);
  await t.rejects(RawClient.connect({ path: service.socketPath }));
  t.equal(service.buffersInUse(), 0);
  await service.stop();
});

t.test('an endpoint in use is refused, and nothing stays open behind', async (t) => {
  const service = await startNbdService({ sizeBytes: 1 << 20 });
  t.teardown(() => service.stop());
  const { slab, transport, directory } = service;
  const free = { kind: 'unix', path: join(directory, 'free.sock') } as const;
  const create = (path: string): ReturnType<typeof createNbdServer> =>
    createNbdServer({
      transport,
      slab,
      clock: realClock,
      log: silentLogger,
      exports: new Map(),
      endpoints: [free, { kind: 'unix', path }],
    });
  await t.rejects(create(service.socketPath), { code: 'ADDRESS_IN_USE' });
  await t.rejects(RawClient.connect({ path: free.path }));
  const server = await create(join(directory, 'other.sock'));
  await server.close({ drainMs: 100 });
});

interface Certificates {
  readonly directory: string;
  readonly ca: Buffer;
  readonly certificate: Buffer;
  readonly key: Buffer;
  readonly clientCertificate: Buffer;
  readonly clientKey: Buffer;
}

/** A CA and certificates for a server on this machine and for a client, in libnbd's file names. */
async function makeCertificates(): Promise<Certificates> {
  const directory = mkdtempSync(join(tmpdir(), 'nbd-tls-'));
  const at = (name: string): string => join(directory, name);
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
  writeFileSync(at('server.ext'), 'subjectAltName=IP:127.0.0.1,DNS:localhost\n');
  writeFileSync(at('client.ext'), 'extendedKeyUsage=clientAuth\n');
  const ca = ['-keyout', at('ca-key.pem'), '-out', at('ca-cert.pem')];
  await run('openssl', 'req', '-x509', ...newKey, '-subj', '/CN=test CA', '-days', '2', ...ca);
  for (const role of ['server', 'client']) {
    const files = ['-keyout', at(`${role}-key.pem`), '-out', at(`${role}.csr`)];
    await run('openssl', 'req', ...newKey, '-subj', `/CN=${role}`, ...files);
    const signer = ['-CA', at('ca-cert.pem'), '-CAkey', at('ca-key.pem'), '-CAcreateserial'];
    const signed = ['-extfile', at(`${role}.ext`), '-out', at(`${role}-cert.pem`), '-days', '2'];
    await run('openssl', 'x509', '-req', '-in', at(`${role}.csr`), ...signer, ...signed);
  }
  return {
    directory,
    ca: readFileSync(at('ca-cert.pem')),
    certificate: readFileSync(at('server-cert.pem')),
    key: readFileSync(at('server-key.pem')),
    clientCertificate: readFileSync(at('client-cert.pem')),
    clientKey: readFileSync(at('client-key.pem')),
  };
}

async function startTls(client: RawClient, options: object): Promise<RawClient> {
  client.write(option(OPT.startTls));
  if ((await client.readOptionReply()).type !== ACK) throw new Error('STARTTLS refused');
  client.stream.removeAllListeners('data');
  const secured: TLSSocket = connectTls({
    socket: client.stream as Socket,
    servername: 'localhost',
    ...options,
  });
  await once(secured, 'secureConnect');
  return new RawClient(secured);
}

t.test('TLS', async (t) => {
  if (!(await isInstalled('openssl'))) {
    t.pass('left out', { skip: 'openssl is not installed' });
    return;
  }
  const files = await makeCertificates();
  t.teardown(() => rmSync(files.directory, { recursive: true, force: true }));
  const { certificate, key, ca } = files;

  await t.test('required: nothing works before it, everything after it', async (t) => {
    const service = await startNbdService({
      sizeBytes: 1 << 20,
      tls: { mode: 'require', certificate, key },
    });
    t.teardown(() => service.stop());
    const plain = await RawClient.connect({ port: service.port });
    await plain.read(GREETING_BYTES);
    plain.write(Buffer.concat([clientFlags(), option(OPT.list)]));
    t.equal((await plain.readOptionReply()).type, TLS_REQUIRED);
    const secured = await startTls(plain, { ca });
    secured.write(option(OPT.go, infoData('vol')));
    while ((await secured.readOptionReply()).type !== ACK);
    const payload = Buffer.alloc(300_000, 'secret');
    t.equal(await call(secured, request({ command: CMD.write, cookie: 1, payload })), 0);
    const read = request({ command: CMD.read, cookie: 2, length: payload.length });
    t.equal(await call(secured, read), 0);
    t.ok((await secured.read(payload.length)).equals(payload));
    secured.write(request({ command: CMD.disc, cookie: 3 }));
    await secured.closed;

    const early = await RawClient.connect({ port: service.port });
    await early.read(GREETING_BYTES);
    early.write(Buffer.concat([clientFlags(), option(OPT.startTls), option(OPT.list)]));
    await early.closed;
    t.pass('bytes sent in the clear behind STARTTLS end the connection');

    const noise = await RawClient.connect({ port: service.port });
    await noise.read(GREETING_BYTES);
    noise.write(Buffer.concat([clientFlags(), option(OPT.startTls)]));
    await noise.readOptionReply();
    noise.write(Buffer.alloc(100, 'this is no TLS'));
    await noise.closed;
    t.pass('a failed TLS handshake ends the connection');
  });

  await t.test('allowed: clients choose; requests may follow the handshake at once', async (t) => {
    const service = await startNbdService({
      sizeBytes: 1 << 20,
      tls: { mode: 'allow', certificate, key },
    });
    t.teardown(() => service.stop());
    const plain = await RawClient.connect({ path: service.socketPath });
    await plain.read(GREETING_BYTES);
    const payload = Buffer.alloc(100_000, 'p');
    const write = request({ command: CMD.write, cookie: 1, payload });
    plain.write(Buffer.concat([clientFlags(), option(OPT.go, infoData('')), write, FLUSH]));
    while ((await plain.readOptionReply()).type !== ACK);
    t.equal((await plain.read(16)).readUInt32BE(4), 0);
    t.equal((await plain.read(16)).readUInt32BE(4), 0);
    t.ok(payload.equals(service.device.content.subarray(0, payload.length)));
    const other = await RawClient.connect({ path: service.socketPath });
    await other.read(GREETING_BYTES);
    other.write(clientFlags());
    const secured = await startTls(other, { ca });
    secured.write(option(OPT.go, infoData('')));
    while ((await secured.readOptionReply()).type !== ACK);
    t.equal(await call(secured, FLUSH), 0);
    plain.destroy();
    secured.destroy();
  });

  await t.test('client certificates are asked for when there is a CA for them', async (t) => {
    const service = await startNbdService({
      sizeBytes: 1 << 20,
      tls: { mode: 'require', certificate, key, clientCa: ca },
    });
    t.teardown(() => service.stop());
    const open = async (): Promise<RawClient> => {
      const client = await RawClient.connect({ port: service.port });
      await client.read(GREETING_BYTES);
      client.write(clientFlags());
      return client;
    };
    const known = await startTls(await open(), {
      ca,
      cert: files.clientCertificate,
      key: files.clientKey,
    });
    known.write(option(OPT.go, infoData('')));
    while ((await known.readOptionReply()).type !== ACK);
    known.destroy();
    const unknown = await startTls(await open(), { ca }).catch(() => null);
    if (unknown !== null) {
      unknown.write(option(OPT.go, infoData('')));
      await t.rejects(unknown.readOptionReply());
    }
    t.ok(true, 'a client without a certificate gets nowhere');
  });

  await t.test('libnbd connects over TLS', async (t) => {
    if (!(await isInstalled('nbdinfo'))) {
      t.pass('left out', { skip: 'nbdinfo is not installed' });
      return;
    }
    const service = await startNbdService({
      sizeBytes: 1 << 20,
      tls: { mode: 'require', certificate, key, clientCa: ca },
    });
    t.teardown(() => service.stop());
    const uri = nbdUri({ kind: 'tcp', host: '127.0.0.1', port: service.port }, 'vol', true);
    const text = await run('nbdinfo', `${uri}?tls-certificates=${files.directory}`);
    t.match(text, /with TLS/);
    t.match(text, /export-size: 1048576/);
  });
});

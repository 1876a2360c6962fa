// What the native transport promises beyond what every Connection does: resets, pauses, refusals,
// socket files, limits.

import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import t from 'tap';

import { MIB } from '../../src/core/units.js';
import type { Connection } from '../../src/transport/connection.js';
import { Bench, deferred, openNativePair, RecordingHandler, sendBytes } from './pair.js';

const bench = new Bench();
t.teardown(() => bench.close());

const TCP_ANY = { kind: 'tcp', host: '127.0.0.1', port: 0 } as const;

/** A native server connection whose client is a plain Node socket. */
async function acceptNodeClient(): Promise<{ client: net.Socket; server: RecordingHandler }> {
  const accepted = deferred<Connection>();
  const listener = await bench.transport.listen(TCP_ANY, accepted.resolve);
  const port = (listener.address as { port: number }).port;
  const client = net.connect(port, '127.0.0.1');
  client.on('error', () => undefined);
  await once(client, 'connect');
  const connection = await accepted.promise;
  await listener.close();
  t.match(connection.peer, /^127\.0\.0\.1:\d+$/);
  return { client, server: new RecordingHandler(connection) };
}

t.test('native: a reset in the middle of a payload is CONNECTION_LOST, once', async (t) => {
  const { client, server } = await acceptNodeClient();
  const target = bench.slab.allocate(MIB);
  server.onReceived = (begin, end) => {
    server.connection.receiveInto(target, MIB);
    return end - begin;
  };
  client.write(Buffer.alloc(1000));
  await server.until(() => server.offers === 1);
  client.resetAndDestroy();
  t.match(await server.closedWith(), { code: 'CONNECTION_LOST', details: { errno: 'ECONNRESET' } });
  t.equal(server.ends.length, 1);
  bench.slab.release(target);
});

t.test('native: a reset is noticed while paused', async (t) => {
  const { client, server } = await acceptNodeClient();
  server.onReceived = () => {
    server.connection.pause();
    return 0;
  };
  client.write('abc');
  await server.until(() => server.offers === 1);
  client.write('more that stays in the kernel');
  client.resetAndDestroy();
  t.match(await server.closedWith(), { code: 'CONNECTION_LOST' });
});

t.test('native: a client that leaves while paused is noticed without reading', async (t) => {
  const { client, server } = await acceptNodeClient();
  server.connection.pause();
  client.end();
  t.equal(await server.closedWith(), null);
});

t.test('native: bytes and then an end, all while paused, wait for resume()', async (t) => {
  const pair = await openNativePair(bench, { kind: 'unix', path: bench.socketPath() });
  const left = new RecordingHandler(pair.left);
  const right = new RecordingHandler(pair.right);
  right.connection.pause();
  sendBytes(left, Buffer.from('late'));
  await left.until(() => left.tokens.length === 1);
  left.connection.destroy();
  // Other sockets of the same loop go round several times: a busy poll would starve none of them.
  const other = await openNativePair(bench, TCP_ANY);
  other.left.destroy();
  other.right.destroy();
  t.equal(right.ends.length, 0);
  right.connection.resume();
  t.equal(await right.closedWith(), null);
  t.equal(String(right.bytes()), 'late');
});

t.test('native: a dead port, a missing path and an unknown name are refused clearly', async (t) => {
  const listener = await bench.transport.listen(TCP_ANY, () => undefined);
  await listener.close();
  const connect = bench.transport.connect.bind(bench.transport);
  await t.rejects(connect(listener.address, 1000), { code: 'CONNECTION_REFUSED' });
  const missing = { kind: 'unix', path: bench.socketPath() } as const;
  await t.rejects(connect(missing, 1000), { code: 'CONNECTION_REFUSED' });
  const unknown = { kind: 'tcp', host: 'no such host', port: 1 } as const;
  await t.rejects(connect(unknown, 1000), { code: 'NOT_FOUND' });
});

t.test('native: connecting to a listener that never accepts ends with TIMEOUT', async (t) => {
  const path = bench.socketPath();
  const script = `require('net').createServer().listen({ path: ${JSON.stringify(path)}, backlog: 1 },
    () => process.stdout.write('ready'))`;
  const server = spawn(process.execPath, ['-e', script]);
  t.teardown(() => server.kill('SIGKILL'));
  await once(server.stdout, 'data');
  server.kill('SIGSTOP');
  const opened: Connection[] = [];
  const fillBacklog = async (): Promise<void> => {
    for (;;) opened.push(await bench.transport.connect({ kind: 'unix', path }, 100));
  };
  await t.rejects(fillBacklog(), { code: 'TIMEOUT' });
  t.ok(opened.length > 0);
  for (const connection of opened) connection.destroy();
});

t.test('native: names resolve, IPv6 works', async (t) => {
  for (const host of ['localhost', '::1']) {
    const pair = await openNativePair(bench, { kind: 'tcp', host, port: 0 });
    const right = new RecordingHandler(pair.right);
    const left = new RecordingHandler(pair.left);
    sendBytes(left, Buffer.from(host));
    await right.until(() => right.receivedBytes === host.length);
    left.connection.end();
    t.equal(await right.closedWith(), null, `${host}: a clean end`);
    t.equal(await left.closedWith(), null);
  }
});

t.test(
  'native: a unix socket is private, a stale file is replaced, a live one is not',
  async (t) => {
    const { transport } = bench;
    const path = bench.socketPath();
    const endpoint = { kind: 'unix', path } as const;
    const first = await transport.listen(endpoint, () => undefined);
    t.equal(statSync(path).mode & 0o777, 0o600);
    await t.rejects(
      transport.listen(endpoint, () => undefined),
      { code: 'ADDRESS_IN_USE' },
    );
    await first.close();
    await first.close();
    t.notOk(existsSync(path), 'removed when closed');

    const listen = `require('net').createServer().listen(${JSON.stringify(path)},
    () => process.kill(process.pid, 'SIGKILL'))`;
    spawnSync(process.execPath, ['-e', listen]);
    t.ok(existsSync(path), 'a killed server leaves its file');
    const second = await transport.listen(endpoint, (connection) => connection.destroy());
    (await transport.connect(endpoint, 1000)).destroy();
    await second.close();

    writeFileSync(path, 'a file of somebody');
    await t.rejects(
      transport.listen(endpoint, () => undefined),
      { code: 'ADDRESS_IN_USE' },
    );
    t.equal(statSync(path).size, 18, 'what is no socket is left alone');
  },
);

t.test('native: a unix path has at most 107 bytes', async (t) => {
  const { transport } = bench;
  const fill = 107 - Buffer.byteLength(bench.directory) - 1;
  const longest = `${bench.directory}/${'p'.repeat(fill)}`;
  await (await transport.listen({ kind: 'unix', path: longest }, () => undefined)).close();
  const tooLong = { kind: 'unix', path: `${longest}p` } as const;
  await t.rejects(
    transport.listen(tooLong, () => undefined),
    { code: 'INVALID_ARGUMENT' },
  );
  await t.rejects(transport.connect(tooLong, 100), { code: 'INVALID_ARGUMENT' });
  const noDirectory = { kind: 'unix', path: `${bench.directory}/none/s` } as const;
  await t.rejects(
    transport.listen(noDirectory, () => undefined),
    { code: 'INVALID_ARGUMENT' },
  );
});

t.test('native: a port in use is ADDRESS_IN_USE', async (t) => {
  const listener = await bench.transport.listen(TCP_ANY, () => undefined);
  const again = bench.transport.listen(listener.address, () => undefined);
  await t.rejects(again, { code: 'ADDRESS_IN_USE' });
  await listener.close();
});

t.test('native: connections beyond the memory are refused, the others live on', async (t) => {
  const small = new Bench(5);
  const { transport, regions } = small;
  const servers: Connection[] = [];
  const twoAccepted = deferred<void>();
  const listener = await transport.listen(TCP_ANY, (connection) => {
    servers.push(connection);
    if (servers.length === 2) twoAccepted.resolve();
  });
  const clients = [
    await transport.connect(listener.address, 1000),
    await transport.connect(listener.address, 1000),
  ];
  await twoAccepted.promise;
  const unserved = new RecordingHandler(await transport.connect(listener.address, 1000));
  t.equal(await unserved.closedWith(), null, 'accepted and closed at once');
  const taken = [regions.take()];
  await t.rejects(transport.connect(listener.address, 1000), { code: 'LIMIT_EXCEEDED' });
  const server = new RecordingHandler(servers[0] as Connection);
  sendBytes(server, Buffer.from('still here'));
  const client = new RecordingHandler(clients[0] as Connection);
  await client.until(() => client.receivedBytes === 10);
  for (const region of taken) if (region !== null) regions.give(region);
  await small.close();
  t.equal(regions.inUseCount(), 0, 'shutdown closes what is left');
  await client.closedWith();
  await t.rejects(transport.connect(listener.address, 1000), { code: 'CANCELLED' });
});

t.test('native: 500 connections opened and closed leave no descriptor and no memory', async (t) => {
  const descriptors = (): number => readdirSync('/proc/self/fd').length;
  const path = bench.socketPath();
  const ended: Promise<unknown>[] = [];
  const listener = await bench.transport.listen({ kind: 'unix', path }, (connection) => {
    const server = new RecordingHandler(connection);
    ended.push(server.closedWith());
  });
  const before = descriptors();
  for (let i = 0; i < 500; i++) {
    const connection = await bench.transport.connect(listener.address, 1000);
    const client = new RecordingHandler(connection);
    sendBytes(client, Buffer.from('hello'));
    if (i % 2 === 0) connection.end();
    else connection.destroy();
    await client.closedWith();
  }
  while (ended.length < 500) await new Promise(setImmediate);
  await Promise.all(ended);
  t.equal(descriptors(), before);
  t.equal(bench.regions.inUseCount(), 0);
  await listener.close();
});

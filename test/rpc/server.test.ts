// The server and client among bad peers: garbage, cut connections, restarts, shutdown with calls in
// flight. Real sockets; peers that break the protocol write raw bytes.

import { mkdtemp, rm } from 'node:fs/promises';
import { connect as connectHttp2 } from 'node:http2';
import { connect, createServer as createTcpServer, type AddressInfo, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import {
  HealthCheckResponse_ServingStatus as SERVING,
  HealthDefinition,
} from '../../src/api/generated/health.js';
import {
  type ReplicaGetResponse,
  ReplicaServiceDefinition,
} from '../../src/api/generated/replica.js';
import type { Clock } from '../../src/core/clock.js';
import { realClock } from '../../src/core/clock-real.js';
import { silentLogger } from '../../src/core/log.js';
import {
  createChannel,
  createClient,
  type RpcAddress,
  type RpcClient,
} from '../../src/rpc/client.js';
import { createRpcServer, type RpcServer } from '../../src/rpc/server.js';
import { RPC_STATUS, RpcError } from '../../src/rpc/status.js';

const EMPTY: ReplicaGetResponse = { replica: undefined };

type Replica = typeof ReplicaServiceDefinition;

function newServer(clock: Clock = realClock): RpcServer {
  return createRpcServer({ clock, log: silentLogger });
}

async function listening(t: Test, server: RpcServer): Promise<number> {
  const port = await server.listen('127.0.0.1', 0);
  t.teardown(() => server.close(0));
  return port;
}

function clientOf(
  t: Test,
  address: number | RpcAddress,
  clock: Clock = realClock,
): RpcClient<Replica> {
  const target = typeof address === 'number' ? { host: '127.0.0.1', port: address } : address;
  const channel = createChannel(target, { clock, connectTimeoutMs: 5000 });
  t.teardown(() => channel.close());
  return createClient(ReplicaServiceDefinition, channel);
}

async function rpcErrorOf(promise: Promise<unknown>): Promise<RpcError> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof RpcError) return error;
    throw error;
  }
  throw new Error('the call did not fail');
}

const GOAWAY_FRAME_TYPE = 7;

/** Sends raw bytes; resolves when the server has closed the connection or, if asked, said GOAWAY. */
function sendRaw(port: number, bytes: Uint8Array, until: 'goaway' | 'close'): Promise<void> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => socket.write(bytes));
    let received = Buffer.alloc(0);
    socket.on('error', () => undefined);
    socket.on('close', () => resolve());
    socket.on('data', (chunk) => {
      received = Buffer.concat([received, chunk]);
      for (let at = 0; at + 9 <= received.length; at += 9 + received.readUIntBE(at, 3)) {
        if (received[at + 3] === GOAWAY_FRAME_TYPE && until === 'goaway') socket.destroy();
      }
    });
  });
}

/** A handler that waits until it is told to answer. */
function gate(): {
  entered: Promise<void>;
  open: () => void;
  handler: () => Promise<ReplicaGetResponse>;
} {
  let enter = (): void => undefined;
  let open = (): void => undefined;
  const entered = new Promise<void>((resolve) => (enter = resolve));
  const opened = new Promise<void>((resolve) => (open = resolve));
  const handler = async (): Promise<ReplicaGetResponse> => {
    enter();
    await opened;
    return EMPTY;
  };
  return { entered, open: () => open(), handler };
}

t.test('garbage ends its own connection and nothing else', async (t) => {
  const port = await listening(
    t,
    newServer().addService(ReplicaServiceDefinition, { replicaGet: () => EMPTY }),
  );
  const client = clientOf(t, port);
  t.same(await client.replicaGet({}), EMPTY);
  const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
  const settings = Buffer.from('000000040000000000', 'hex');
  const garbage = {
    'plain HTTP/1': Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n'),
    'random bytes': Buffer.from(Array.from({ length: 4096 }, (_, i) => (i * 7919) & 0xff)),
    'a frame longer than allowed': Buffer.concat([
      preface,
      settings,
      Buffer.from('ffffff000000000001', 'hex'),
      Buffer.alloc(70_000),
    ]),
    'DATA for a stream that is not open': Buffer.concat([
      preface,
      settings,
      Buffer.from('000001000000000005', 'hex'),
      Buffer.alloc(1),
    ]),
    'a broken header block': Buffer.concat([
      preface,
      settings,
      Buffer.from('000004010500000001ffffffff', 'hex'),
    ]),
  };
  for (const [what, bytes] of Object.entries(garbage)) {
    await sendRaw(port, bytes, 'goaway');
    t.same(await client.replicaGet({}), EMPTY, `after ${what}`);
  }
});

t.test('HTTP/2 that is not gRPC gets an HTTP status; half a message gets an error', async (t) => {
  const port = await listening(
    t,
    newServer().addService(ReplicaServiceDefinition, { replicaGet: () => EMPTY }),
  );
  const session = connectHttp2(`http://127.0.0.1:${port}`);
  t.teardown(() => session.destroy());
  const path = '/ptypes.ReplicaService/ReplicaGet';
  const ask = (headers: Record<string, string>, body: Buffer): Promise<Record<string, unknown>> =>
    new Promise((resolve, reject) => {
      const stream = session.request({ ':path': path, ':method': 'POST', ...headers });
      let answer: Record<string, unknown> = {};
      stream.on('response', (h) => (answer = { ...answer, ...h }));
      stream.on('trailers', (h) => (answer = { ...answer, ...h }));
      stream.on('error', reject);
      stream.on('close', () => resolve(answer));
      stream.resume();
      stream.end(body);
    });
  const grpc = { 'content-type': 'application/grpc' };
  const empty = Buffer.alloc(5);
  t.match(await ask({ 'content-type': 'text/plain' }, empty), { ':status': 415 });
  t.match(await ask({ ...grpc, ':method': 'PUT' }, empty), { ':status': 405 });
  t.match(await ask(grpc, empty), { ':status': 200, 'grpc-status': '0' });
  t.match(await ask(grpc, Buffer.from('0000000005aa', 'hex')), { 'grpc-status': '13' });
  t.match(await ask(grpc, Buffer.alloc(0)), { 'grpc-status': '13' });
  t.match(
    await ask(grpc, Buffer.alloc(10)),
    { 'grpc-status': '13' },
    'two requests in a unary call',
  );
  t.match(await ask(grpc, Buffer.from('0100000000', 'hex')), { 'grpc-status': '13' }, 'compressed');
  t.match(await ask({ ...grpc, 'grpc-encoding': 'gzip' }, empty), {
    'grpc-status': '12',
    'grpc-accept-encoding': 'identity',
  });
  t.match(await ask({ ...grpc, 'grpc-timeout': 'soon' }, empty), { 'grpc-status': '13' });
  t.match(await ask({ ...grpc, 'grpc-timeout': '99999999H' }, empty), { 'grpc-status': '0' });
  t.match(await ask({ ...grpc, ':path': '/nonsense' }, empty), { 'grpc-status': '12' });
});

t.test('a peer that stays silent instead of speaking HTTP/2 is dropped', async (t) => {
  const timers: { delayMs: number; callback: () => void }[] = [];
  const clock: Clock = {
    ...realClock,
    after: (delayMs, callback) => {
      timers.push({ delayMs, callback });
      return { cancel: () => undefined };
    },
  };
  const server = newServer(clock);
  const port = await server.listen('127.0.0.1', 0);
  const closed = sendRaw(port, Buffer.alloc(0), 'close');
  while (timers.length === 0) await new Promise((resolve) => setImmediate(resolve));
  t.equal(timers[0]?.delayMs, 10_000);
  timers[0]?.callback();
  await closed;
  await server.close(0);
});

t.test('an idle connection is told to go; one with a call in flight is not', async (t) => {
  const { entered, open, handler } = gate();
  const server = createRpcServer({ clock: realClock, log: silentLogger, idleSessionMs: 50 });
  const port = await listening(
    t,
    server.addService(ReplicaServiceDefinition, { replicaGet: handler }),
  );
  const client = clientOf(t, port);
  const running = client.replicaGet({});
  await entered;
  const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
  const dataWithoutStream = Buffer.from('00000004000000000000000100000000000500', 'hex');
  await sendRaw(port, Buffer.concat([preface, dataWithoutStream]), 'close');
  await sendRaw(port, Buffer.concat([preface, dataWithoutStream.subarray(0, 9)]), 'close');
  open();
  t.same(await running, EMPTY);
  t.same(await client.replicaGet({}), EMPTY, 'and the client connects again when it needs to');
});

t.test('a caller that vanishes in the middle of a call aborts it', async (t) => {
  const aborted = new Promise<boolean>((resolve) => {
    const server = newServer().addService(ReplicaServiceDefinition, {
      replicaGet: (_request, call) => {
        call.signal.addEventListener('abort', () => resolve(true));
        channel.close();
        return new Promise<ReplicaGetResponse>(() => undefined);
      },
    });
    let channel: ReturnType<typeof createChannel>;
    void listening(t, server).then(async (port) => {
      channel = createChannel({ host: '127.0.0.1', port }, { clock: realClock });
      const error = await rpcErrorOf(
        createClient(ReplicaServiceDefinition, channel).replicaGet({}),
      );
      t.equal(error.status, RPC_STATUS.UNAVAILABLE);
      const later = rpcErrorOf(createClient(ReplicaServiceDefinition, channel).replicaGet({}));
      t.match(await later, { code: 'CLOSED' }, 'a closed channel stays closed');
    });
  });
  t.equal(await aborted, true);
});

t.test('a server that dies in the middle of a call makes it UNAVAILABLE', async (t) => {
  const sockets: Socket[] = [];
  const server = createTcpServer((socket) => {
    sockets.push(socket);
    socket.on('error', () => undefined);
    socket.once('data', () => socket.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => server.close());
  const client = clientOf(t, (server.address() as AddressInfo).port);
  const error = await rpcErrorOf(client.replicaGet({}));
  t.match(error, { status: RPC_STATUS.UNAVAILABLE, code: 'CONNECTION_LOST' });
  t.equal(sockets.length, 1, 'a call that may have begun is not repeated');
});

t.test('a peer that is not a gRPC server is reported, not trusted', async (t) => {
  const server = createTcpServer((socket) => {
    socket.on('error', () => undefined);
    socket.end('HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => server.close());
  const error = await rpcErrorOf(
    clientOf(t, (server.address() as AddressInfo).port).replicaGet({}),
  );
  t.equal(error.status, RPC_STATUS.UNAVAILABLE);
});

t.test('nobody listening is UNAVAILABLE until somebody listens', async (t) => {
  const first = newServer();
  const port = await first.listen('127.0.0.1', 0);
  await first.close(0);
  const client = clientOf(t, port);
  const error = await rpcErrorOf(client.replicaGet({}));
  t.match(error, { status: RPC_STATUS.UNAVAILABLE, code: 'CONNECTION_REFUSED' });

  for (let restart = 0; restart < 3; restart++) {
    const server = newServer().addService(ReplicaServiceDefinition, { replicaGet: () => EMPTY });
    await server.listen('127.0.0.1', port);
    t.same(await client.replicaGet({}), EMPTY, 'a new connection for a new server');
    await server.close(1000);
  }
  t.equal((await rpcErrorOf(client.replicaGet({}))).status, RPC_STATUS.UNAVAILABLE);
});

t.test('a port in use is ADDRESS_IN_USE', async (t) => {
  const port = await listening(t, newServer());
  await t.rejects(newServer().listen('127.0.0.1', port), { code: 'ADDRESS_IN_USE' });
  await t.rejects(newServer().listen('256.0.0.1', port), { code: 'INVALID_ARGUMENT' });
});

t.test('a unix socket serves like TCP', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'rpc-'));
  t.teardown(() => rm(directory, { recursive: true }));
  const path = join(directory, 'x.sock');
  const server = newServer().addService(ReplicaServiceDefinition, { replicaGet: () => EMPTY });
  await server.listenUnix(path);
  t.teardown(() => server.close(0));
  t.same(await clientOf(t, { path }).replicaGet({}), EMPTY);
  await t.rejects(newServer().listenUnix(path), { code: 'ADDRESS_IN_USE' });
  const nobody = await rpcErrorOf(clientOf(t, { path: `${path}.not` }).replicaGet({}));
  t.match(nobody, { status: RPC_STATUS.UNAVAILABLE, code: 'CONNECTION_REFUSED' });
});

t.test('closing lets the calls in flight finish and takes no new ones', async (t) => {
  const { entered, open, handler } = gate();
  const server = newServer().addService(ReplicaServiceDefinition, { replicaGet: handler });
  const port = await server.listen('127.0.0.1', 0);
  const client = clientOf(t, port);
  const running = client.replicaGet({});
  await entered;
  const closed = server.close(60_000);
  t.equal((await rpcErrorOf(client.replicaClose({}))).status, RPC_STATUS.UNAVAILABLE);
  open();
  t.same(await running, EMPTY);
  await closed;
});

t.test('closing cuts what outlasts the grace', async (t) => {
  const { entered, handler } = gate();
  const server = newServer().addService(ReplicaServiceDefinition, { replicaGet: handler });
  const client = clientOf(t, await server.listen('127.0.0.1', 0));
  const running = rpcErrorOf(client.replicaGet({}));
  await entered;
  await server.close(20);
  t.equal((await running).status, RPC_STATUS.UNAVAILABLE);
  await server.close(20);
});

t.test('closing tells health watchers before it ends their streams', async (t) => {
  const server = newServer();
  const port = await server.listen('127.0.0.1', 0);
  const channel = createChannel({ host: '127.0.0.1', port }, { clock: realClock });
  t.teardown(() => channel.close());
  const health = createClient(HealthDefinition, channel);
  const seen: number[] = [];
  const watching = (async () => {
    for await (const { status } of health.watch({ service: '' }, { deadlineMs: 1e12 })) {
      seen.push(status);
      if (status === SERVING.SERVING) void server.close(60_000);
    }
  })();
  t.equal((await rpcErrorOf(watching)).status, RPC_STATUS.UNAVAILABLE);
  t.same(seen, [SERVING.SERVING]);
});

t.test('calls run side by side on one connection', async (t) => {
  const { open, handler } = gate();
  let calls = 0;
  const server = newServer().addService(ReplicaServiceDefinition, {
    replicaGet: () => {
      if (++calls === 20) open();
      return handler();
    },
  });
  const client = clientOf(t, await listening(t, server));
  const answers = await Promise.all(Array.from({ length: 20 }, () => client.replicaGet({})));
  t.equal(answers.length, 20);
});

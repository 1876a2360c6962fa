// Our server and client against @grpc/grpc-js, an independent implementation of the same protocol,
// in both directions, on real sockets.

import * as grpc from '@grpc/grpc-js';
import t, { type Test } from 'tap';
import { ControllerServiceDefinition, type Volume } from '../../src/api/generated/controller.js';
import {
  HealthCheckResponse_ServingStatus as SERVING,
  HealthDefinition,
} from '../../src/api/generated/health.js';
import { ReplicaServiceDefinition } from '../../src/api/generated/replica.js';
import { realClock } from '../../src/core/clock-real.js';
import { StorageError } from '../../src/core/errors.js';
import { silentLogger } from '../../src/core/log.js';
import { createChannel, createClient, type RpcChannel } from '../../src/rpc/client.js';
import type { ServiceDefinition } from '../../src/rpc/definition.js';
import { statusUnknown, storageErrorOfRpc } from '../../src/rpc/error-map.js';
import { createRpcServer, type RpcServer } from '../../src/rpc/server.js';
import { RPC_STATUS, RpcError } from '../../src/rpc/status.js';

const VOLUME: Volume = {
  name: 'vol',
  size: 2 ** 52,
  replicaCount: 3,
  endpoint: '/dev/longhorn/vol',
  frontend: 'tgt-blockdev',
  frontendState: 'up',
  isExpanding: true,
  lastExpansionError: '',
  lastExpansionFailedAt: '',
  unmapMarkSnapChainRemoved: false,
  snapshotMaxCount: 250,
  snapshotMaxSize: 0,
};
const NO_ADDRESS = { address: '', instanceName: '' };

/** The definition as grpc-js wants it. */
function grpcDefinition(service: ServiceDefinition): grpc.ServiceDefinition {
  return Object.fromEntries(
    Object.entries(service.methods).map(([key, method]) => [
      key,
      {
        path: `/${service.fullName}/${method.name}`,
        requestStream: method.requestStream,
        responseStream: method.responseStream,
        requestSerialize: (m: unknown) => Buffer.from(method.requestType.encode(m).finish()),
        requestDeserialize: (bytes: Buffer) => method.requestType.decode(bytes),
        responseSerialize: (m: unknown) => Buffer.from(method.responseType.encode(m).finish()),
        responseDeserialize: (bytes: Buffer) => method.responseType.decode(bytes),
      },
    ]),
  );
}

type Outcome = { error: grpc.ServiceError | null; response: unknown };

function grpcClient(service: ServiceDefinition, port: number): grpc.Client & Record<string, never> {
  const Client = grpc.makeGenericClientConstructor(grpcDefinition(service), service.fullName);
  return new Client(`127.0.0.1:${port}`, grpc.credentials.createInsecure()) as never;
}

/** One unary call by grpc-js. */
function callWithGrpcJs(
  client: grpc.Client,
  method: string,
  request: unknown,
  metadata: Record<string, string> = {},
  options: grpc.CallOptions = {},
): Promise<Outcome> {
  const headers = new grpc.Metadata();
  for (const [name, value] of Object.entries(metadata)) headers.set(name, value);
  return new Promise((resolve) => {
    const call = (client as unknown as Record<string, (...args: unknown[]) => void>)[method];
    call?.call(
      client,
      request,
      headers,
      options,
      (error: grpc.ServiceError | null, response: unknown) => resolve({ error, response }),
    );
  });
}

async function ourServer(
  t: Test,
  setUp: (server: RpcServer) => void,
  identity?: { volumeName: string; instanceName: string },
): Promise<{ server: RpcServer; port: number }> {
  const server = createRpcServer({
    clock: realClock,
    log: silentLogger,
    messageBytesMax: 100_000,
    ...(identity === undefined ? {} : { identity: { ...identity, what: 'controller' as const } }),
  });
  setUp(server);
  const port = await server.listen('127.0.0.1', 0);
  t.teardown(() => server.close(0));
  return { server, port };
}

function ourChannel(t: Test, port: number): RpcChannel {
  const channel = createChannel({ host: '127.0.0.1', port }, { clock: realClock });
  t.teardown(() => channel.close());
  return channel;
}

function theirServer(t: Test, service: ServiceDefinition, handlers: object): Promise<number> {
  const server = new grpc.Server({ 'grpc.max_receive_message_length': 100_000 });
  server.addService(grpcDefinition(service), handlers as grpc.UntypedServiceImplementation);
  t.teardown(() => server.forceShutdown());
  return new Promise((resolve, reject) => {
    const credentials = grpc.ServerCredentials.createInsecure();
    server.bindAsync('127.0.0.1:0', credentials, (error, port) =>
      error === null ? resolve(port) : reject(error),
    );
  });
}

/** The RpcError a promise rejects with. */
async function rpcErrorOf(promise: Promise<unknown>): Promise<RpcError> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof RpcError) return error;
    throw error;
  }
  throw new Error('the call did not fail');
}

t.test('a grpc-js client calls our server', async (t) => {
  const seen: (string | undefined)[] = [];
  let hasCallerLeft: Promise<void> = Promise.resolve();
  const { port, server } = await ourServer(
    t,
    (server) =>
      server.addService(
        ControllerServiceDefinition,
        {
          volumeGet: (_request, call) => {
            seen.push(call.metadata('volume-name'), call.metadata('x-extra'));
            return VOLUME;
          },
          volumeStart: async ({ size }) => ({ ...VOLUME, size }),
          volumeSnapshot: ({ name, labels }) => ({ name: `${name}${Object.keys(labels).length}` }),
          volumeRevert: () => {
            throw new StorageError('NOT_FOUND', 'no snapshot 100% ünlike\nit');
          },
          volumeExpand: () => {
            throw new RpcError(RPC_STATUS.ABORTED, 'explicit');
          },
          volumeShutdown: (_request, call) => {
            hasCallerLeft = new Promise((resolve) =>
              call.signal.addEventListener('abort', () => resolve()),
            );
            return new Promise<Volume>(() => undefined);
          },
        },
        { statusOf: statusUnknown },
      ),
    { volumeName: 'vol', instanceName: 'vol-e-0' },
  );
  const client = grpcClient(ControllerServiceDefinition, port);
  t.teardown(() => client.close());
  const call = (method: string, request: unknown, metadata = {}, options = {}): Promise<Outcome> =>
    callWithGrpcJs(client, method, request, metadata, options);

  t.test('unary with metadata', async (t) => {
    const { response } = await call('volumeGet', {}, { 'volume-name': 'vol', 'x-extra': 'e' });
    t.same(response, VOLUME);
    t.same(seen, ['vol', 'e']);
  });
  t.test('a request of many frames arrives whole', async (t) => {
    const labels = { long: 'x'.repeat(80_000), other: 'y' };
    const request = { name: 'n', labels, freezeFilesystem: false };
    t.same((await call('volumeSnapshot', request)).response, { name: 'n2' });
  });
  t.test('a StorageError arrives as UNKNOWN with its text and its code in a trailer', async (t) => {
    const { error } = await call('volumeRevert', { name: '' });
    t.equal(error?.code, grpc.status.UNKNOWN);
    t.equal(error?.details, 'no snapshot 100% ünlike\nit');
    t.same(error?.metadata.get('longhorn-error-code'), ['NOT_FOUND']);
  });
  t.test('a handler may choose the status', async (t) => {
    const { error } = await call('volumeExpand', { size: 1 });
    t.match(error, { code: grpc.status.ABORTED, details: 'explicit' });
  });
  t.test('missing handler, unknown method and unknown service are UNIMPLEMENTED', async (t) => {
    const missing = (await call('volumeIO', { type: '', data: '', offset: 0, length: 0 })).error;
    t.match(missing, {
      code: grpc.status.UNIMPLEMENTED,
      details: 'method VolumeIO not implemented',
    });
    const replica = grpcClient(ReplicaServiceDefinition, port);
    const unknown = (await callWithGrpcJs(replica, 'replicaGet', {})).error;
    replica.close();
    t.match(unknown, {
      code: grpc.status.UNIMPLEMENTED,
      details: 'unknown service ptypes.ReplicaService',
    });
  });
  t.test('the wrong volume or instance is refused', async (t) => {
    const { error } = await call('volumeGet', {}, { 'volume-name': 'other' });
    t.match(error, {
      code: grpc.status.FAILED_PRECONDITION,
      details: 'incorrect volume name other; check controller address',
    });
  });
  t.test('a passed deadline ends the call on both sides', async (t) => {
    const { error } = await call('volumeShutdown', {}, {}, { deadline: Date.now() + 50 });
    t.equal(error?.code, grpc.status.DEADLINE_EXCEEDED);
    await hasCallerLeft;
  });
  t.test('a message above the limit is refused, and the connection lives', async (t) => {
    const labels = { long: 'x'.repeat(3_000_000) };
    const { error } = await call('volumeSnapshot', { name: '', labels, freezeFilesystem: false });
    t.equal(error?.code, grpc.status.RESOURCE_EXHAUSTED);
    t.same((await call('volumeGet', {})).response, VOLUME);
  });
  t.test('a number beyond 2^53 - 1 is refused, not rounded', async (t) => {
    const bytes = Buffer.from('10ffffffffffffffff7f', 'hex');
    const { error } = await new Promise<Outcome>((resolve) =>
      client.makeUnaryRequest(
        '/ptypes.ControllerService/VolumeStart',
        () => bytes,
        (reply) => reply,
        null,
        (error, response) => resolve({ error, response }),
      ),
    );
    t.equal(error?.code, grpc.status.INTERNAL);
    t.match(error?.details, /MAX_SAFE_INTEGER/);
  });
  t.test('health: check, list, and a watch that sees each change and the shutdown', async (t) => {
    const health = grpcClient(HealthDefinition, port);
    t.teardown(() => health.close());
    const check = (service: string): Promise<Outcome> =>
      callWithGrpcJs(health, 'check', { service });
    t.same((await check('')).response, { status: SERVING.SERVING });
    t.equal((await check('nosuch')).error?.code, grpc.status.NOT_FOUND);
    server.health.set('ptypes.ControllerService', true);
    t.same((await callWithGrpcJs(health, 'list', {})).response, {
      statuses: { '': { status: 1 }, 'ptypes.ControllerService': { status: 1 } },
    });
    const watch = (
      health as unknown as Record<string, (request: unknown) => grpc.ClientReadableStream<unknown>>
    )['watch']?.({ service: 'late' }) as grpc.ClientReadableStream<{ status: number }>;
    const statuses: number[] = [];
    const ended = new Promise<{ code: number }>((resolve) =>
      watch.on('error', (error) => resolve(error as grpc.ServiceError)),
    );
    watch.on('data', ({ status }: { status: number }) => {
      statuses.push(status);
      if (status === SERVING.SERVICE_UNKNOWN) server.health.set('late', true);
      if (status === SERVING.SERVING) server.health.set('late', false);
      if (status === SERVING.NOT_SERVING) void server.close(1000);
    });
    t.equal((await ended).code, grpc.status.UNAVAILABLE);
    t.same(statuses, [SERVING.SERVICE_UNKNOWN, SERVING.SERVING, SERVING.NOT_SERVING]);
  });
});

t.test('our client calls a grpc-js server', async (t) => {
  const unary =
    (run: (call: grpc.ServerUnaryCall<never, unknown>) => unknown) =>
    (call: grpc.ServerUnaryCall<never, unknown>, done: grpc.sendUnaryData<unknown>): void => {
      try {
        done(null, run(call));
      } catch (error) {
        done(error as grpc.ServiceError);
      }
    };
  const port = await theirServer(t, ControllerServiceDefinition, {
    volumeGet: unary((call) => ({
      ...VOLUME,
      name: String(call.metadata.get('volume-name')),
      endpoint: String(call.metadata.get('x-extra')),
    })),
    volumeSnapshot: unary(({ request }) => ({ name: (request as { name: string }).name })),
    volumeRevert: unary(() => {
      throw Object.assign(new Error(), { code: grpc.status.UNKNOWN, details: 'grüße 100%' });
    }),
    volumeShutdown: () => undefined,
    volumeStart: unary(() => ({ ...VOLUME, name: 'x'.repeat(5_000_000) })),
  });
  const channel = createChannel(
    { host: '127.0.0.1', port },
    { clock: realClock, identity: { volumeName: 'vol', instanceName: '' } },
  );
  t.teardown(() => channel.close());
  const client = createClient(ControllerServiceDefinition, channel);

  const answer = await client.volumeGet({}, { metadata: { 'x-extra': 'e' } });
  t.same(answer, { ...VOLUME, name: 'vol', endpoint: 'e' }, 'unary with identity and metadata');

  const longName = 'n'.repeat(70_000);
  const snapshot = { name: longName, labels: {}, freezeFilesystem: true };
  t.equal((await client.volumeSnapshot(snapshot)).name, longName, 'both directions of many frames');

  t.match(await rpcErrorOf(client.volumeRevert({ name: '' })), {
    status: RPC_STATUS.UNKNOWN,
    message: 'grüße 100%',
    code: null,
  });
  const unimplemented = await rpcErrorOf(client.replicaDelete(NO_ADDRESS));
  t.equal(unimplemented.status, RPC_STATUS.UNIMPLEMENTED);
  const late = await rpcErrorOf(client.volumeShutdown({}, { deadlineMs: 50 }));
  t.match(late, { status: RPC_STATUS.DEADLINE_EXCEEDED, code: 'TIMEOUT' });
  const tooLarge = client.volumeStart({ replicaAddresses: [], size: 0, currentSize: 0 });
  t.equal((await rpcErrorOf(tooLarge)).status, RPC_STATUS.RESOURCE_EXHAUSTED);
  const refused = client.volumeSnapshot({ ...snapshot, name: 'n'.repeat(200_000) });
  t.equal((await rpcErrorOf(refused)).status, RPC_STATUS.RESOURCE_EXHAUSTED);

  const abortion = new AbortController();
  const left = rpcErrorOf(client.volumeShutdown({}, { signal: abortion.signal }));
  abortion.abort();
  t.equal((await left).status, RPC_STATUS.CANCELLED);
  const neverStarted = rpcErrorOf(client.volumeGet({}, { signal: abortion.signal }));
  t.equal((await neverStarted).status, RPC_STATUS.CANCELLED);
  t.equal((await client.volumeGet({})).name, 'vol', 'the connection outlives all of these');
});

t.test('our client reads a stream of a grpc-js server to its end or its error', async (t) => {
  const port = await theirServer(t, HealthDefinition, {
    watch: (call: grpc.ServerWritableStream<{ service: string }, unknown>) => {
      for (const status of [1, 2, 1]) call.write({ status });
      if (call.request.service === 'bad') {
        call.emit('error', { code: grpc.status.ABORTED, details: 'enough' });
      } else call.end();
    },
  });
  const client = createClient(HealthDefinition, ourChannel(t, port));
  const statuses: number[] = [];
  for await (const { status } of client.watch({ service: '' })) statuses.push(status);
  t.same(statuses, [1, 2, 1]);
  await t.rejects(
    (async () => {
      for await (const _ of client.watch({ service: 'bad' }));
    })(),
    { message: 'enough' },
  );
  for await (const _ of client.watch({ service: '' })) break; // leaving early ends the call
});

t.test('our client to our server: codes come back without looking at texts', async (t) => {
  const { port } = await ourServer(t, (server) =>
    server.addService(ReplicaServiceDefinition, {
      replicaGet: () => {
        throw new StorageError('CHAIN_BROKEN', 'a layer is missing');
      },
    }),
  );
  const client = createClient(ReplicaServiceDefinition, ourChannel(t, port));
  const error = await rpcErrorOf(client.replicaGet({}));
  t.match(error, { status: RPC_STATUS.DATA_LOSS, code: 'CHAIN_BROKEN' });
  t.match(storageErrorOfRpc(error), { code: 'CHAIN_BROKEN', kind: 'corruption' });
});

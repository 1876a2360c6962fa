// The pure half of gRPC: bytes into messages, headers into values, errors into statuses.

import fc from 'fast-check';
import t from 'tap';
import { ERROR_KIND_OF_CODE, StorageError, type ErrorCode } from '../../src/core/errors.js';
import { isGrpcContentType } from '../../src/rpc/definition.js';
import {
  parseErrorCode,
  statusByKind,
  statusUnknown,
  storageErrorOfRpc,
  toRpcError,
} from '../../src/rpc/error-map.js';
import {
  decodeStatusText,
  encodeStatusText,
  formatTimeout,
  frameMessage,
  MessageDecoder,
  parseTimeoutMs,
  timerMs,
} from '../../src/rpc/framing.js';
import { checkIdentity, identityMetadata } from '../../src/rpc/identity.js';
import { parseRpcAddress } from '../../src/rpc/client.js';
import { parseStatus, RPC_STATUS, RpcError } from '../../src/rpc/status.js';

const LIMIT_BYTES = 1024;
const messages = [Buffer.from('first'), Buffer.alloc(0), Buffer.from('third message')];
const stream = Buffer.concat(messages.map((message) => frameMessage(message)));

/** Status of the RpcError that a call throws; null when it throws none. */
function statusThrown(run: () => unknown): number | null {
  try {
    run();
  } catch (error) {
    if (error instanceof RpcError) return error.status;
    throw error;
  }
  return null;
}

function decodeInPieces(bytes: Buffer, cuts: readonly number[]): Buffer[] {
  const decoder = new MessageDecoder(LIMIT_BYTES);
  const decoded: Buffer[] = [];
  let at = 0;
  for (const cut of [...cuts, bytes.length]) {
    decoded.push(...decoder.push(bytes.subarray(at, cut)));
    at = cut;
  }
  t.equal(decoder.isAtBoundary, true, 'nothing is left over');
  return decoded;
}

t.test('messages cut at any one or two places decode the same', (t) => {
  for (let first = 0; first <= stream.length; first++) {
    for (let second = first; second <= stream.length; second++) {
      if (
        decodeInPieces(stream, [first, second]).some((m, i) => !m.equals(messages[i] as Buffer))
      ) {
        t.fail(`cut at ${first} and ${second}`);
      }
    }
  }
  t.same(decodeInPieces(stream, []), messages);
  t.end();
});

t.test('a message cut short is never delivered', (t) => {
  for (let length = 1; length < stream.length; length++) {
    const decoder = new MessageDecoder(LIMIT_BYTES);
    const whole = decoder.push(stream.subarray(0, length)).length;
    if (whole >= messages.length) t.fail(`a message appeared after ${length} bytes`);
  }
  t.end();
});

t.test('a length above the limit is refused from the prefix alone', (t) => {
  const decoder = new MessageDecoder(LIMIT_BYTES);
  const prefix = Buffer.from([0, 0xff, 0xff, 0xff, 0xff]);
  t.equal(
    statusThrown(() => decoder.push(prefix)),
    RPC_STATUS.RESOURCE_EXHAUSTED,
  );
  const fits = new MessageDecoder(LIMIT_BYTES).push(frameMessage(Buffer.alloc(LIMIT_BYTES)));
  t.equal(fits[0]?.length, LIMIT_BYTES);
  t.throws(() => new MessageDecoder(LIMIT_BYTES).push(frameMessage(Buffer.alloc(LIMIT_BYTES + 1))));
  t.end();
});

t.test('compressed and unknown flags are refused', (t) => {
  for (const flags of [1, 2, 255]) {
    const frame = frameMessage(Buffer.from('x'));
    frame[0] = flags;
    const decoder = new MessageDecoder(LIMIT_BYTES);
    t.equal(
      statusThrown(() => decoder.push(frame)),
      RPC_STATUS.INTERNAL,
    );
  }
  t.end();
});

t.test('any texts survive grpc-message, and the header is plain ASCII', (t) => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary', maxLength: 200 }), (text) => {
      const encoded = encodeStatusText(text);
      return (
        /^[\x20-\x7e]*$/.test(encoded) && decodeStatusText(encoded) === Buffer.from(text).toString()
      );
    }),
  );
  t.equal(encodeStatusText('100% näh\n'), '100%25 n%C3%A4h%0A');
  t.equal(decodeStatusText('50% off %zz %4'), '50% off %zz %4', 'broken escapes stay');
  t.ok(encodeStatusText('x'.repeat(100_000)).length < 5000, 'a long text is cut');
  t.end();
});

t.test('grpc-timeout: units, limits and nonsense', (t) => {
  t.equal(parseTimeoutMs('1H'), 3_600_000);
  t.equal(parseTimeoutMs('2M'), 120_000);
  t.equal(parseTimeoutMs('99999999n'), 99.999999);
  t.equal(parseTimeoutMs('250m'), 250);
  for (const bad of ['', '1', 'm', '123456789m', '-1m', '1.5S', '1s', ' 1m']) {
    t.equal(parseTimeoutMs(bad), null, bad);
  }
  t.equal(formatTimeout(1.2), '2m');
  t.equal(formatTimeout(-5), '0m');
  t.equal(formatTimeout(200_000_000), '200000S');
  t.equal(formatTimeout(Number.POSITIVE_INFINITY), '99999999S');
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 2 ** 46 }), (ms) => {
      const parsed = parseTimeoutMs(formatTimeout(ms));
      return parsed !== null && (parsed >= ms || formatTimeout(ms) === '99999999S');
    }),
  );
  t.equal(timerMs(parseTimeoutMs('99999999H') as number), 0x7fffffff, 'no timer overflows');
  t.end();
});

t.test('only gRPC with protobuf is a gRPC content type', (t) => {
  for (const good of ['application/grpc', 'application/grpc+proto', 'application/grpc; x=y']) {
    t.ok(isGrpcContentType(good), good);
  }
  for (const bad of ['application/grpcx', 'application/grpc+json', 'text/html', '', undefined]) {
    t.notOk(isGrpcContentType(bad), String(bad));
  }
  t.end();
});

t.test('every error code survives as a status and a trailer', (t) => {
  for (const code of Object.keys(ERROR_KIND_OF_CODE) as ErrorCode[]) {
    const error = new StorageError(code, 'text');
    t.not(statusByKind(error), RPC_STATUS.OK);
    const rpcError = toRpcError(error, statusUnknown);
    t.equal(rpcError.status, RPC_STATUS.UNKNOWN);
    t.equal(storageErrorOfRpc(rpcError).code, code);
    t.equal(storageErrorOfRpc(rpcError).message, 'text');
  }
  t.equal(statusByKind(new StorageError('NOT_FOUND', '')), RPC_STATUS.NOT_FOUND);
  t.equal(statusByKind(new StorageError('NO_SPACE', '')), RPC_STATUS.RESOURCE_EXHAUSTED);
  t.equal(statusByKind(new StorageError('CHAIN_BROKEN', '')), RPC_STATUS.DATA_LOSS);
  t.equal(toRpcError(new TypeError('bug'), statusUnknown).status, RPC_STATUS.INTERNAL);
  t.equal(storageErrorOfRpc(new RpcError(RPC_STATUS.UNAVAILABLE, '')).code, 'CONNECTION_LOST');
  t.equal(storageErrorOfRpc(new RpcError(RPC_STATUS.UNKNOWN, '')).code, 'PEER_ERROR');
  t.equal(parseErrorCode('toString'), null);
  t.equal(parseErrorCode('FROM_THE_FUTURE'), null);
  t.end();
});

t.test('a status that is no known number is UNKNOWN', (t) => {
  t.equal(parseStatus('0'), RPC_STATUS.OK);
  t.equal(parseStatus('16'), RPC_STATUS.UNAUTHENTICATED);
  for (const bad of ['17', '-1', '', 'x', '1.5', '007'])
    t.equal(parseStatus(bad), RPC_STATUS.UNKNOWN);
  t.end();
});

t.test('identity: a name is compared only when both sides know one', (t) => {
  const own = { volumeName: 'vol', instanceName: 'vol-r-1', what: 'replica' } as const;
  const check = (metadata: Record<string, string>): void =>
    checkIdentity(own, (name) => metadata[name]);
  check({});
  check({ 'volume-name': '' });
  check({ 'volume-name': 'vol', 'instance-name': 'vol-r-1' });
  t.equal(
    statusThrown(() => check({ 'volume-name': 'other' })),
    RPC_STATUS.FAILED_PRECONDITION,
  );
  t.throws(() => check({ 'volume-name': 'other' }), {
    message: 'incorrect volume name other; check replica address',
  });
  t.throws(() => check({ 'volume-name': 'vol', 'instance-name': 'x' }), {
    message: 'incorrect instance name x; check replica address',
  });
  checkIdentity({ ...own, volumeName: '', instanceName: '' }, () => 'anything');
  t.same(identityMetadata({ volumeName: 'v', instanceName: '' }), { 'volume-name': 'v' });
  t.end();
});

t.test('addresses: TCP, IPv6 and unix', (t) => {
  t.same(parseRpcAddress('tcp://10.0.0.1:9502'), { host: '10.0.0.1', port: 9502 });
  t.same(parseRpcAddress('localhost:1'), { host: 'localhost', port: 1 });
  t.same(parseRpcAddress('[::1]:80'), { host: '::1', port: 80 });
  t.same(parseRpcAddress('unix:///run/x.sock'), { path: '/run/x.sock' });
  for (const bad of ['', 'host', 'host:', 'host:0', 'host:65536', 'udp://h:1', ':5']) {
    t.equal(
      statusThrown(() => parseRpcAddress(bad)),
      RPC_STATUS.INVALID_ARGUMENT,
      bad,
    );
  }
  t.end();
});

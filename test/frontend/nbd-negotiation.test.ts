// The handshake option by option, first as the pure step function, then over a memory connection.

import t from 'tap';
import { NBD_HANDSHAKE_TIMEOUT_MS, NBD_OPTIONS_MAX } from '../../src/core/limits.js';
import {
  NEGOTIATION_START,
  stepNegotiation,
  type NegotiationOutcome,
  type NegotiationState,
  type TlsMode,
} from '../../src/frontend/nbd/negotiation.js';
import {
  OPT,
  clientFlags,
  infoData,
  metaData,
  option,
  parseOptionReplies,
  request,
  type OptionReply,
} from '../support/nbd-client.js';
import { TestClient, createWorld } from '../support/nbd-harness.js';

const ACK = 1;
const ERR = {
  unsupported: 0x80000001,
  policy: 0x80000002,
  invalid: 0x80000003,
  tlsRequired: 0x80000005,
  unknown: 0x80000006,
  tooBig: 0x80000009,
};
/** HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN, CACHE, FAST_ZERO. */
const FLAGS = 0b1101_0110_1101;
const FLAGS_WITH_DF = FLAGS | 0x80;
const world = createWorld();

/** A pure client: options in, replies out. */
class Talk {
  state: NegotiationState = NEGOTIATION_START;
  outcome: NegotiationOutcome = { kind: 'continue' };
  private readonly tlsMode: TlsMode;

  constructor(tlsMode: TlsMode = 'off', flags = 3) {
    this.tlsMode = tlsMode;
    this.raw(clientFlags(flags));
  }

  raw(bytes: Uint8Array): Buffer {
    const rules = { exports: world.exports, tlsMode: this.tlsMode };
    const step = stepNegotiation(this.state, bytes, rules);
    this.state = step.state;
    this.outcome = step.outcome;
    return Buffer.from(step.reply);
  }

  ask(type: number, data?: Uint8Array): OptionReply[] {
    return parseOptionReplies(this.raw(option(type, data)));
  }

  /** The type of the only reply. */
  answer(type: number, data?: Uint8Array): number | undefined {
    const replies = this.ask(type, data);
    return replies.length === 1 ? replies[0]?.type : undefined;
  }
}

t.test('GO tells size, flags and what was asked for, then enters transmission', async (t) => {
  const talk = new Talk();
  const replies = talk.ask(OPT.go, infoData('vol', [3, 1, 2, 99, 3]));
  const infos = replies.slice(0, -1).map(({ data }) => data.toString('hex'));
  const text = (value: string): string => Buffer.from(value).toString('hex');
  t.same(infos, [
    `00000000000000100000${FLAGS.toString(16).padStart(4, '0')}`,
    '0003' + '00000001' + '00001000' + '02000000',
    `0001${text('vol')}`,
    `0002${text('test volume')}`,
  ]);
  t.equal(replies.at(-1)?.type, ACK);
  t.match(talk.outcome, {
    kind: 'transmission',
    agreement: { structuredReplies: false, blockStatus: false, exported: { name: 'vol' } },
  });
});

t.test('INFO answers like GO and stays in the handshake', async (t) => {
  const talk = new Talk();
  t.equal(talk.ask(OPT.info, infoData('vol')).length, 2);
  t.equal(talk.outcome.kind, 'continue');
  t.equal(talk.answer(OPT.info, infoData('other')), ERR.unknown);
  t.equal(talk.answer(OPT.go, infoData('other')), ERR.unknown);
  t.equal(talk.answer(OPT.go, Buffer.from('ffffffff0000', 'hex')), ERR.invalid);
  t.equal(talk.answer(OPT.go, infoData('a\0b')), ERR.invalid);
});

t.test('a single export is the default export, and tells its own name', async (t) => {
  const talk = new Talk();
  const replies = talk.ask(OPT.go, infoData('', [1]));
  t.equal(replies[1]?.data.subarray(2).toString(), 'vol');
  t.match(talk.outcome, { kind: 'transmission', agreement: { exported: { name: 'vol' } } });
});

t.test('EXPORT_NAME answers without a header, padded unless NO_ZEROES was agreed', async (t) => {
  const short = new Talk('off', 3).raw(option(OPT.exportName, Buffer.from('vol')));
  t.equal(short.byteLength, 10);
  t.equal(short.readBigUInt64BE(0), 1048576n);
  t.equal(short.readUInt16BE(8), FLAGS);
  const old = new Talk('off', 0).raw(option(OPT.exportName, Buffer.from('')));
  t.equal(old.byteLength, 134);
  const talk = new Talk();
  talk.raw(option(OPT.exportName, Buffer.from('other')));
  t.equal(talk.outcome.kind, 'disconnect', 'an unknown export has no error reply');
});

t.test('LIST names every export', async (t) => {
  const talk = new Talk();
  const [entry, ack] = talk.ask(OPT.list);
  t.equal(entry?.data.toString('hex').slice(0, 14), '00000003' + '766f6c');
  t.equal(entry?.data.subarray(7).toString(), 'test volume');
  t.equal(ack?.type, ACK);
  t.equal(talk.answer(OPT.list, Buffer.from('x')), ERR.invalid);
});

t.test('ABORT is acknowledged, then the connection ends', async (t) => {
  const talk = new Talk();
  t.equal(talk.answer(OPT.abort, Buffer.from('ignored')), ACK);
  t.equal(talk.outcome.kind, 'end');
});

t.test('unknown options, extended headers among them, are refused politely', async (t) => {
  const talk = new Talk();
  for (const type of [OPT.extended, 4, 12, 0, 0xffffffff]) {
    t.equal(talk.answer(type), ERR.unsupported, `option ${type}`);
    t.equal(talk.outcome.kind, 'continue');
  }
});

t.test('base:allocation is listed and selected by the rules of proto.md', async (t) => {
  const talk = new Talk();
  const query = (...queries: string[]): Buffer => metaData('vol', queries);
  t.equal(talk.answer(OPT.setMeta, query('base:allocation')), ERR.invalid, 'needs structured');
  t.equal(talk.answer(OPT.structured, Buffer.from('x')), ERR.invalid);
  t.equal(talk.answer(OPT.structured), ACK);

  const listed = (...queries: string[]): number => talk.ask(OPT.listMeta, query(...queries)).length;
  t.equal(listed(), 2, 'no query lists all');
  t.equal(listed('base:'), 2, 'the namespace is a wildcard');
  t.equal(listed('base:allocation'), 2);
  t.equal(listed('x-other:', 'base:unknown'), 1, 'only the ACK');

  const selected = (...queries: string[]): number =>
    talk.ask(OPT.setMeta, query(...queries)).length;
  t.equal(selected('base:allocation'), 2);
  t.equal(talk.state.contextExport, 'vol');
  t.equal(selected('base:'), 1, 'a wildcard selects nothing');
  t.equal(talk.state.contextExport, null, 'and ends the earlier selection');

  selected('base:allocation');
  t.equal(talk.answer(OPT.setMeta, metaData('other', ['base:allocation'])), ERR.unknown);
  t.equal(talk.state.contextExport, null, 'a failed selection ends the earlier one too');
  t.equal(talk.answer(OPT.setMeta, Buffer.from('00000000' + '00000002', 'hex')), ERR.invalid);
  t.equal(talk.answer(OPT.listMeta, query(...Array<string>(65).fill('base:'))), ERR.tooBig);

  selected('base:allocation');
  const [info] = talk.ask(OPT.go, infoData('')); // the default export is the same one
  t.equal(info?.data.readUInt16BE(10), FLAGS_WITH_DF);
  t.match(talk.outcome, { agreement: { structuredReplies: true, blockStatus: true } });
});

t.test('a read-only export says so and offers nothing that alters it', async (t) => {
  const readOnly = createWorld({ readOnly: true });
  const step = stepNegotiation(
    { ...NEGOTIATION_START, phase: 'options', isFixed: true },
    option(OPT.go, infoData('vol')),
    { exports: readOnly.exports, tlsMode: 'off' },
  );
  const [info] = parseOptionReplies(Buffer.from(step.reply));
  t.equal(info?.data.readUInt16BE(10), 0b101_0000_1111);
});

t.test('without TLS, STARTTLS is refused by policy', async (t) => {
  t.equal(new Talk('off').answer(OPT.startTls), ERR.policy);
});

t.test('with TLS required, only STARTTLS and ABORT work before it', async (t) => {
  const talk = new Talk('require');
  for (const type of [OPT.list, OPT.info, OPT.go, OPT.structured, OPT.setMeta, 99]) {
    t.equal(talk.answer(type, infoData('vol')), ERR.tlsRequired, `option ${type}`);
  }
  talk.raw(option(OPT.exportName, Buffer.from('vol')));
  t.equal(talk.outcome.kind, 'disconnect');
  t.equal(new Talk('require').answer(OPT.abort), ACK);
  t.equal(new Talk('require').answer(OPT.startTls, Buffer.from('x')), ERR.invalid);
});

t.test('STARTTLS forgets what was agreed on in the clear, and works once', async (t) => {
  const talk = new Talk('allow');
  talk.ask(OPT.structured);
  talk.ask(OPT.setMeta, metaData('vol', ['base:allocation']));
  t.equal(talk.answer(OPT.startTls), ACK);
  t.equal(talk.outcome.kind, 'startTls');
  t.match(talk.state, { isSecure: true, structuredReplies: false, contextExport: null });
  t.equal(talk.answer(OPT.startTls), ERR.invalid);
  t.equal(talk.ask(OPT.go, infoData('vol')).at(-1)?.type, ACK);
});

t.test('rules without an error reply end the connection', async (t) => {
  t.equal(new Talk('off', 4).outcome.kind, 'disconnect', 'an unknown client flag');
  const noMagic = new Talk();
  noMagic.raw(Buffer.alloc(16, 1));
  t.equal(noMagic.outcome.kind, 'disconnect', 'a bad option magic');
  const long = new Talk();
  long.raw(option(OPT.list, Buffer.alloc(65 * 1024)).subarray(0, 16));
  t.equal(long.outcome.kind, 'disconnect', 'a too long option, before its data');
  const old = new Talk('off', 0);
  old.raw(option(OPT.list));
  t.equal(old.outcome.kind, 'disconnect', 'an option of fixed newstyle without it');
  const many = new Talk();
  for (let i = 0; i < NBD_OPTIONS_MAX; i++) t.equal(many.answer(OPT.extended), ERR.unsupported);
  many.raw(option(OPT.extended));
  t.equal(many.outcome.kind, 'disconnect', 'too many options');
});

t.test('a client that does not finish its handshake is dropped', async (t) => {
  const world = createWorld();
  const silent = new TestClient(world);
  const slow = new TestClient(world);
  slow.connection.push(Buffer.concat([clientFlags(), option(OPT.list)]));
  const done = TestClient.open(world);
  world.clock.advance(NBD_HANDSHAKE_TIMEOUT_MS - 1);
  t.equal(silent.ended, undefined);
  world.clock.advance(1);
  t.match(silent.ended, { code: 'TIMEOUT' });
  t.match(slow.ended, { code: 'TIMEOUT' });
  t.equal(done.ended, undefined, 'one in transmission stays');
  t.equal(world.clock.pendingCount, 0);
  done.connection.vanish();
  t.equal(world.buffersInUse(), 0);
});

t.test('handshake replies wait for slab memory, and transmission waits for them', async (t) => {
  const world = createWorld();
  const taken: number[] = [];
  for (;;) {
    const buffer = world.slab.allocate(1);
    if (buffer < 0) break;
    taken.push(buffer);
  }
  const client = new TestClient(world, false);
  const read = { command: 0, cookie: 1, offset: 0, length: 4096 };
  client.expect(read);
  client.connection.push(
    Buffer.concat([clientFlags(), option(OPT.list), option(OPT.go, infoData('vol'))]),
  );
  t.equal(client.connection.take().byteLength, 0, 'nothing can be said yet');
  for (const buffer of taken) world.slab.release(buffer);
  const greeting = Buffer.from(client.connection.take());
  t.equal(greeting.subarray(0, 8).toString(), 'NBDMAGIC');
  t.equal(parseOptionReplies(greeting.subarray(18)).at(-1)?.type, ACK);
  client.send(read);
  t.equal(client.replies()[0]?.error, 0);
  client.connection.vanish();
  t.equal(world.buffersInUse(), 0);
});

t.test('a request behind GO waits until the reply to GO is queued', async (t) => {
  const world = createWorld();
  const client = new TestClient(world, false);
  client.connection.take();
  const taken: number[] = [];
  for (;;) {
    const buffer = world.slab.allocate(1);
    if (buffer < 0) break;
    taken.push(buffer);
  }
  const flush = { command: 3, cookie: 7 };
  client.connection.push(
    Buffer.concat([clientFlags(), option(OPT.go, infoData('vol')), request(flush)]),
  );
  t.ok(client.connection.isPaused);
  for (const buffer of taken) world.slab.release(buffer);
  const said = Buffer.from(client.connection.take());
  const replyBytes = 16;
  const options = parseOptionReplies(said.subarray(0, said.byteLength - replyBytes));
  t.equal(options.at(-1)?.type, ACK);
  t.match(client.parse(said.subarray(-replyBytes)), [{ cookie: 7, error: 0 }]);
  client.connection.vanish();
  t.equal(world.buffersInUse(), 0);
});

// What every Connection promises, checked on native sockets and on Node streams, over unix sockets
// and TCP.

import t from 'tap';

import { StorageError } from '../../src/core/errors.js';
import { NO_BUFFER } from '../../src/core/slab.js';
import { KIB, MIB } from '../../src/core/units.js';
import { takePayload } from '../../src/transport/payload.js';
import { Bench, deferred, PAIR_KINDS, patternBytes, RecordingHandler, sendBytes } from './pair.js';

const bench = new Bench();
t.teardown(() => bench.close());

for (const kind of PAIR_KINDS) {
  const open = async (): Promise<{ left: RecordingHandler; right: RecordingHandler }> => {
    const pair = await kind.open(bench);
    return { left: new RecordingHandler(pair.left), right: new RecordingHandler(pair.right) };
  };
  const finish = async (left: RecordingHandler, right: RecordingHandler): Promise<void> => {
    left.connection.destroy();
    right.connection.destroy();
    await Promise.all([left.closedWith(), right.closedWith()]);
    t.notOk(left.wasReentered || right.wasReentered, `${kind.name}: no call inside another`);
  };

  t.test(`${kind.name}: bytes arrive whole and in order, however they are consumed`, async (t) => {
    const { left, right } = await open();
    const sent = patternBytes(600_000);
    // Prime step: consumes at most 997 bytes of an offer, and only when at least 100 are there.
    right.onReceived = (begin, end) => {
      let at = begin;
      while (end - at >= 100) at += right.keep(at, Math.min(at + 997, end));
      return at - begin;
    };
    for (let at = 0; at < sent.length; at += 50_000) {
      sendBytes(left, sent.subarray(at, at + 50_000));
    }
    await right.until(() => right.receivedBytes > sent.length - 100);
    const got = right.bytes();
    t.ok(got.equals(sent.subarray(0, got.length)));
    await finish(left, right);
  });

  t.test(`${kind.name}: unconsumed bytes are offered again with the next`, async (t) => {
    const { left, right } = await open();
    right.onReceived = (begin, end) => (end - begin < 8 ? 0 : right.keep(begin, end));
    sendBytes(left, Buffer.from('half'));
    await right.until(() => right.offers === 1);
    sendBytes(left, Buffer.from('full'));
    await right.until(() => right.receivedBytes === 8);
    t.equal(String(right.bytes()), 'halffull');
    await finish(left, right);
  });

  t.test(
    `${kind.name}: a 1 MiB payload lands in its own buffer, whatever precedes it`,
    async (t) => {
      const { left, right } = await open();
      const payloads = [patternBytes(MIB, 1), patternBytes(MIB, 2), patternBytes(20 * KIB, 3)];
      const received: Buffer[] = [];
      const target = bench.slab.allocate(MIB);
      let expected = -1;
      const arrived = (): void => {
        const length = payloads[expected]?.length as number;
        received.push(Buffer.from(bench.slab.bytes.slice(target, target + length)));
        expected = -1;
      };
      right.onFilled = () => {
        arrived();
        // Allowed here, and must not offer what follows the payload inside this call.
        right.connection.pause();
        right.connection.resume();
      };
      right.onReceived = (begin, end) => {
        let at = begin;
        while (at < end && expected < 0) {
          expected = bench.slab.bytes[at++] as number;
          const length = payloads[expected]?.length as number;
          const taken = takePayload(right.connection, at, end, target, length);
          at += taken;
          if (taken === length) arrived();
        }
        return at - begin;
      };
      for (const [index, payload] of payloads.entries()) {
        sendBytes(left, Buffer.from([index]));
        sendBytes(left, payload);
      }
      await right.until(() => received.length === 3);
      for (const [index, payload] of payloads.entries()) t.ok(received[index]?.equals(payload));
      t.ok(right.filledCount >= 2, 'payloads longer than what was offered were steered');
      bench.slab.release(target);
      await finish(left, right);
    },
  );

  t.test(`${kind.name}: a payload may be split over targets set one from another`, async (t) => {
    const { left, right } = await open();
    const payload = patternBytes(300_000);
    const targets = [bench.slab.allocate(100_000), bench.slab.allocate(100_000)];
    const parts: Buffer[] = [];
    const lengths = [100_000, 1, 99_999, 100_000];
    const next = (): void => {
      const length = lengths[parts.length];
      const target = targets[parts.length % 2] as number;
      if (length !== undefined) right.connection.receiveInto(target, length);
    };
    right.onReceived = (begin, end) => {
      next();
      return end - begin;
    };
    right.onFilled = () => {
      const target = targets[parts.length % 2] as number;
      const end = target + (lengths[parts.length] as number);
      parts.push(Buffer.from(bench.slab.bytes.slice(target, end)));
      next();
    };
    sendBytes(left, Buffer.from('x'));
    await right.until(() => right.offers === 1);
    sendBytes(left, payload);
    await right.until(() => parts.length === 4);
    t.ok(Buffer.concat(parts).equals(payload));
    for (const target of targets) bench.slab.release(target);
    await finish(left, right);
  });

  t.test(`${kind.name}: 1000 frames queued in one turn keep their order and tokens`, async (t) => {
    const { left, right } = await open();
    for (let frame = 1; frame <= 1000; frame++) {
      const at = left.connection.header(26);
      t.not(at, NO_BUFFER);
      bench.slab.bytes.fill(frame & 0xff, at, at + 26);
      left.connection.send(at, 26, frame % 3 === 0 ? frame : 0);
    }
    t.equal(left.connection.queuedBytes(), 26_000);
    await right.until(() => right.receivedBytes === 26_000);
    const got = right.bytes();
    for (let frame = 1; frame <= 1000; frame++) {
      if (got[frame * 26 - 26] !== (frame & 0xff)) t.fail(`frame ${frame} is out of place`);
      if (got[frame * 26 - 1] !== (frame & 0xff)) t.fail(`frame ${frame} is cut`);
    }
    await left.until(() => left.tokens.length === 333);
    t.same(
      left.tokens,
      Array.from({ length: 333 }, (_, i) => 3 * i + 3),
    );
    t.equal(left.connection.queuedBytes(), 0);
    t.ok(right.offers <= 40, `received in few chunks: ${right.offers}`);
    await finish(left, right);
  });

  t.test(`${kind.name}: header memory goes round many times without mixing frames`, async (t) => {
    const { left, right } = await open();
    let next = 0;
    const fill = (): void => {
      for (let i = 0; i < 700 && next < 20_000; i++) {
        const bytes = 28 + (next % 37);
        const at = left.connection.header(bytes);
        if (at === NO_BUFFER) break;
        bench.slab.view.setUint32(at, next);
        bench.slab.bytes[at + 4] = bytes;
        left.connection.send(at, bytes, ++next);
      }
    };
    let expected = 0;
    right.onReceived = (begin, end) => {
      let at = begin;
      while (end - at >= 5 && end - at >= (bench.slab.bytes[at + 4] as number)) {
        if (bench.slab.view.getUint32(at) !== expected++) t.fail(`frame ${expected} is wrong`);
        at += bench.slab.bytes[at + 4] as number;
      }
      return at - begin;
    };
    left.onSent = () => fill();
    fill();
    await right.until(() => expected === 20_000);
    t.equal(left.tokens.length, 20_000);
    await finish(left, right);
  });

  t.test(`${kind.name}: a peer that does not read makes header() say NO_BUFFER`, async (t) => {
    const { left, right } = await open();
    right.connection.pause();
    const payload = bench.slab.allocate(MIB);
    let frames = 0;
    const full = deferred<void>();
    const fill = (): void => {
      for (let i = 0; i < 8; i++) {
        const at = left.connection.header(32);
        if (at === NO_BUFFER || frames > 5000) {
          full.resolve();
          return;
        }
        bench.slab.bytes.fill(7, at, at + 32);
        left.connection.send(at, 32, 0);
        left.connection.send(payload, 16 * KIB, 0);
        frames++;
      }
      setImmediate(fill);
    };
    fill();
    await full.promise;
    t.ok(frames < 5000, `full after ${frames} frames`);
    t.ok(left.connection.queuedBytes() > MIB, 'the queue is accounted for');
    right.connection.resume();
    await right.until(() => right.receivedBytes === frames * (16 * KIB + 32));
    await left.until(() => left.connection.queuedBytes() === 0 || left.ends.length > 0);
    t.not(left.connection.header(32), NO_BUFFER, 'there is room again');
    bench.slab.release(payload);
    await finish(left, right);
  }).catch(t.threw);

  t.test(`${kind.name}: pause() stops offers, resume() offers the rest at once`, async (t) => {
    const { left, right } = await open();
    right.onReceived = (begin) => {
      right.connection.pause();
      return right.keep(begin, begin + 1);
    };
    sendBytes(left, Buffer.from('abc'));
    await right.until(() => right.receivedBytes === 1);
    // A round trip on the other direction shows that nothing else was offered meanwhile.
    sendBytes(right, Buffer.from('ping'));
    await left.until(() => left.receivedBytes === 4);
    t.equal(right.offers, 1);
    right.connection.resume();
    t.equal(right.offers, 2, 'offered inside resume()');
    right.connection.resume();
    await right.until(() => right.receivedBytes === 3);
    t.equal(String(right.bytes()), 'abc');
    await finish(left, right);
  });

  t.test(`${kind.name}: end() delivers what is queued, then both see a clean end`, async (t) => {
    const { left, right } = await open();
    const sent = patternBytes(3 * MIB);
    for (let at = 0; at < sent.length; at += MIB) sendBytes(left, sent.subarray(at, at + MIB));
    // The peer keeps sending: closing at once would reset it, and lose the end of our bytes.
    for (let i = 0; i < 4; i++) sendBytes(right, patternBytes(MIB, i));
    left.connection.end();
    t.equal(left.connection.header(26), NO_BUFFER);
    t.equal(await right.closedWith(), null);
    t.ok(right.bytes().equals(sent));
    t.equal(await left.closedWith(), null);
    t.equal(left.receivedBytes, 0, 'nothing is offered after end()');
    t.same([left.ends.length, right.ends.length], [1, 1]);
    t.notOk(left.wasReentered || right.wasReentered);
    for (const token of [...left.tokens]) t.ok(token > 0);
    t.equal(left.tokens.length, 3);
  });

  t.test(
    `${kind.name}: an orderly end while paused is told after the bytes before it`,
    async (t) => {
      const { left, right } = await open();
      right.onReceived = (begin) => {
        right.connection.pause();
        return right.keep(begin, begin + 1);
      };
      sendBytes(left, Buffer.from('abc'));
      await right.until(() => right.offers === 1);
      left.connection.end();
      right.onReceived = (begin, end) => right.keep(begin, end);
      // A native socket sees the end while paused and closes, which ends the other side too.
      if (kind.name.startsWith('native')) t.equal(await left.closedWith(), null);
      t.equal(right.ends.length, 0);
      right.connection.resume();
      t.equal(await right.closedWith(), null);
      t.equal(String(right.bytes()), 'abc');
      t.equal(await left.closedWith(), null);
    },
  );

  t.test(`${kind.name}: destroy(error) tells that error, once, never inside a call`, async (t) => {
    const { left, right } = await open();
    const why = new StorageError('BAD_FRAME', 'the test says so');
    right.onReceived = (begin, end) => {
      right.connection.destroy(why);
      right.connection.destroy();
      right.connection.end();
      t.equal(right.ends.length, 0);
      right.connection.send(begin, end - begin, 5);
      return 0;
    };
    sendBytes(left, Buffer.from('abc'));
    t.equal(await right.closedWith(), why);
    await left.closedWith();
    t.same([left.ends.length, right.ends.length, right.tokens.length], [1, 1, 0]);
    t.notOk(right.wasReentered);
  });

  t.test(`${kind.name}: an end in the middle of a payload is CONNECTION_LOST`, async (t) => {
    const { left, right } = await open();
    const target = bench.slab.allocate(MIB);
    right.onReceived = (begin, end) => {
      right.connection.receiveInto(target, MIB);
      return end - begin;
    };
    sendBytes(left, patternBytes(10 * KIB));
    await right.until(() => right.offers === 1);
    sendBytes(left, patternBytes(10 * KIB));
    left.connection.end();
    t.match(await right.closedWith(), { code: 'CONNECTION_LOST' });
    t.equal(right.ends.length, 1);
    bench.slab.release(target);
    await left.closedWith();
  });
}

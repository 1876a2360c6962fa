// How many pieces a sync agent sends at once, by how long they take.

import t from 'tap';
import { PIECES_AT_ONCE_MAX } from '../../src/sync/constants.js';
import { Pace } from '../../src/sync/pace.js';
import { ManualClock } from '../support/manual-clock.js';

const PIECE = 2 * 1024 * 1024;

/** Pieces one after the other, each taking so long. @returns the last pause asked for. */
function send(pace: Pace, clock: ManualClock, count: number, tookMs: number): number {
  let pauseMs = 0;
  for (let i = 0; i < count; i++) {
    const beganMs = clock.nowMs();
    clock.advance(tookMs);
    pauseMs = pace.arrived('sent', PIECE, beganMs);
  }
  return pauseMs;
}

t.test('as long as pieces are quick more go at once, up to a limit', async (t) => {
  const clock = new ManualClock();
  const pace = new Pace(clock);
  const first = pace.piecesAtOnce;
  send(pace, clock, 50, 10);
  t.ok(pace.piecesAtOnce > first);
  send(pace, clock, 1000, 12);
  t.equal(pace.piecesAtOnce, PIECES_AT_ONCE_MAX);
});

t.test('slow pieces bring it down to one at a time with pauses, and never to none', async (t) => {
  const clock = new ManualClock();
  const pace = new Pace(clock);
  send(pace, clock, 50, 10);
  t.equal(send(pace, clock, 1, 40), 0, 'first fewer at once');
  t.equal(send(pace, clock, 20, 30), 20, 'then a pause, a short one');
  t.equal(pace.piecesAtOnce, 1);
  t.equal(send(pace, clock, 1, 4000), 20, 'in any case');
  await pace.enter();
  pace.leave();
  t.equal(send(pace, clock, 1, 10), 0);
  t.equal(pace.piecesAtOnce, 2, 'it recovers as soon as pieces are quick');
});

t.test('pieces that were already under way do not slow it down again', async (t) => {
  const clock = new ManualClock();
  const pace = new Pace(clock);
  send(pace, clock, 1000, 10);
  clock.advance(100);
  const beganMs = clock.nowMs() - 100;
  for (let i = 0; i < 8; i++) pace.arrived('sent', PIECE, beganMs);
  t.equal(pace.piecesAtOnce, Math.floor(PIECES_AT_ONCE_MAX * 0.7));
});

t.test('a disk that became slower is believed in time', async (t) => {
  const clock = new ManualClock();
  const pace = new Pace(clock);
  send(pace, clock, 10, 10);
  t.ok(send(pace, clock, 100, 40) > 0);
  t.equal(send(pace, clock, 1000, 40), 0);
  t.ok(pace.piecesAtOnce > 1);
});

t.test('pieces of another length or that were only compared say nothing of these', async (t) => {
  const clock = new ManualClock();
  const pace = new Pace(clock);
  const before = pace.piecesAtOnce;
  send(pace, clock, 1, 10);
  const beganMs = clock.nowMs();
  clock.advance(100);
  t.equal(pace.arrived('equal', PIECE, beganMs), 0);
  t.equal(pace.arrived('sent', 4096, beganMs), 0);
  t.ok(pace.piecesAtOnce >= before);
});

t.test('no more enter than may; each that leaves lets another one in', async (t) => {
  const pace = new Pace(new ManualClock());
  let entered = 0;
  const all = Array.from({ length: 6 }, () => pace.enter().then(() => entered++));
  await new Promise(setImmediate);
  t.equal(entered, pace.piecesAtOnce);
  pace.leave();
  await new Promise(setImmediate);
  t.equal(entered, pace.piecesAtOnce + 1);
  pace.leave();
  await Promise.all(all);
  t.equal(entered, 6);
});

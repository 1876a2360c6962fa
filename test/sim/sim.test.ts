// The simulator itself: a seed is the same story every time, its world has all that it is meant to
// have, and a planted bug is noticed. Many seeds run apart from the default suite: scripts/test-sim.

import t from 'tap';

import { MUTANTS } from './mutants/all.js';
import { runSeed } from './run-seed.js';

t.test('the same seed gives the same story, another seed another one', async (t) => {
  const first = await runSeed(3);
  const again = await runSeed(3, true);
  const other = await runSeed(4);
  t.equal(first.hash, again.hash, 'reading along changes nothing');
  t.equal(first.events, again.events);
  t.not(first.hash, other.hash);
});

t.test('a few seeds hold every promise, with clients at work', async (t) => {
  let acknowledged = 0;
  for (let seed = 1; seed <= 5; seed++) {
    const { violation, opsAcked } = await runSeed(seed);
    t.equal(violation, null, `seed ${seed}`);
    acknowledged += opsAcked;
  }
  t.ok(acknowledged > 200);
});

t.test('every planted bug still finds what it mutates, and is taken out again', async (t) => {
  for (const mutant of MUTANTS) {
    const undo = mutant.plant();
    undo();
    t.pass(mutant.name);
  }
  t.equal((await runSeed(3)).hash, (await runSeed(3)).hash);
});

t.test('a flush without fdatasync is noticed at once', async (t) => {
  const mutant = MUTANTS.find(({ name }) => name === 'skipped-sync') ?? null;
  let seed = 1;
  while (seed < 20 && (await runSeed(seed, false, mutant)).violation === null) seed++;
  t.match((await runSeed(seed, false, mutant)).violation, { promise: 'P2' });
});

// The scenarios that upstream's tests check are numbered; a test that checks one begins its name with
// the numbers, as in `#77 #79 a tree of snapshots`. None may get lost.

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { repoRoot } from '../support/fixtures.js';

/** First and last number of each group, and what it is about. */
const GROUPS: readonly (readonly [number, number, string])[] = [
  [1, 20, 'A: the replica'],
  [21, 22, 'B: partial writes'],
  // C, 23 to 25, the view that a backup has of a replica, comes with backups.
  [26, 35, 'D: rules of the engine'],
  [43, 49, 'F: the replica over gRPC'],
  [50, 53, 'G: the engine over gRPC'],
  [71, 76, 'J: the data path'],
  [77, 84, 'K: snapshots of a live device'],
  [85, 95, 'L: high availability'],
];

const TEST_NAME = /\btest\(\s*['"`]((?:#\d+ )+)/g;

/** Number → files with a test that cites it. */
function citations(): Map<number, string[]> {
  const cited = new Map<number, string[]>();
  const root = join(repoRoot, 'test');
  const files = readdirSync(root, { recursive: true, encoding: 'utf8' });
  for (const file of files.filter((name) => name.endsWith('.test.ts'))) {
    const text = readFileSync(join(root, file), 'utf8');
    for (const [, numbers = ''] of text.matchAll(TEST_NAME)) {
      for (const number of numbers.trim().split(' ')) {
        const key = Number(number.slice(1));
        cited.set(key, [...(cited.get(key) ?? []), file]);
      }
    }
  }
  return cited;
}

t.test('every scenario of upstream has a test that cites its number', (t) => {
  const cited = citations();
  for (const [first, last, what] of GROUPS) {
    const missing: number[] = [];
    for (let number = first; number <= last; number++) if (!cited.has(number)) missing.push(number);
    t.same(missing, [], what);
  }
  t.end();
});

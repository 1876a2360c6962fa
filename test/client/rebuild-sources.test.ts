// Files of two replicas are mixed only when they fit together.

import t from 'tap';
import type { Replica } from '../../src/api/generated/replica.js';
import { chooseSources } from '../../src/client/rebuild-sources.js';
import { replicaInfo } from '../support/replica-info.js';

/** @param disks disk → parent; '!' marks a removed one. */
function candidate(
  address: string,
  disks: Record<string, string>,
): { address: string; info: Replica } {
  const records = Object.entries(disks).map(([key, parent]) => {
    const name = key.replace('!', '');
    const flags = { removed: key.endsWith('!'), userCreated: true, children: {}, labels: {} };
    return [name, { name, parent, ...flags, created: '', size: '0' }];
  });
  const info = replicaInfo({ head: 'head', disks: Object.fromEntries(records) });
  return { address, info };
}

const LIST = ['b.img', 'b.img.meta', 'a.img.meta'];
const WHOLE = { head: 'b.img', 'b.img': 'a.img', 'a.img': '' };
const MERGED = { head: 'b.img', 'b.img': '' };

t.test('the replica that the list describes is read, and who has the same chain', (t) => {
  const all = [candidate('x', MERGED), candidate('y', WHOLE), candidate('z', WHOLE)];
  t.same(chooseSources(all, LIST, 'y'), ['y', 'z'], 'one that has merged a into b has other files');
  t.same(chooseSources(all, LIST, 'z'), ['z', 'y']);
  t.end();
});

t.test('an engine that does not say is guessed at by the records in its list', (t) => {
  const all = [candidate('x', MERGED), candidate('y', WHOLE)];
  t.same(chooseSources(all, LIST, ''), ['y']);
  t.same(chooseSources([candidate('x', MERGED)], LIST, ''), ['x'], 'nobody fits: who there is');
  t.end();
});

t.test('while a removed disk is left, a purge may be half done on each in its own way', (t) => {
  const removed = { head: 'b.img', 'b.img': 'a.img', 'a.img!': '' };
  t.same(chooseSources([candidate('y', removed), candidate('z', removed)], LIST, 'z'), ['z']);
  t.end();
});

t.test('who could not be asked is no source beside another', (t) => {
  const silent = { address: 's', info: null };
  t.same(chooseSources([silent, candidate('y', WHOLE)], LIST, 'y'), ['y']);
  t.same(chooseSources([silent], LIST, 's'), ['s']);
  t.end();
});

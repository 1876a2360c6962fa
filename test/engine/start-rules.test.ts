// Which replicas a starting engine trusts, and the size of its volume.

import t from 'tap';
import { Replica as ReplicaMessage } from '../../src/api/generated/replica.js';
import {
  behindByRevision,
  type Candidate,
  decideVolumeSize,
  salvage,
} from '../../src/engine/start-rules.js';

function candidate(address: string, fields: Partial<Candidate['info']>): Candidate {
  return { address, info: { ...ReplicaMessage.decode(new Uint8Array()), ...fields } };
}

t.test('#26 the size of a starting volume', (t) => {
  const table: [number, number, number[], number][] = [
    [64, 0, [64], 64],
    [64, 0, [0], 64],
    [64, 64, [64], 64],
    [64, 64, [32], 64],
    [64, 32, [64], 64],
    [64, 32, [32], 32],
    [64, 32, [32, 64], 32],
  ];
  for (const [size, current, replicas, want] of table) {
    t.equal(decideVolumeSize(size, current, replicas), want, `${size} ${current} [${replicas}]`);
  }
  t.end();
});

t.test('salvage takes the largest head among those written last', (t) => {
  const at = (seconds: number): string => String(BigInt(seconds) * 1_000_000_000n);
  const old = candidate('old', { lastModifyTime: at(100), headFileSize: 9999 });
  const small = candidate('small', { lastModifyTime: at(200), headFileSize: 10 });
  const large = candidate('large', { lastModifyTime: at(197), headFileSize: 20 });
  const tie = candidate('tie', { lastModifyTime: at(199), headFileSize: 20 });
  t.equal(salvage([old, small, large])?.address, 'large');
  t.equal(salvage([large, tie, small])?.address, 'tie', 'of equal heads the newest');
  t.equal(salvage([]), null);
  t.end();
});

t.test('a replica whose revision counter is behind, or that keeps none, is not trusted', (t) => {
  const a = candidate('a', { revisionCounter: 7 });
  const b = candidate('b', { revisionCounter: 6 });
  const c = candidate('c', { revisionCounterDisabled: true });
  t.same(behindByRevision([a, b, c], false), ['b', 'c']);
  t.same(behindByRevision([a, c], true), ['a']);
  t.end();
});

// Which members of a starting volume can be made alike after a snapshot or revert was cut short.

import t from 'tap';
import { Replica as ReplicaMessage } from '../../src/api/generated/replica.js';
import { planAlignment } from '../../src/engine/alignment.js';
import type { ReplicaInfo } from '../../src/engine/ports.js';

/** @param disks disk name → parent; the head is 'head'. */
function replica(disks: Record<string, string>): ReplicaInfo {
  const record = (name: string, parent: string): ReplicaInfo['disks'][string] => ({
    name,
    parent,
    children: {},
    removed: false,
    userCreated: true,
    created: '2026-01-01T00:00:00Z',
    size: '0',
    labels: { app: 'db' },
  });
  return {
    ...ReplicaMessage.decode(new Uint8Array()),
    head: 'head',
    disks: Object.fromEntries(
      Object.entries(disks).map(([name, parent]) => [name, record(name, parent)]),
    ),
  };
}

const SNAP = (name: string): string => `volume-snap-${name}.img`;
const WITH_2 = replica({ head: SNAP('2'), [SNAP('2')]: SNAP('1'), [SNAP('1')]: '' });
const WITH_1 = replica({ head: SNAP('1'), [SNAP('1')]: '' });
const REVERTED = replica({ head: SNAP('1'), [SNAP('2')]: SNAP('1'), [SNAP('1')]: '' });

t.test('members that stand on the same snapshot need nothing, whatever was purged below', (t) => {
  const purged = replica({ head: SNAP('2'), [SNAP('2')]: '' });
  t.same(planAlignment([WITH_2, purged, WITH_2]), { cuts: [], diverged: [] });
  t.same(planAlignment([]), { cuts: [], diverged: [] });
  t.same(planAlignment([replica({ head: '' }), replica({ head: '' })]).diverged, []);
  t.end();
});

t.test('a snapshot that only some have is cut on the others, wherever they come', (t) => {
  const record = {
    name: '2',
    userCreated: true,
    created: '2026-01-01T00:00:00Z',
    labels: { app: 'db' },
  };
  t.same(planAlignment([WITH_2, WITH_1]), { cuts: [{ index: 1, record }], diverged: [] });
  t.same(planAlignment([WITH_1, WITH_2]), { cuts: [{ index: 0, record }], diverged: [] });
  t.same(planAlignment([WITH_1, WITH_1, WITH_2]).cuts.length, 2);
  t.same(planAlignment([replica({ head: '' }), WITH_1]).cuts.length, 1);
  t.end();
});

t.test('a revert that only some have done is undone by leaving them out', (t) => {
  t.same(planAlignment([WITH_2, REVERTED, WITH_2]), { cuts: [], diverged: [1] });
  t.same(planAlignment([REVERTED, WITH_2, REVERTED]), { cuts: [], diverged: [1] });
  t.same(planAlignment([WITH_2, REVERTED]).diverged.length, 1, 'one of two is left');
  t.end();
});

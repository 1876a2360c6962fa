// Mistakes in the engine: what it acknowledges, whom it reads, whom it trusts, what it remembers.

import { Convergence } from '../../../src/engine/convergence.js';
import type { Member, Membership } from '../../../src/engine/membership.js';
import { Volume } from '../../../src/engine/volume.js';
import { ControlClient } from '../../../src/replica-client/control-client.js';
import { type Mutant, partOf, replaceMethod } from './mutant.js';

const ackBeforeRecorded: Mutant = {
  name: 'ack-before-recorded',
  mistake: 'a write is acknowledged before the others know durably who missed it',
  plant: () =>
    replaceMethod(Volume, 'acknowledge', () => (self, operation) => {
      const finish = partOf<(operation: unknown, error: null) => void>(self, 'finish');
      finish.call(self, operation, null);
    }),
};

const staleRead: Mutant = {
  name: 'stale-read',
  mistake: 'a replica that is still being filled serves reads',
  plant: () =>
    replaceMethod(Volume, 'pickReader', (real) => (self, operation) => {
      const { live } = partOf<Membership>(self, 'membership');
      const failures = partOf<{ member: Member }[]>(operation as object, 'failures');
      const candidate = live.find(
        (member) => member.mode === 'WO' && !failures.some((f) => f.member === member),
      );
      return candidate ?? real(self, operation);
    }),
};

const noConvergence: Mutant = {
  name: 'no-convergence',
  mistake: 'after a crash nobody makes the members alike',
  plant: () => replaceMethod(Convergence, 'add', () => () => undefined),
};

const trustsStale: Mutant = {
  name: 'trusts-stale',
  mistake: 'a start does not look at rosters',
  plant: () =>
    replaceMethod(ControlClient, 'get', (real) => async (self) => ({
      ...((await real(self)) as object),
      roster: undefined,
    })),
};

const openBarrier: Mutant = {
  name: 'open-barrier',
  mistake: 'a snapshot does not wait for writes in flight',
  plant: () =>
    replaceMethod(
      Volume,
      'withBarrier',
      () => (_self, action) => (action as () => Promise<unknown>)(),
    ),
};

export const ENGINE_MUTANTS: readonly Mutant[] = [
  ackBeforeRecorded,
  staleRead,
  noConvergence,
  trustsStale,
  openBarrier,
];

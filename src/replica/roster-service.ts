// The part of ReplicaService that is this project's own: who is in step, and what may be in doubt
// (docs/adr/0007-roster.md). Translates messages, nothing else.

import type { ReplicaServiceDefinition } from '../api/generated/replica.js';
import { absentMessage, rosterOf } from '../api/roster-message.js';
import type { ServiceHandlers } from '../rpc/server.js';
import { invalidRequest } from './error-map.js';
import type { Replica } from './replica.js';

type OwnMethods = 'rosterSet' | 'absenceGet' | 'checkpointBegin' | 'checkpointEnd' | 'intentsGet';

export function rosterHandlers(
  replica: Replica,
): Pick<ServiceHandlers<typeof ReplicaServiceDefinition>, OwnMethods> {
  return {
    rosterSet: async ({ roster }) => {
      const wanted = rosterOf(roster);
      if (wanted === null) throw invalidRequest('the request has no roster');
      await replica.setRoster(wanted);
      return {};
    },
    absenceGet: async ({ replicaId }) => {
      const known = await replica.absence(replicaId);
      if (known === null) return { known: false, absent: undefined, unchangedDisks: {} };
      const { absent, unchangedDisks } = known;
      return { known: true, absent: absentMessage(absent), unchangedDisks: { ...unchangedDisks } };
    },
    checkpointBegin: async () => {
      await replica.beginCheckpoint();
      return {};
    },
    checkpointEnd: async () => {
      await replica.endCheckpoint();
      return {};
    },
    intentsGet: async () => {
      const ranges = await replica.writeIntents();
      return { known: ranges !== null, ranges: (ranges ?? []).map((range) => ({ ...range })) };
    },
  };
}

// The roster as it travels over gRPC and back. Both ends use this one mapping.

import type { AbsentReplica, Roster } from '../core/roster.js';
import type {
  AbsentReplica as AbsentMessage,
  Roster as RosterMessage,
} from './generated/replica.js';

export function absentMessage(absent: AbsentReplica): AbsentMessage {
  return {
    replicaId: absent.replicaId,
    forkDisk: absent.forkDisk,
    inFlight: [...absent.inFlight],
    unflushed: [...absent.unflushed],
    hostBootId: absent.hostBootId,
    exact: absent.isExact,
    memberCountBefore: absent.memberCountBefore,
  };
}

export function absentOf(message: AbsentMessage): AbsentReplica {
  const { exact, ...rest } = message;
  return { ...rest, isExact: exact };
}

export function rosterMessage(roster: Roster): RosterMessage {
  const { generation, number, members, absent, isClean } = roster;
  return {
    generation,
    number,
    members: [...members],
    absent: absent.map(absentMessage),
    clean: isClean,
  };
}

/** Null when the peer sent none. */
export function rosterOf(message: RosterMessage | undefined): Roster | null {
  if (message === undefined) return null;
  const { clean, absent, ...rest } = message;
  return { ...rest, isClean: clean, absent: absent.map(absentOf) };
}

// The replica's data server: the data protocol with a replica behind it. It holds no state of its
// own; the replica decides what may be read and written.

import type { BlockDevice } from '../core/block-device.js';
import type { Clock } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import type { FrameServerPolicy, SessionFence } from '../frame-server/policy.js';
import { type FrameServer, startFrameServer } from '../frame-server/server.js';
import type { Endpoint, Transport } from '../transport/connection.js';
import { FRAME_TYPE, UNEXPECTED_EOF_TEXT } from '../wire/replica/constants.js';
import type { EnginePresence } from './engine-presence.js';
import { supersededError } from './standing.js';

/** What the data server needs of a replica. */
export interface ServedReplica extends BlockDevice {
  /** Null when open and healthy; otherwise why not, with Longhorn's text. */
  ping(): StorageError | null;
  /** Which open this is, counted; 0 while closed. */
  readonly openSerial: number;
  /** What openSerial will be at the next open. */
  readonly nextSerial: number;
  /** Of the engine that has it open; 0 for one of Longhorn's. */
  readonly openGeneration: number;
  /** Newest generation that has it open or has asked to. */
  readonly newestGeneration: number;
}

/** Belongs to no open. */
const NO_PASS = -1;

/**
 * A connection is good for one open: what is still on its way when the replica closes must not reach
 * what a later engine opened. Engines of Longhorn connect first, say nothing and then open.
 */
function fenceOf(replica: ServedReplica): SessionFence {
  return {
    newPass: () => (replica.openSerial === 0 ? replica.nextSerial : replica.openSerial),
    passOf: (generation) =>
      generation === replica.openGeneration && replica.openSerial > 0
        ? replica.openSerial
        : NO_PASS,
    refusal: (pass, generation) => {
      const { openSerial, openGeneration, newestGeneration } = replica;
      // Also while the newer engine's open is on its way: the older one must not go on elsewhere.
      if (generation > 0 && generation < newestGeneration) {
        return supersededError(generation, newestGeneration);
      }
      // A closed replica refuses for itself.
      if (openSerial === 0 || (pass === openSerial && generation === openGeneration)) return null;
      if (generation < openGeneration) return supersededError(generation, openGeneration);
      return new StorageError('NOT_OPEN', 'the replica was closed since this connection was made');
    },
  };
}

/** A replica never answers with the noSpace type: a Go engine would take it for success. */
function replicaPolicy(replica: ServedReplica): FrameServerPolicy {
  return {
    ping: () => replica.ping(),
    errorType: () => FRAME_TYPE.error,
    errorText: (error) => (error.code === 'OUT_OF_RANGE' ? UNEXPECTED_EOF_TEXT : error.message),
    clipsUnmap: true,
    extensions: true,
    fence: fenceOf(replica),
  };
}

export interface DataServerOptions {
  readonly transport: Transport;
  readonly endpoint: Endpoint;
  readonly replica: ServedReplica;
  readonly clock: Clock;
  readonly log: Logger;
  readonly presence?: EnginePresence;
}

/** @throws ADDRESS_IN_USE, INVALID_ARGUMENT. */
export function startDataServer(options: DataServerOptions): Promise<FrameServer> {
  const { transport, endpoint, replica, clock, log, presence } = options;
  const policy = replicaPolicy(replica);
  return startFrameServer({
    transport,
    endpoint,
    device: replica,
    policy,
    clock,
    log,
    ...(presence !== undefined && {
      connected: () => presence.connected(),
      disconnected: () => presence.disconnected(),
    }),
  });
}

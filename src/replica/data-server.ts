// The replica's data server: the data protocol with a replica behind it. It holds no state of its
// own; the replica decides what may be read and written.

import type { BlockDevice } from '../core/block-device.js';
import type { Clock } from '../core/clock.js';
import type { StorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import type { FrameServerPolicy } from '../frame-server/policy.js';
import { type FrameServer, startFrameServer } from '../frame-server/server.js';
import type { Endpoint, Transport } from '../transport/connection.js';
import { FRAME_TYPE, UNEXPECTED_EOF_TEXT } from '../wire/replica/constants.js';
import type { EnginePresence } from './engine-presence.js';

/** What the data server needs of a replica. */
export interface ServedReplica extends BlockDevice {
  /** Null when open and healthy; otherwise why not, with Longhorn's text. */
  ping(): StorageError | null;
}

/** A replica never answers with the noSpace type: a Go engine would take it for success. */
function replicaPolicy(replica: ServedReplica): FrameServerPolicy {
  return {
    ping: () => replica.ping(),
    errorType: () => FRAME_TYPE.error,
    errorText: (error) => (error.code === 'OUT_OF_RANGE' ? UNEXPECTED_EOF_TEXT : error.message),
    clipsUnmap: true,
    extensions: true,
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

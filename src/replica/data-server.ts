// The replica's data server: accepts connections of the data protocol and serves the replica
// through them. It holds no state of its own; the replica decides what may be read and written.

import type { BlockDevice } from '../core/block-device.js';
import type { StorageError } from '../core/errors.js';
import { CONNECTIONS_MAX } from '../core/limits.js';
import type { Logger } from '../core/log.js';
import type { FrameServerPolicy } from '../frame-server/policy.js';
import { FrameSession } from '../frame-server/session.js';
import type { Connection, Endpoint, Listener, Transport } from '../transport/connection.js';
import { FRAME_TYPE, UNEXPECTED_EOF_TEXT } from '../wire/replica/constants.js';

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

export interface DataServer {
  readonly endpoint: Endpoint;
  /** Stops accepting, answers what is in flight, then ends the connections. */
  close(): Promise<void>;
}

export interface DataServerOptions {
  readonly transport: Transport;
  readonly endpoint: Endpoint;
  readonly replica: ServedReplica;
  readonly log: Logger;
}

/** @throws ADDRESS_IN_USE, INVALID_ARGUMENT. */
export async function startDataServer(options: DataServerOptions): Promise<DataServer> {
  const { replica, log } = options;
  const sessions = new Set<FrameSession>();
  const policy = replicaPolicy(replica);
  let whenEmpty: (() => void) | null = null;

  const accepted = (connection: Connection): void => {
    if (sessions.size >= CONNECTIONS_MAX || whenEmpty !== null) {
      log.warn('replica.data.refused', { peer: connection.peer, connections: sessions.size });
      connection.destroy();
      return;
    }
    log.info('replica.data.connected', { peer: connection.peer });
    const session = new FrameSession({
      connection,
      device: replica,
      policy,
      ended: (error) => {
        sessions.delete(session);
        log.info('replica.data.disconnected', { peer: connection.peer, ...(error && { error }) });
        if (sessions.size === 0) whenEmpty?.();
      },
    });
    sessions.add(session);
  };

  const listener: Listener = await options.transport.listen(options.endpoint, accepted);
  return {
    endpoint: listener.address,
    async close() {
      await listener.close();
      if (sessions.size === 0) return;
      await new Promise<void>((resolve) => {
        whenEmpty = resolve;
        for (const session of sessions) session.drain();
      });
    },
  };
}

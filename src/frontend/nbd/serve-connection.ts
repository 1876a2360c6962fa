// One client from its first byte to its last: handshake, then session.

import type { Clock } from '../../core/clock.js';
import type { StorageError } from '../../core/errors.js';
import type { Connection } from '../../transport/connection.js';
import { Handshake } from './handshake.js';
import type { Agreement, NegotiationRules } from './negotiation.js';
import { NbdSession } from './session.js';

export interface ServeConnectionOptions {
  readonly connection: Connection;
  readonly rules: NegotiationRules;
  readonly clock: Clock;
  readonly agreed?: (agreement: Agreement) => void;
  /** Called once: the connection is closed and nothing of it is in flight. */
  readonly ended: (error: StorageError | null) => void;
}

export interface ServedConnection {
  /** Ends the connection once what is in flight is answered; at once during the handshake. */
  stop(): void;
  /** Ends it now. */
  destroy(): void;
}

export function serveConnection(options: ServeConnectionOptions): ServedConnection {
  const { connection, rules, clock, ended } = options;
  let session: NbdSession | null = null;
  const handshake = new Handshake({
    connection,
    rules,
    clock,
    agreed: (agreement) => {
      options.agreed?.(agreement);
      session = new NbdSession({ connection, agreement, ended });
      return session;
    },
    ended,
  });
  handshake.start();
  return {
    stop: () => (session === null ? connection.destroy() : session.stop()),
    destroy: () => connection.destroy(),
  };
}

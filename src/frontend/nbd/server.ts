// The NBD server: listeners, the connections they accept, and an orderly end. It serves every
// export on every endpoint; what a connection says is the business of handshake and session.

import type { Socket } from 'node:net';
import type { Clock } from '../../core/clock.js';
import type { StorageError } from '../../core/errors.js';
import { CONNECTIONS_MAX } from '../../core/limits.js';
import type { Logger } from '../../core/log.js';
import type { Slab } from '../../core/slab.js';
import {
  describeEndpoint,
  type Connection,
  type Endpoint,
  type Listener,
  type Transport,
} from '../../transport/connection.js';
import { ConnectionRegions } from '../../transport/connection-memory.js';
import type { NbdExports } from './export.js';
import type { Agreement } from './negotiation.js';
import { serveConnection, type ServedConnection } from './serve-connection.js';
import { serveStream, type NbdTls } from './serve-stream.js';
import { listenForStreams } from './stream-listener.js';

export { nbdUri } from './uri.js';
export type { NbdTls } from './serve-stream.js';

export interface NbdServerOptions {
  readonly transport: Transport;
  readonly slab: Slab;
  readonly clock: Clock;
  readonly log: Logger;
  readonly exports: NbdExports;
  readonly endpoints: readonly Endpoint[];
  /** Without it, or with mode 'off', connections use the transport's fast path. */
  readonly tls?: NbdTls;
}

export interface NbdServer {
  /** Real addresses, in the order of the option. */
  readonly endpoints: readonly Endpoint[];
  /** Connections served now. */
  connections(): number;
  /**
   * Stops accepting, answers what is in flight (and new requests with ESHUTDOWN), then ends the
   * connections; those not done after drainMs are broken. Resolves when all are gone.
   */
  close(options: { readonly drainMs: number }): Promise<void>;
}

/** @throws ADDRESS_IN_USE, INVALID_ARGUMENT. */
export async function createNbdServer(options: NbdServerOptions): Promise<NbdServer> {
  const server = new Server(options);
  await server.listen();
  return server;
}

class Server implements NbdServer {
  private readonly options: NbdServerOptions;
  private readonly log: Logger;
  private readonly listeners: Listener[] = [];
  private readonly served = new Set<ServedConnection>();
  private isClosing = false;
  private whenEmpty: (() => void) | null = null;

  constructor(options: NbdServerOptions) {
    this.options = options;
    this.log = options.log;
  }

  get endpoints(): readonly Endpoint[] {
    return this.listeners.map(({ address }) => address);
  }

  connections(): number {
    return this.served.size;
  }

  async listen(): Promise<void> {
    try {
      for (const endpoint of this.options.endpoints) await this.listenOn(endpoint);
    } catch (error) {
      await this.closeListeners();
      throw error;
    }
  }

  async close({ drainMs }: { readonly drainMs: number }): Promise<void> {
    this.isClosing = true;
    const empty = new Promise<void>((resolve) => (this.whenEmpty = resolve));
    for (const connection of this.served) connection.stop();
    const timer = this.options.clock.after(drainMs, () => {
      this.log.warn('nbd.drain.timedOut', { drainMs, connections: this.served.size });
      for (const connection of this.served) connection.destroy();
    });
    await this.closeListeners();
    if (this.served.size > 0) await empty;
    timer.cancel();
  }

  private async listenOn(endpoint: Endpoint): Promise<void> {
    const { transport, tls } = this.options;
    const listener =
      tls === undefined || tls.mode === 'off'
        ? await transport.listen(endpoint, (connection) => this.accept(connection))
        : await listenForStreams(endpoint, (socket) => this.acceptStream(socket, endpoint, tls));
    this.listeners.push(listener);
    this.log.info('nbd.listening', { endpoint: describeEndpoint(listener.address) });
  }

  private async closeListeners(): Promise<void> {
    await Promise.all(this.listeners.map((listener) => listener.close()));
  }

  private accept(connection: Connection): void {
    const { peer } = connection;
    if (!this.hasRoomFor(peer)) {
      connection.destroy();
      return;
    }
    const { exports, clock } = this.options;
    const served = serveConnection({
      connection,
      rules: { exports, tlsMode: 'off' },
      clock,
      agreed: (agreement) => this.agreed(peer, agreement),
      ended: (error) => this.ended(served, peer, error),
    });
    this.served.add(served);
  }

  private acceptStream(socket: Socket, endpoint: Endpoint, tls: NbdTls): void {
    const { remoteAddress, remotePort } = socket;
    const peer =
      remoteAddress === undefined ? describeEndpoint(endpoint) : `${remoteAddress}:${remotePort}`;
    if (!this.hasRoomFor(peer)) {
      socket.destroy();
      return;
    }
    const { exports, clock, slab } = this.options;
    const served = serveStream({
      socket,
      peer,
      tls,
      rules: { exports, tlsMode: tls.mode },
      clock,
      regions: streamRegionsOf(slab),
      agreed: (agreement) => this.agreed(peer, agreement),
      ended: (error) => this.ended(served, peer, error),
    });
    this.served.add(served);
  }

  private hasRoomFor(peer: string): boolean {
    if (!this.isClosing && this.served.size < CONNECTIONS_MAX) return true;
    this.log.warn('nbd.refused', { peer, connections: this.served.size });
    return false;
  }

  private agreed(peer: string, { exported, structuredReplies, blockStatus }: Agreement): void {
    const { name, readOnly } = exported;
    this.log.info('nbd.connected', { peer, name, readOnly, structuredReplies, blockStatus });
  }

  private ended(served: ServedConnection, peer: string, error: StorageError | null): void {
    this.served.delete(served);
    if (error === null) this.log.info('nbd.disconnected', { peer });
    else this.log.warn('nbd.disconnected', { peer, error });
    if (this.served.size === 0) this.whenEmpty?.();
  }
}

/** Memory for connections over streams: reserved from a slab once, however often a server starts. */
const streamRegions = new WeakMap<Slab, ConnectionRegions>();

function streamRegionsOf(slab: Slab): ConnectionRegions {
  const regions = streamRegions.get(slab) ?? new ConnectionRegions(slab, CONNECTIONS_MAX);
  streamRegions.set(slab, regions);
  return regions;
}

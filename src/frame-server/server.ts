// Accepts connections of the data protocol and serves one block device through them, with one
// policy. Shared by the replica's data server and the engine's `socket` frontend.

import type { BlockDevice } from '../core/block-device.js';
import type { Clock } from '../core/clock.js';
import { CONNECTIONS_MAX } from '../core/limits.js';
import type { Logger } from '../core/log.js';
import type { Connection, Endpoint, Listener, Transport } from '../transport/connection.js';
import type { FrameServerPolicy } from './policy.js';
import { FrameSession } from './session.js';

export interface FrameServerOptions {
  readonly transport: Transport;
  readonly endpoint: Endpoint;
  readonly device: BlockDevice;
  readonly policy: FrameServerPolicy;
  readonly clock: Clock;
  readonly log: Logger;
  /** A connection was accepted, or has ended with nothing of it in flight. */
  readonly connected?: () => void;
  readonly disconnected?: () => void;
}

/** Time for answers in flight when a server closes; then connections end unanswered. */
const DRAIN_MS = 10_000;

export class FrameServer {
  private readonly options: FrameServerOptions;
  private readonly sessions = new Set<FrameSession>();
  private listener: Listener | null = null;
  private whenEmpty: (() => void) | null = null;

  constructor(options: FrameServerOptions) {
    this.options = options;
  }

  get connectionCount(): number {
    return this.sessions.size;
  }

  /** @throws ADDRESS_IN_USE, INVALID_ARGUMENT. */
  async listen(): Promise<Endpoint> {
    const { transport, endpoint } = this.options;
    this.listener = await transport.listen(endpoint, (connection) => this.accept(connection));
    return this.listener.address;
  }

  /**
   * Stops accepting, answers what is in flight, then ends the connections. A peer that reads no
   * answers, or a request that hangs, is left behind after DRAIN_MS.
   */
  async close(): Promise<void> {
    await this.listener?.close();
    if (this.sessions.size === 0) return;
    const { clock, log } = this.options;
    await new Promise<void>((resolve) => {
      const timer = clock.after(DRAIN_MS, () => {
        log.warn('data.drain.timeout', { connections: this.sessions.size, timeoutMs: DRAIN_MS });
        for (const session of this.sessions) session.abandon();
        resolve();
      });
      this.whenEmpty = () => {
        timer.cancel();
        resolve();
      };
      for (const session of this.sessions) session.drain();
    });
  }

  /** Ends the connections of engines that a newer one has superseded, and tells them why. */
  endSuperseded(): void {
    for (const session of this.sessions) session.endIfSuperseded();
  }

  private accept(connection: Connection): void {
    const { device, policy, log } = this.options;
    const { peer } = connection;
    if (this.sessions.size >= CONNECTIONS_MAX || this.whenEmpty !== null) {
      log.warn('data.connection.refused', { peer, connections: this.sessions.size });
      connection.destroy();
      return;
    }
    log.info('data.connected', { peer });
    this.options.connected?.();
    const session = new FrameSession({
      connection,
      device,
      policy,
      ended: (error) => {
        this.sessions.delete(session);
        this.options.disconnected?.();
        log.info('data.disconnected', { peer, ...(error !== null && { error }) });
        if (this.sessions.size === 0) this.whenEmpty?.();
      },
    });
    this.sessions.add(session);
  }
}

/** A server that listens. @throws ADDRESS_IN_USE, INVALID_ARGUMENT. */
export async function startFrameServer(options: FrameServerOptions): Promise<FrameServer> {
  const server = new FrameServer(options);
  await server.listen();
  return server;
}

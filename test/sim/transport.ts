// The data transport over the simulated network: real inboxes and send queues, bytes copied when
// they leave, as a kernel does. A connection ends for its peer as it would in life: orderly, by a
// reset, after a silence, or never.

import type { StorageError } from '../../src/core/errors.js';
import { NO_BUFFER, type Slab } from '../../src/core/slab.js';
import type {
  Connection,
  ConnectionHandler,
  Endpoint,
  Listener,
  Transport,
} from '../../src/transport/connection.js';
import { type ConnectionRegion, ConnectionRegions } from '../../src/transport/connection-memory.js';
import { Inbox } from '../../src/transport/inbox.js';
import { SendQueue } from '../../src/transport/send-queue.js';
import { connectError, lostError } from '../../src/transport/socket-errors.js';
import { CONNECTIONS_PER_PROCESS_MAX } from './memory.js';
import type { Pipe, Ports, SimNetwork } from './network.js';
import type { SimProcess } from './scheduler.js';

export interface DataListener {
  accept(peer: SimProcess): SimConnection | null;
}

export class SimTransport implements Transport {
  readonly process: SimProcess;
  readonly network: SimNetwork;
  readonly regions: ConnectionRegions;
  readonly connections = new Set<SimConnection>();
  private readonly ports: Ports<DataListener>;

  constructor(process: SimProcess, network: SimNetwork, ports: Ports<DataListener>, slab: Slab) {
    this.process = process;
    this.network = network;
    this.ports = ports;
    this.regions = new ConnectionRegions(slab, CONNECTIONS_PER_PROCESS_MAX);
    process.whenEnded(() => {
      for (const connection of [...this.connections]) connection.processEnded();
    });
  }

  connect(endpoint: Endpoint, timeoutMs: number): Promise<Connection> {
    const { process, network } = this;
    return new Promise((resolve, reject) => {
      if (endpoint.kind !== 'tcp') throw new Error('only TCP is simulated');
      const where = `${endpoint.host}:${endpoint.port}`;
      let isOver = false;
      const fail = (name: string): void => {
        if (isOver || !process.isAlive) return;
        isOver = true;
        reject(connectError(name, where));
      };
      process.after(timeoutMs * 1000, () => fail('ETIMEDOUT'));
      const there = network.pipe(process.host, endpoint.host);
      const back = network.pipe(endpoint.host, process.host);
      there.push(() => {
        const listener = this.ports.at(endpoint.host, endpoint.port);
        if (listener === undefined) return back.push(() => fail('ECONNREFUSED'));
        back.push(() => {
          if (isOver || !process.isAlive) return;
          const far = listener.process.isAlive ? listener.what.accept(process) : null;
          if (far === null) return fail('ECONNREFUSED');
          isOver = true;
          const near = new SimConnection(this, far.transport.process, there);
          far.join(near, back);
          near.join(far, there);
          resolve(near);
        });
      });
    });
  }

  listen(endpoint: Endpoint, accepted: (connection: Connection) => void): Promise<Listener> {
    if (endpoint.kind !== 'tcp') throw new Error('only TCP is simulated');
    const close = this.ports.listen(this.process, endpoint.port, {
      accept: (peer) => {
        const connection = new SimConnection(this, peer, null);
        accepted(connection);
        return connection;
      },
    });
    return Promise.resolve({ address: endpoint, close: () => Promise.resolve(close()) });
  }

  /** What is on its way to some of the peers never arrives. */
  dropSome(): void {
    for (const connection of this.connections) {
      if (this.network.rng.chance(0.5)) connection.dropSent();
    }
  }

  /** All connections to a host end as when the network resets them. */
  cut(host: string): void {
    for (const connection of [...this.connections]) {
      if (connection.peerHost === host) connection.reset();
    }
  }
}

export class SimConnection implements Connection {
  readonly slab: Slab;
  readonly peer: string;
  readonly transport: SimTransport;
  readonly peerHost: string;
  private readonly region: ConnectionRegion;
  private readonly inbox: Inbox;
  private readonly queue: SendQueue;
  private handler: ConnectionHandler | null = null;
  private state: 'open' | 'ending' | 'closed' = 'open';
  private far: SimConnection | null = null;
  private out: Pipe | null;
  private arrived: Uint8Array[] = [];
  private isEndHere = false;
  private isFlushDue = false;
  private closeError: StorageError | null = null;
  private isClosedTold = false;

  constructor(transport: SimTransport, peer: SimProcess, out: Pipe | null) {
    const region = transport.regions.take();
    if (region === null) throw new Error('a simulated process has too many connections');
    this.transport = transport;
    this.slab = transport.regions.slab;
    this.peer = peer.name;
    this.peerHost = peer.host;
    this.region = region;
    this.out = out;
    this.inbox = new Inbox(transport.regions, region);
    this.queue = new SendQueue(transport.regions, region);
    transport.connections.add(this);
  }

  join(far: SimConnection, out: Pipe): void {
    this.far = far;
    this.out = out;
    if (this.isFlushDue) queueMicrotask(this.flush);
  }

  start(handler: ConnectionHandler): void {
    this.handler = handler;
    this.inbox.start(handler);
    if (this.state === 'closed') queueMicrotask(() => this.tellClosed());
    // Like a socket's first bytes, what has arrived comes later than this call.
    else queueMicrotask(() => this.takeArrived());
  }

  receiveInto(bufferOffset: number, lengthBytes: number): void {
    if (this.state === 'open') this.inbox.receiveInto(bufferOffset, lengthBytes);
  }

  pause(): void {
    if (this.state === 'open') this.inbox.pause();
  }

  resume(): void {
    if (this.state !== 'open' || !this.inbox.isPaused()) return;
    if (this.inbox.resume()) this.takeArrived();
  }

  header(lengthBytes: number): number {
    return this.state === 'open' ? this.queue.header(lengthBytes) : NO_BUFFER;
  }

  send(bufferOffset: number, lengthBytes: number, token: number): void {
    if (this.state !== 'open') return;
    this.queue.push(bufferOffset, lengthBytes, token);
    this.requestFlush();
  }

  queuedBytes(): number {
    return this.queue.queuedBytes;
  }

  end(): void {
    if (this.state !== 'open') return;
    this.state = 'ending';
    this.inbox.stop();
    this.requestFlush();
  }

  destroy(error?: StorageError): void {
    if (this.state === 'closed') return;
    this.tellFar(null);
    this.finish(error ?? null);
  }

  dropSent(): void {
    this.out?.drop();
  }

  /** The network resets the connection, for both sides. */
  reset(): void {
    const { far } = this;
    this.out?.drop();
    far?.out?.drop();
    const { scheduler } = this.transport.network;
    for (const side of [this, far]) {
      if (side === null) continue;
      scheduler.after(side.transport.network.rng.below(2000), () =>
        side.finish(lostError('ECONNRESET', side.peer)),
      );
    }
  }

  /** Its process is dead: the kernel closes it, unless the machine is dead too. */
  processEnded(): void {
    if (this.state === 'closed') return;
    const { network, process } = this.transport;
    this.state = 'closed';
    this.transport.connections.delete(this);
    // A machine that dies takes what it had not sent with it; a process leaves that to the kernel.
    if (network.isDown(process.host)) this.out?.drop();
    else this.tellFar(network.rng.chance(0.5) ? 'ECONNRESET' : null);
  }

  private readonly flush = (): void => {
    if (!this.isFlushDue || this.out === null || !this.transport.process.isAlive) return;
    this.isFlushDue = false;
    if (this.state === 'closed') return;
    const parts: Uint8Array[] = [];
    let count = 0;
    this.queue.take((offset, lengthBytes) => {
      parts.push(this.slab.bytes.slice(offset, offset + lengthBytes));
      count++;
    });
    const { network, process } = this.transport;
    this.out.push(() => this.far?.arrive(parts));
    // Told at some time after it left, perhaps only after the answer came.
    process.after(network.rng.below(400), () => this.collect(count));
    if (this.state === 'ending') {
      this.tellFar(null);
      process.after(2_000_000, () => this.finish(null));
    }
  };

  private collect(count: number): void {
    if (this.state === 'closed' || this.handler === null) return;
    for (let i = 0; i < count; i++) this.queue.noteSent();
    this.queue.collect(this.handler);
  }

  private requestFlush(): void {
    if (this.isFlushDue) return;
    this.isFlushDue = true;
    queueMicrotask(this.flush);
  }

  private arrive(parts: readonly Uint8Array[]): void {
    const { network, process } = this.transport;
    if (!process.isAlive || this.state === 'closed') {
      // A dead process's kernel answers with a reset.
      this.out?.push(() => this.far?.finish(lostError('ECONNRESET', this.peer)));
      return;
    }
    if (this.state === 'ending') return;
    for (const part of parts) {
      const cut =
        part.length > 1 && network.rng.chance(0.02) ? network.rng.between(1, part.length - 1) : 0;
      if (cut > 0) this.arrived.push(part.subarray(0, cut));
      this.arrived.push(part.subarray(cut));
    }
    this.takeArrived();
  }

  private takeArrived(): void {
    while (this.handler !== null && this.state === 'open' && !this.inbox.isPaused()) {
      const chunk = this.arrived.shift();
      if (chunk === undefined) break;
      let at = 0;
      while (at < chunk.length && this.state === 'open') {
        if (this.inbox.isPaused()) {
          this.arrived.unshift(chunk.subarray(at));
          return;
        }
        at += this.inbox.copyIn(chunk, at);
      }
    }
    if (this.isEndHere && this.arrived.length === 0 && this.state === 'open') this.finish(null);
  }

  /** @param errno null for an orderly end, which comes after all bytes. */
  private tellFar(errno: string | null): void {
    const { far } = this;
    if (far === null) return;
    this.out?.push(() => {
      if (errno !== null) far.finish(lostError(errno, far.peer));
      else far.endArrived();
    });
  }

  private endArrived(): void {
    if (!this.transport.process.isAlive) return;
    if (this.state === 'ending') return this.finish(null);
    this.isEndHere = true;
    if (this.handler !== null) this.takeArrived();
  }

  private finish(error: StorageError | null): void {
    if (this.state === 'closed' || !this.transport.process.isAlive) return;
    this.state = 'closed';
    this.closeError = error;
    this.inbox.stop();
    this.arrived = [];
    queueMicrotask(() => {
      this.transport.connections.delete(this);
      this.transport.regions.give(this.region);
      if (this.handler !== null) this.tellClosed();
    });
  }

  private tellClosed(): void {
    if (this.isClosedTold) return;
    this.isClosedTold = true;
    this.handler?.closed(this.closeError);
  }
}

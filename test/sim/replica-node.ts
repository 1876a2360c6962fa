// A simulated machine with a disk and, while it runs, one replica process: the real replica, data
// server, control service and presence, wired as cli/replica-process.ts does.

import { ReplicaServiceDefinition } from '../../src/api/generated/replica.js';
import type { Logger } from '../../src/core/log.js';
import type { FrameServer } from '../../src/frame-server/server.js';
import { startDataServer } from '../../src/replica/data-server.js';
import { EnginePresence } from '../../src/replica/engine-presence.js';
import { replicaHandlers } from '../../src/replica/control-service.js';
import { Replica } from '../../src/replica/replica.js';
import { SimAgent } from './agent.js';
import { ChainPeek } from './chain-peek.js';
import { SimDisk } from './disk.js';
import { SimSlab } from './memory.js';
import type { Ports } from './network.js';
import { SimProcess } from './scheduler.js';
import { type DataListener, SimTransport } from './transport.js';
import type { Machinery } from './machinery.js';

export const CONTROL_PORT = 9500;
const DIRECTORY = '/replica';

export class ReplicaNode {
  readonly host: string;
  readonly address: string;
  readonly disk: SimDisk;
  readonly peek: ChainPeek;
  process: SimProcess | null = null;
  replica: Replica | null = null;
  agent: SimAgent | null = null;
  transport: SimTransport | null = null;
  isDown = false;
  /** Power was lost while it was a member, so that what was not flushed may be gone. */
  hasLostData = false;
  private readonly machinery: Machinery;
  private readonly dataPorts: Ports<DataListener>;
  private slab: SimSlab;
  private bootCount = 1;
  private hasDirectory = false;

  constructor(host: string, machinery: Machinery, dataPorts: Ports<DataListener>) {
    this.host = host;
    this.address = `tcp://${host}:${CONTROL_PORT}`;
    this.machinery = machinery;
    this.dataPorts = dataPorts;
    this.slab = SimSlab.take();
    this.disk = new SimDisk(machinery.scheduler, machinery.rng.fork(), this.slab);
    this.peek = new ChainPeek(this.disk, DIRECTORY);
  }

  get isRunning(): boolean {
    return this.replica !== null;
  }

  /** Starts the process; does nothing while one runs. @throws what a real start fails with. */
  async start(sizeBytes: number): Promise<void> {
    if (this.process !== null || this.isDown) return;
    const { machinery, host, disk } = this;
    const process = new SimProcess(
      machinery.scheduler,
      machinery.rng.fork(),
      host,
      `${host}#${this.bootCount}`,
      machinery.rng.between(-2000, 2000),
    );
    this.process = process;
    this.slab.give();
    this.slab = SimSlab.take();
    disk.attach(process, this.slab);
    if (!this.hasDirectory) {
      await disk.makeDirectory(DIRECTORY);
      await disk.syncDirectory('/');
      this.hasDirectory = true;
    }
    await this.serve(process, sizeBytes, machinery.logOf(host));
  }

  private async serve(process: SimProcess, sizeBytes: number, log: Logger): Promise<void> {
    const { machinery, disk } = this;
    const { clock, newId } = process;
    const { network, rpc } = machinery;
    const dataServers: FrameServer[] = [];
    const hostBootId = `${this.host}-boot-${this.bootCount}`;
    const replica = await Replica.at({
      hostBootId,
      disk,
      directory: DIRECTORY,
      clock,
      log,
      newId,
      takenOver: () => {
        for (const server of dataServers) server.endSuperseded();
      },
      revisionCounter: machinery.hasRevisionCounter,
      encrypted: false,
      unmapMarkDiskChainRemoved: false,
      snapshotMaxCount: 250,
      snapshotMaxBytes: 0,
    });
    await replica.create(sizeBytes);
    const openNow = (): number => replica.openSerial || replica.nextSerial;
    const presence = new EnginePresence(clock, openNow, (open) => {
      replica
        .abandon(open)
        .catch((error: unknown) => log.warn('replica.abandon.failed', { error }));
    });
    const transport = new SimTransport(process, network, this.dataPorts, this.slab);
    const endpoint = { kind: 'tcp', host: this.host, port: CONTROL_PORT + 1 } as const;
    dataServers.push(await startDataServer({ transport, endpoint, replica, clock, log, presence }));
    const handlers = replicaHandlers(replica, { hostBootId, localDataPath: '' });
    rpc.serve(process, CONTROL_PORT, ReplicaServiceDefinition, handlers);
    this.agent = new SimAgent({
      process,
      disk,
      directory: DIRECTORY,
      network,
      rpc,
      controlPort: CONTROL_PORT,
      agentOf: machinery.agentOf,
    });
    this.transport = transport;
    this.replica = replica;
  }

  /** SIGKILL: the page cache stays. */
  kill(): void {
    const { process } = this;
    if (process === null) return;
    this.disk.processKilled();
    this.leave(process);
  }

  losePower(): void {
    const { network } = this.machinery;
    this.isDown = true;
    network.setDown(this.host, true);
    if (this.process !== null) this.leave(this.process);
    this.disk.powerLost();
    this.bootCount++;
  }

  powerBack(): void {
    this.isDown = false;
    this.machinery.network.setDown(this.host, false);
  }

  /** The directory goes; a new replica takes its place. */
  wipe(): void {
    this.kill();
    this.disk.wipe();
    this.hasDirectory = false;
  }

  /** The simulation is over. */
  dispose(): void {
    this.kill();
    this.slab.give();
  }

  private leave(process: SimProcess): void {
    process.kill();
    this.process = null;
    this.replica = null;
    this.agent = null;
    this.transport = null;
  }
}

// An engine, a new replica and its sync agent that answer from a script and write down every call:
// for the order of a rebuild's steps and for rebuilds that hang, which real processes cannot show
// at a chosen moment. Real sockets.

import {
  ControllerServiceDefinition,
  ReplicaMode,
  type Volume,
} from '../../src/api/generated/controller.js';
import {
  type Replica,
  ReplicaServiceDefinition,
  type Roster,
} from '../../src/api/generated/replica.js';
import { SyncAgentServiceDefinition } from '../../src/api/generated/syncagent.js';
import { realClock } from '../../src/core/clock-real.js';
import { StorageError } from '../../src/core/errors.js';
import { silentLogger } from '../../src/core/log.js';
import { createRpcServer, type RpcServer, type ServiceHandlers } from '../../src/rpc/server.js';
import { freePorts } from './process-stack.js';
import { replicaInfo } from './replica-info.js';

export const SOURCE = 'tcp://127.0.0.1:9';
const SOURCE_2 = 'tcp://127.0.0.1:12';
const VOLUME_BYTES = 32 * 1024 * 1024;

export class FakeVolume {
  /** In order; replica calls that only look are left out. */
  readonly calls: string[] = [];
  /** Of the new replica. */
  replicaBytes = VOLUME_BYTES;
  state = 'closed';
  rebuilding = false;
  replicaId = '';
  roster: Roster | undefined = undefined;
  rosterVoid = false;
  /** Mode of the new replica in the engine's list. */
  mode: 'absent' | 'WO' | 'RW' | 'ERR' = 'absent';
  isEmpty = false;
  /** This call fails. */
  failing = '';
  /** FilesSync ends only when it is cancelled. */
  syncHangs = false;
  concurrentSyncLimit = 1;
  sources: string[] = [];
  enginePort = 0;
  private replicaPort = 0;
  private readonly servers: RpcServer[] = [];

  get address(): string {
    return `tcp://127.0.0.1:${this.replicaPort}`;
  }

  async start(): Promise<void> {
    this.replicaPort = await freePorts(3);
    const engine = this.server().addService(ControllerServiceDefinition, this.engineHandlers());
    const replica = this.server().addService(ReplicaServiceDefinition, this.replicaHandlers());
    const agent = this.server().addService(SyncAgentServiceDefinition, this.agentHandlers());
    this.enginePort = await engine.listen('127.0.0.1', 0);
    await replica.listen('127.0.0.1', this.replicaPort);
    await agent.listen('127.0.0.1', this.replicaPort + 2);
  }

  async stop(): Promise<void> {
    await Promise.all(this.servers.map((server) => server.close(0)));
  }

  private server(): RpcServer {
    const server = createRpcServer({ clock: realClock, log: silentLogger });
    this.servers.push(server);
    return server;
  }

  private note(call: string): void {
    this.calls.push(call);
    if (this.failing !== call) return;
    if (call === 'verify') this.mode = 'ERR';
    throw new StorageError('IO_ERROR', `${call} does not work`);
  }

  private engineHandlers(): ServiceHandlers<typeof ControllerServiceDefinition> {
    return {
      volumeGet: () => volumeMessage(this.isEmpty ? 0 : 2),
      volumeStart: ({ replicaAddresses }) => {
        this.note(`start ${replicaAddresses.length}`);
        return volumeMessage(1);
      },
      replicaList: () => ({
        replicas: [
          { address: { address: SOURCE, instanceName: '' }, mode: ReplicaMode.RW },
          { address: { address: SOURCE_2, instanceName: '' }, mode: ReplicaMode.RW },
          ...(this.mode === 'absent' ? [] : [this.member()]),
        ],
      }),
      controllerReplicaCreate: ({ snapshotRequired }) => {
        this.note(`join ${snapshotRequired ? 'with' : 'without'} snapshot`);
        this.mode = 'WO';
        this.state = 'open';
        return this.member();
      },
      replicaDelete: () => {
        this.note('delete');
        this.mode = 'absent';
        return {};
      },
      replicaPrepareRebuild: () => {
        this.note('prepare');
        const name = 'volume-snap-s1.img';
        const file = { fromFileName: name, toFileName: name, actualSize: 4096, ranges: [] };
        return { replica: this.member(), syncFileInfoList: [file], sourceAddress: '' };
      },
      replicaVerifyRebuild: () => {
        this.note('verify');
        this.mode = 'RW';
        return this.member();
      },
      replicaRebuildConcurrentSyncLimitGet: () => ({ limit: this.concurrentSyncLimit }),
    };
  }

  private member(): { address: { address: string; instanceName: string }; mode: ReplicaMode } {
    const mode = ReplicaMode[this.mode === 'absent' ? 'ERR' : this.mode];
    return { address: { address: this.address, instanceName: '' }, mode };
  }

  private replicaHandlers(): ServiceHandlers<typeof ReplicaServiceDefinition> {
    const answer = (): { replica: Replica } => ({
      replica: this.replicaMessage(),
    });
    return {
      replicaGet: answer,
      replicaOpen: () => {
        this.note('open');
        this.state = 'open';
        return answer();
      },
      replicaClose: () => {
        this.note('close');
        this.state = 'closed';
        return answer();
      },
      replicaExpand: ({ size }) => {
        this.note('expand');
        this.replicaBytes = size;
        return answer();
      },
      rebuildingSet: ({ rebuilding }) => {
        this.note(`rebuilding ${rebuilding}`);
        // As a replica does: it refuses what it is already.
        if (rebuilding === this.rebuilding) throw new StorageError('INVALID_STATE', 'no change');
        this.rebuilding = rebuilding;
        return answer();
      },
      replicaReload: () => {
        this.note('reload');
        return answer();
      },
    };
  }

  private agentHandlers(): ServiceHandlers<typeof SyncAgentServiceDefinition> {
    return {
      filesSync: async ({ fromAddressMap }, call) => {
        this.sources = Object.keys(fromAddressMap);
        this.note('sync');
        if (this.syncHangs && !call.signal.aborted) {
          await new Promise((resolve) => call.signal.addEventListener('abort', resolve));
        }
        return {};
      },
      replicaRebuildStatus: () => ({
        isRebuilding: false,
        error: '',
        progress: 0,
        state: '',
        fromReplicaAddress: '',
        receivedBytes: 0,
        fromReplicaAddressList: [],
      }),
    };
  }

  private replicaMessage(): Replica {
    return replicaInfo({
      rebuilding: this.rebuilding,
      size: String(this.replicaBytes),
      state: this.state,
      replicaId: this.replicaId,
      roster: this.roster,
      rosterVoid: this.rosterVoid,
    });
  }
}

function volumeMessage(replicaCount: number): Volume {
  return {
    name: 'v',
    size: VOLUME_BYTES,
    replicaCount,
    endpoint: '',
    frontend: '',
    frontendState: '',
    isExpanding: false,
    lastExpansionError: '',
    lastExpansionFailedAt: '',
    unmapMarkSnapChainRemoved: false,
    snapshotMaxCount: 250,
    snapshotMaxSize: 0,
  };
}

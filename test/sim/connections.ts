// The connections of a user's command, without sockets: the real steps of client/rebuild.ts and
// client/snapshots.ts run over the simulated network.

import { ControllerServiceDefinition } from '../../src/api/generated/controller.js';
import { ReplicaServiceDefinition } from '../../src/api/generated/replica.js';
import { SyncAgentServiceDefinition } from '../../src/api/generated/syncagent.js';
import {
  Connections,
  type EngineApi,
  parseReplicaUrl,
  type ReplicaApi,
  type SyncAgentApi,
} from '../../src/client/connections.js';
import { ENGINE_PORT } from './engine-host.js';
import type { SimRpc } from './rpc.js';
import type { SimProcess } from './scheduler.js';

export class SimConnections extends Connections {
  override readonly engine: EngineApi;
  private readonly process: SimProcess;
  private readonly rpc: SimRpc;

  constructor(process: SimProcess, rpc: SimRpc, engineHost: string) {
    super({
      clock: process.clock,
      engineAddress: `${engineHost}:${ENGINE_PORT}`,
      volumeName: '',
      engineInstanceName: '',
    });
    this.process = process;
    this.rpc = rpc;
    this.engine = rpc.client(process, engineHost, ENGINE_PORT, ControllerServiceDefinition);
  }

  override replica(address: string): ReplicaApi {
    const { host, port } = parseReplicaUrl(address);
    return this.rpc.client(this.process, host, port, ReplicaServiceDefinition);
  }

  override syncAgent(address: string): SyncAgentApi {
    const { host, port } = parseReplicaUrl(address);
    return this.rpc.client(this.process, host, port + 2, SyncAgentServiceDefinition);
  }
}

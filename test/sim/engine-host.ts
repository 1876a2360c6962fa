// A simulated machine that runs engine processes, one or, when an older one was left behind, two: the
// real engine, connector, data clients and controller service, wired as cli/engine-process.ts does.

import { ControllerServiceDefinition } from '../../src/api/generated/controller.js';
import { ReplicaServiceDefinition } from '../../src/api/generated/replica.js';
import { SyncAgentServiceDefinition } from '../../src/api/generated/syncagent.js';
import { controllerHandlers } from '../../src/engine/control-service.js';
import { Engine } from '../../src/engine/engine.js';
import { defaultSettings } from '../../src/engine/settings.js';
import { parseReplicaAddress } from '../../src/replica-client/addresses.js';
import type { ReplicaServicesOf } from '../../src/replica-client/control-client.js';
import { createReplicaConnector } from '../../src/replica-client/replica-connector.js';
import { reserveZeroRegion } from '../../src/replica-client/zeroes-as-data.js';
import type { Machinery } from './machinery.js';
import { SimSlab } from './memory.js';
import type { Ports } from './network.js';
import { SimProcess } from './scheduler.js';
import { type DataListener, SimTransport } from './transport.js';

export const ENGINE_PORT = 9500;

export class EngineHost {
  readonly host: string;
  readonly process: SimProcess;
  readonly engine: Engine;
  readonly slab: SimSlab;
  readonly transport: SimTransport;

  constructor(host: string, machinery: Machinery, dataPorts: Ports<DataListener>) {
    const { scheduler, rng, network, rpc } = machinery;
    this.host = host;
    const process = new SimProcess(scheduler, rng.fork(), host, host, rng.between(-2000, 2000));
    this.process = process;
    this.slab = SimSlab.take();
    this.transport = new SimTransport(process, network, dataPorts, this.slab);
    const { clock, newId, random } = process;
    const log = machinery.logOf(host);
    const servicesOf: ReplicaServicesOf = (address, metadata) => {
      const at = parseReplicaAddress(address);
      return {
        replica: rpc.client(process, at.host, at.controlPort, ReplicaServiceDefinition, metadata),
        syncAgent: (other) => {
          const there = parseReplicaAddress(other);
          const service = SyncAgentServiceDefinition;
          return rpc.client(process, there.host, there.syncAgentPort, service);
        },
      };
    };
    this.engine = new Engine({
      settings: {
        ...defaultSettings('vol'),
        revisionCounterDisabled: !machinery.hasRevisionCounter,
      },
      connector: createReplicaConnector({
        transport: this.transport,
        clock,
        volumeName: 'vol',
        zeroRegion: reserveZeroRegion(this.slab),
        hostBootId: '',
        syncTimeoutSeconds: 30,
        servicesOf,
      }),
      slab: this.slab,
      clock,
      log,
      newId,
      random,
    });
    const handlers = controllerHandlers({ engine: this.engine, clock, log });
    rpc.serve(process, ENGINE_PORT, ControllerServiceDefinition, handlers);
  }

  /** SIGKILL, or with its machine: then what it had sent reaches some replicas and not others. */
  kill(withMachine = false): void {
    if (!this.process.isAlive) return;
    if (withMachine) this.transport.dropSome();
    this.process.kill();
    this.slab.give();
  }
}

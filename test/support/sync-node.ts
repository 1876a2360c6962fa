// One replica with its sync agent, served over gRPC like their processes do it: the agent two
// ports above the replica, receivers from the third on.

import { randomUUID } from 'node:crypto';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';

import { ReplicaServiceDefinition } from '../../src/api/generated/replica.js';
import { SyncAgentServiceDefinition } from '../../src/api/generated/syncagent.js';
import { realClock } from '../../src/core/clock-real.js';
import { silentLogger } from '../../src/core/log.js';
import type { Disk } from '../../src/disk/disk.js';
import { replicaHandlers } from '../../src/replica/control-service.js';
import { Replica } from '../../src/replica/replica.js';
import { createChannel, createClient } from '../../src/rpc/client.js';
import type { RpcClient } from '../../src/rpc/client.js';
import { statusUnknown } from '../../src/rpc/error-map.js';
import { createRpcServer } from '../../src/rpc/server.js';
import { createSyncAgentHandlers } from '../../src/sync/control-service.js';
import { createProcessLock } from '../../src/sync/node-lock.js';
import { SyncAgent } from '../../src/sync/sync-agent.js';
import type { SyncAgentOptions } from '../../src/sync/sync-agent.js';

const HOST = '127.0.0.1';
export const RECEIVER_PORTS = 7;
/** Consecutive ports a replica occupies. */
const PORTS = 3 + RECEIVER_PORTS;

export interface SyncNode {
  /** `tcp://HOST:PORT` of the replica. */
  readonly address: string;
  readonly firstReceiverPort: number;
  readonly replica: Replica;
  readonly agent: SyncAgent;
  readonly client: RpcClient<typeof SyncAgentServiceDefinition>;
  end(): Promise<void>;
}

/** The first of so many consecutive ports that are all free now. */
async function freePorts(): Promise<number> {
  for (;;) {
    const probes = [createServer()];
    const listen = (probe: (typeof probes)[number], port: number): Promise<boolean> =>
      new Promise((resolve) => {
        probe.once('error', () => resolve(false));
        probe.listen(port, HOST, () => resolve(true));
      });
    const [first] = probes;
    if (first === undefined || !(await listen(first, 0))) continue;
    const { port } = first.address() as AddressInfo;
    let isFree = port + PORTS < 65_536;
    for (let i = 1; isFree && i < PORTS; i++) {
      const probe = createServer();
      isFree = await listen(probe, port + i);
      if (isFree) probes.push(probe);
    }
    await Promise.all(probes.map((p) => new Promise((resolve) => p.close(resolve))));
    if (isFree) return port;
  }
}

/** Starts a node on a replica's directory; the replica is opened when the directory has one. */
export async function startSyncNode(
  disk: Disk,
  directory: string,
  extra: Partial<SyncAgentOptions> = {},
): Promise<SyncNode> {
  const clock = realClock;
  const log = silentLogger;
  const replica = await Replica.at({
    newId: randomUUID,
    hostBootId: 'boot-1',
    disk,
    directory,
    clock,
    log,
    revisionCounter: false,
    encrypted: false,
    unmapMarkDiskChainRemoved: false,
    snapshotMaxCount: 250,
    snapshotMaxBytes: 0,
  });
  const port = await freePorts();
  const replicaServer = createRpcServer({ clock, log });
  const local = { hostBootId: '', localDataPath: '' };
  const handlers = replicaHandlers(replica, local);
  replicaServer.addService(ReplicaServiceDefinition, handlers, { statusOf: statusUnknown });
  await replicaServer.listen(HOST, port);
  const replicaChannel = createChannel({ host: HOST, port }, { clock });
  const agent = new SyncAgent({
    disk,
    clock,
    log,
    directory,
    ports: { firstPort: port + 3, count: RECEIVER_PORTS },
    receiverHost: HOST,
    replica: createClient(ReplicaServiceDefinition, replicaChannel),
    hashLock: createProcessLock(),
    ...extra,
  });
  const agentServer = createRpcServer({ clock, log });
  agentServer.addService(SyncAgentServiceDefinition, createSyncAgentHandlers(agent), {
    statusOf: statusUnknown,
  });
  await agentServer.listen(HOST, port + 2);
  const agentChannel = createChannel({ host: HOST, port: port + 2 }, { clock });
  return {
    address: `tcp://${HOST}:${port}`,
    firstReceiverPort: port + 3,
    replica,
    agent,
    client: createClient(SyncAgentServiceDefinition, agentChannel),
    end: async () => {
      await agent.close();
      agentChannel.close();
      replicaChannel.close();
      await agentServer.close(1000);
      await replicaServer.close(1000);
      await replica.close();
    },
  };
}

// Longhorn's ControllerService over an engine: translates messages, nothing else.

import {
  type ControllerReplica,
  type ControllerServiceDefinition,
  ReplicaMode as WireMode,
  type Volume as VolumeMessage,
} from '../api/generated/controller.js';
import type { Clock } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import { OWN_VERSION } from '../core/version.js';
import type { ServiceHandlers } from '../rpc/server.js';
import { RPC_STATUS, RpcError } from '../rpc/status.js';
import type { Engine } from './engine.js';
import type { Member } from './membership.js';
import type { ReplicaMode } from './replica-mode.js';

const WIRE_OF_MODE = {
  WO: WireMode.WO,
  RW: WireMode.RW,
  ERR: WireMode.ERR,
} as const satisfies Record<ReplicaMode, WireMode>;

function modeOfWire(mode: WireMode): ReplicaMode {
  switch (mode) {
    case WireMode.WO:
      return 'WO';
    case WireMode.RW:
      return 'RW';
    case WireMode.ERR:
      return 'ERR';
  }
}

function replicaMessage(member: Member): ControllerReplica {
  return {
    address: { address: member.address, instanceName: '' },
    mode: WIRE_OF_MODE[member.mode],
  };
}

function volumeMessage(engine: Engine): VolumeMessage {
  const { settings, volume, frontend, expansion } = engine;
  return {
    name: settings.volumeName,
    size: volume.sizeBytes,
    replicaCount: engine.replicas.length,
    endpoint: frontend.endpoint,
    frontend: frontend.name,
    frontendState: frontend.state,
    isExpanding: expansion.isRunning,
    lastExpansionError: expansion.lastError,
    lastExpansionFailedAt: expansion.lastFailedAt,
    unmapMarkSnapChainRemoved: settings.unmapMarkSnapChainRemoved,
    snapshotMaxCount: settings.snapshotMaxCount,
    snapshotMaxSize: settings.snapshotMaxBytes,
  };
}

/** NOT_FOUND is one of the few statuses that Longhorn's clients look at. */
async function orNotFound<T>(action: () => Promise<T> | T): Promise<T> {
  try {
    return await action();
  } catch (error) {
    if (error instanceof StorageError && error.code === 'NOT_FOUND') {
      throw new RpcError(RPC_STATUS.NOT_FOUND, error.message, error.code, error);
    }
    throw error;
  }
}

function addressOf(address: { address: string } | undefined): string {
  if (address === undefined || address.address === '') {
    throw new StorageError('INVALID_ARGUMENT', 'the request names no replica address');
  }
  return address.address;
}

export interface ControlServiceOptions {
  readonly engine: Engine;
  readonly clock: Clock;
  readonly log: Logger;
}

/** Handlers of the volume itself. */
function volumeHandlers(engine: Engine): ServiceHandlers<typeof ControllerServiceDefinition> {
  return {
    volumeGet: () => volumeMessage(engine),
    volumeStart: async ({ replicaAddresses, size, currentSize }) => {
      await engine.start({
        addresses: replicaAddresses,
        sizeBytes: size,
        currentSizeBytes: currentSize,
      });
      return volumeMessage(engine);
    },
    volumeShutdown: async () => {
      await engine.shutdown();
      return volumeMessage(engine);
    },
    volumeSnapshot: async ({ name, labels }) => ({ name: await engine.snapshot(name, labels) }),
    volumeRevert: async ({ name }) => {
      await engine.revert(name);
      return volumeMessage(engine);
    },
    volumeExpand: ({ size }) => {
      engine.expand(size);
      return volumeMessage(engine);
    },
    volumeFrontendStart: async ({ frontend }) => {
      await engine.startFrontend(frontend);
      return volumeMessage(engine);
    },
    volumeFrontendShutdown: async () => {
      await engine.shutdownFrontend();
      return volumeMessage(engine);
    },
    volumeUnmapMarkSnapChainRemovedSet: async ({ enabled }) => {
      await engine.setUnmapMarkSnapChainRemoved(enabled);
      return volumeMessage(engine);
    },
    volumeSnapshotMaxCountSet: async ({ count }) => {
      await engine.setSnapshotMaxCount(count);
      return volumeMessage(engine);
    },
    volumeSnapshotMaxSizeSet: async ({ size }) => {
      await engine.setSnapshotMaxBytes(size);
      return volumeMessage(engine);
    },
  };
}

/** Handlers of the volume's replicas. */
function replicaHandlers(engine: Engine): ServiceHandlers<typeof ControllerServiceDefinition> {
  return {
    replicaList: () => ({ replicas: engine.replicas.map(replicaMessage) }),
    replicaGet: ({ address }) => orNotFound(() => replicaMessage(engine.findReplica(address))),
    controllerReplicaCreate: async ({ address, snapshotRequired, mode }) => {
      const wanted = modeOfWire(mode);
      if (wanted === 'ERR')
        throw new StorageError('INVALID_ARGUMENT', 'cannot add a replica as ERR');
      await engine.addReplica(address, snapshotRequired, wanted);
      return replicaMessage(engine.findReplica(address));
    },
    replicaDelete: async ({ address }) => {
      await engine.removeReplica(address);
      return {};
    },
    replicaUpdate: ({ address, mode }) =>
      orNotFound(async () => {
        await engine.setReplicaMode(addressOf(address), modeOfWire(mode));
        return replicaMessage(engine.findReplica(addressOf(address)));
      }),
    replicaPrepareRebuild: async ({ address }) => {
      const { files: syncFileInfoList, sourceAddress } = await engine.prepareRebuild(address);
      const replica = replicaMessage(engine.findReplica(address));
      return { replica, syncFileInfoList, sourceAddress };
    },
    replicaVerifyRebuild: async ({ address }) => {
      await engine.verifyRebuild(address);
      return replicaMessage(engine.findReplica(address));
    },
    replicaRebuildConcurrentSyncLimitSet: ({ limit }) => {
      if (limit <= 0) {
        const text = `invalid concurrent sync limit ${limit}, which should be a positive integer`;
        throw new StorageError('INVALID_ARGUMENT', text);
      }
      engine.settings.rebuildConcurrentSyncLimit = limit;
      return {};
    },
    replicaRebuildConcurrentSyncLimitGet: () => ({
      limit: engine.settings.rebuildConcurrentSyncLimit,
    }),
  };
}

export function controllerHandlers(
  options: ControlServiceOptions,
): ServiceHandlers<typeof ControllerServiceDefinition> {
  const { engine, clock, log } = options;
  return {
    ...volumeHandlers(engine),
    ...replicaHandlers(engine),
    journalList: ({ limit }) => {
      log.info('journal.requested', { limit });
      return {};
    },
    versionDetailGet: () => ({ version: OWN_VERSION }),
    metricsGet: () => {
      const last = engine.volume.metrics.lastSecond(clock.nowMs());
      return {
        metrics: {
          readThroughput: last.readBytes,
          writeThroughput: last.writeBytes,
          readLatency: last.readLatencyNs,
          writeLatency: last.writeLatencyNs,
          readIOPS: last.readCount,
          writeIOPS: last.writeCount,
        },
      };
    },
  };
}

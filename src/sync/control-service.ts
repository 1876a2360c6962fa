// ptypes.SyncAgentService: the sync agent as Longhorn's clients see it. Only translation; texts
// and empty fields are what they expect. Register it with statusUnknown, since plain Go errors
// arrive as UNKNOWN. What belongs to backups answers UNIMPLEMENTED for now.
// Source: control-api §3.

import type { SyncAgentServiceDefinition } from '../api/generated/syncagent.js';
import { RPC_STATUS, RpcError } from '../rpc/status.js';
import type { ServiceHandlers } from '../rpc/server.js';
import type { SyncAgent } from './sync-agent.js';

function notYet(what: string): never {
  throw new RpcError(RPC_STATUS.UNIMPLEMENTED, `${what} is not supported by this version`);
}

export type SyncAgentHandlers = ServiceHandlers<typeof SyncAgentServiceDefinition>;

export function createSyncAgentHandlers(agent: SyncAgent): SyncAgentHandlers {
  return {
    ...fileHandlers(agent),
    ...snapshotHandlers(agent),
    reset() {
      agent.reset();
      return {};
    },
    // A replica that never restored anything; pollers ask every replica.
    restoreStatus: () => ({
      isRestoring: false,
      lastRestored: '',
      progress: 0,
      error: '',
      destFileName: '',
      state: '',
      backupUrl: '',
      currentRestoringBackup: '',
    }),
    async snapshotClone(request, call) {
      await agent.cloneSnapshot(request, call.signal);
      return {};
    },
    snapshotCloneStatus() {
      const { state, error, progress, sourceAddress, snapshotName } = agent.cloneStatus;
      return {
        isCloning: state === 'in_progress',
        error,
        progress,
        state,
        fromReplicaAddress: sourceAddress,
        snapshotName,
      };
    },
    backupCreate: () => notYet('backup'),
    backupRemove: () => notYet('backup'),
    backupRestore: () => notYet('restore'),
    backupStatus: () => notYet('backup'),
  };
}

function fileHandlers(agent: SyncAgent): SyncAgentHandlers {
  return {
    async fileRemove(request) {
      await agent.removeFile(request.fileName);
      return {};
    },
    async fileRename(request) {
      await agent.renameFile(request.oldFileName, request.newFileName);
      return {};
    },
    async fileSend(request, call) {
      await agent.sendFile({
        fromFileName: request.fromFileName,
        host: request.host,
        port: request.port,
        isFastSync: request.fastSync,
        timeoutSeconds: request.fileSyncHttpClientTimeout,
        ranges: request.ranges,
        receiverSizeBytes: request.receiverSize,
        bytesPerSecondMax: request.bytesPerSecondMax,
        signal: call.signal,
      });
      return {};
    },
    async volumeExport(request, call) {
      await agent.exportSnapshot({
        snapshotName: request.snapshotFileName,
        includesBackingImage: request.exportBackingImageIfExist,
        host: request.host,
        port: request.port,
        timeoutSeconds: request.fileSyncHttpClientTimeout,
        signal: call.signal,
      });
      return {};
    },
    receiverLaunch: async (request) => ({ port: await agent.launchReceiver(request.toFileName) }),
    async filesSync(request, call) {
      await agent.syncFiles(request, call.signal);
      return {};
    },
    replicaRebuildStatus() {
      const { state, error, progress, sourceAddresses, receivedBytes } = agent.rebuildStatus;
      return {
        isRebuilding: state === 'in_progress',
        error,
        progress,
        state,
        fromReplicaAddress: '',
        fromReplicaAddressList: [...sourceAddresses],
        receivedBytes,
      };
    },
  };
}

function snapshotHandlers(agent: SyncAgent): SyncAgentHandlers {
  return {
    snapshotPurge() {
      agent.startPurge();
      return {};
    },
    snapshotPurgeStatus() {
      const { state, error, progress } = agent.purgeStatus;
      return { isPurging: state === 'in_progress', error, progress, state };
    },
    snapshotHash(request) {
      agent.hashes.start(request.snapshotName, request.rehash);
      return {};
    },
    async snapshotHashStatus(request) {
      const status = await agent.hashes.status(request.snapshotName);
      return {
        state: status.state,
        checksum: status.checksum,
        error: status.error,
        silentlyCorrupted: status.isSilentlyCorrupted,
      };
    },
    async snapshotHashCancel(request) {
      await agent.hashes.cancel(request.snapshotName);
      return {};
    },
    snapshotHashLockState: async () => ({ isLocked: await agent.hashes.isLocked() }),
  };
}

// What the commands about the whole volume do.

import type { Command } from 'commander';
import type { Volume as VolumeMessage } from '../api/generated/controller.js';
import { resetSyncAgents } from '../client/rebuild-status.js';
import { printVersions } from './client-version.js';
import { withEngine } from './engine-session.js';
import { jsonText, print } from './output.js';

/** Longhorn's keys in Longhorn's order; the capital of the last one is its own. */
function volumeData(volume: VolumeMessage): unknown {
  return {
    name: volume.name,
    size: volume.size,
    replicaCount: volume.replicaCount,
    endpoint: volume.endpoint,
    frontend: volume.frontend,
    frontendState: volume.frontendState,
    isExpanding: volume.isExpanding,
    lastExpansionError: volume.lastExpansionError,
    lastExpansionFailedAt: volume.lastExpansionFailedAt,
    unmapMarkSnapChainRemoved: volume.unmapMarkSnapChainRemoved,
    snapshotMaxCount: volume.snapshotMaxCount,
    SnapshotMaxSize: volume.snapshotMaxSize,
  };
}

export function info(command: Command): Promise<void> {
  return withEngine(command, async (connections) => {
    const volume = await connections.onEngine('get volume', (engine) => engine.volumeGet({}));
    print(jsonText(volumeData(volume)));
  });
}

export function expand(size: number, command: Command): Promise<void> {
  return withEngine(command, async (connections) => {
    await connections.onEngine(`expand to size ${size} for volume`, (engine) =>
      engine.volumeExpand({ size }),
    );
  });
}

export function startFrontend(frontend: string, command: Command): Promise<void> {
  return withEngine(command, async (connections) => {
    await connections.onEngine(`start frontend ${frontend} for volume`, (engine) =>
      engine.volumeFrontendStart({ frontend }),
    );
  });
}

export function shutdownFrontend(command: Command): Promise<void> {
  return withEngine(command, async (connections) => {
    await connections.onEngine('shut down the frontend for volume', (engine) =>
      engine.volumeFrontendShutdown({}),
    );
  });
}

interface UnmapMarkFlags {
  readonly enable?: boolean;
  readonly disable?: boolean;
}

export function setUnmapMark(flags: UnmapMarkFlags, command: Command): Promise<void> {
  const enabled = flags.enable === true;
  if (!enabled && flags.disable !== true) {
    command.error('this option is not specified: give --enable or --disable');
  }
  return withEngine(command, async (connections) => {
    await connections.onEngine(`set UnmapMarkSnapChainRemoved to ${enabled} for volume`, (engine) =>
      engine.volumeUnmapMarkSnapChainRemovedSet({ enabled }),
    );
  });
}

export function journal(limit: number, command: Command): Promise<void> {
  return withEngine(command, async (connections) => {
    await connections.onEngine('list the journal for volume', (engine) =>
      engine.journalList({ limit }),
    );
  });
}

export function resetAgents(command: Command): Promise<void> {
  return withEngine(command, (connections) => resetSyncAgents(connections));
}

export function version(command: Command): Promise<void> {
  return withEngine(command, async (connections) => {
    const reply = await connections.onEngine('get the version for volume', (engine) =>
      engine.versionDetailGet({}),
    );
    const server = reply.version;
    printVersions(
      server === undefined
        ? null
        : {
            version: server.version,
            gitCommit: server.gitCommit,
            buildDate: server.buildDate,
            cliAPIVersion: server.cliAPIVersion,
            cliAPIMinVersion: server.cliAPIMinVersion,
            controllerAPIVersion: server.controllerAPIVersion,
            controllerAPIMinVersion: server.controllerAPIMinVersion,
            dataFormatVersion: server.dataFormatVersion,
            dataFormatMinVersion: server.dataFormatMinVersion,
          },
    );
  });
}

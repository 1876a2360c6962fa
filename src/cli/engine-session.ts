// One command's connections to an engine, from the global flags to the closing of the last socket.

import type { Command } from 'commander';
import { Connections } from '../client/connections.js';
import { realClock } from '../core/clock-real.js';

export interface GlobalFlags {
  readonly url: string;
  readonly volumeName: string;
  readonly engineInstanceName: string;
  readonly debug: boolean;
}

/** Runs the action with connections that the command's flags name, and closes them afterwards. */
export async function withEngine(
  command: Command,
  action: (connections: Connections) => Promise<void>,
): Promise<void> {
  const flags = command.optsWithGlobals<GlobalFlags & { replicaInstanceName?: string }>();
  const connections = new Connections({
    clock: realClock,
    engineAddress: flags.url,
    volumeName: flags.volumeName,
    engineInstanceName: flags.engineInstanceName,
    ...(flags.replicaInstanceName === undefined
      ? {}
      : { replicaInstanceName: flags.replicaInstanceName }),
  });
  try {
    await action(connections);
  } finally {
    connections.close();
  }
}

// Addresses of one replica, derived from `tcp://HOST:PORT` (facts: port map of the data protocol):
// control at PORT, data at PORT+1, sync agent at PORT+2.

import { StorageError } from '../core/errors.js';

export interface ReplicaAddresses {
  readonly host: string;
  readonly controlPort: number;
  readonly dataPort: number;
  readonly syncAgentPort: number;
}

/** @throws INVALID_ARGUMENT. */
export function parseReplicaAddress(address: string): ReplicaAddresses {
  const scheme = /^([a-z]+):\/\//.exec(address)?.[1];
  if (scheme !== 'tcp') {
    throw new StorageError('INVALID_ARGUMENT', `failed to find factory for ${address}`);
  }
  const match = /^tcp:\/\/(?:\[([^\]]+)\]|([^:/]+)):(\d{1,5})$/.exec(address);
  const host = match?.[1] ?? match?.[2];
  const controlPort = Number(match?.[3]);
  if (host === undefined || controlPort < 1 || controlPort > 65533) {
    throw new StorageError(
      'INVALID_ARGUMENT',
      `invalid address ${address} : couldn't find host and port`,
    );
  }
  return { host, controlPort, dataPort: controlPort + 1, syncAgentPort: controlPort + 2 };
}

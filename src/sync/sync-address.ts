// Where the sync agent of a replica listens. Source: data-protocol §3 "Port map".

import { StorageError } from '../core/errors.js';

/** A replica's sync agent listens two ports above its control port. */
const SYNC_AGENT_PORT_OFFSET = 2;

/** @param replicaAddress `tcp://HOST:PORT` or `HOST:PORT` of a replica. @throws INVALID_ARGUMENT. */
export function syncAgentAddress(replicaAddress: string): { host: string; port: number } {
  const match = /^(?:tcp:\/\/)?(?:\[([^\]]+)\]|([^:/]+)):(\d{1,5})$/.exec(replicaAddress);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]) + SYNC_AGENT_PORT_OFFSET;
  if (host === undefined || !(port <= 65_535)) {
    const message = `invalid address ${replicaAddress} : couldn't find host and port`;
    throw new StorageError('INVALID_ARGUMENT', message);
  }
  return { host, port };
}

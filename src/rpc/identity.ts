// Who is meant by a call. Addresses are reused when processes move, so a Longhorn client says which
// volume and instance it expects and a server refuses a call meant for another. Facts: the client
// omits a name it does not know, and the server ignores names it was not given itself.

import { RPC_STATUS, RpcError } from './status.js';

export const VOLUME_NAME_KEY = 'volume-name';
export const INSTANCE_NAME_KEY = 'instance-name';

/** Number of the engine's start; this project's own. Calls without one come from elsewhere. */
export const ENGINE_GENERATION_KEY = 'engine-generation';

/** Empty text means not known; that side is then not compared. */
export interface Identity {
  readonly volumeName: string;
  readonly instanceName: string;
}

export interface ServerIdentity extends Identity {
  /** The noun in the refusal, which Longhorn's clients log: `check replica address`. */
  readonly what: 'controller' | 'replica' | 'sync-agent';
}

/** Metadata that a client adds to every call. */
export function identityMetadata(identity: Identity): Record<string, string> {
  return {
    ...(identity.volumeName === '' ? {} : { [VOLUME_NAME_KEY]: identity.volumeName }),
    ...(identity.instanceName === '' ? {} : { [INSTANCE_NAME_KEY]: identity.instanceName }),
  };
}

/** @throws RpcError FAILED_PRECONDITION with Longhorn's text. */
export function checkIdentity(
  own: ServerIdentity,
  metadata: (name: string) => string | undefined,
): void {
  const refuse = (noun: string, ownName: string, name: string | undefined): void => {
    if (ownName === '' || name === undefined || name === '' || name === ownName) return;
    throw new RpcError(
      RPC_STATUS.FAILED_PRECONDITION,
      `incorrect ${noun} name ${name}; check ${own.what} address`,
      'IDENTITY_MISMATCH',
    );
  };
  refuse('volume', own.volumeName, metadata(VOLUME_NAME_KEY));
  refuse('instance', own.instanceName, metadata(INSTANCE_NAME_KEY));
}

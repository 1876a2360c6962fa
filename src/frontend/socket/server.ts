// The `socket` frontend: the data protocol on a unix socket, for tgt's Longhorn backing store and
// tools like it. Bounds errors and a full volume are told the way Longhorn's controller does.

import type { BlockDevice } from '../../core/block-device.js';
import type { Clock } from '../../core/clock.js';
import type { Logger } from '../../core/log.js';
import { NO_SPACE_TEXT, FRAME_TYPE } from '../../wire/replica/constants.js';
import { type FrameServer, startFrameServer } from '../../frame-server/server.js';
import type { FrameServerPolicy } from '../../frame-server/policy.js';
import type { Transport } from '../../transport/connection.js';

const SOCKET_POLICY: FrameServerPolicy = {
  ping: () => null,
  errorType: (error) => (error.code === 'NO_SPACE' ? FRAME_TYPE.noSpace : FRAME_TYPE.error),
  errorText: (error) => (error.code === 'NO_SPACE' ? NO_SPACE_TEXT : error.message),
  clipsUnmap: false,
  extensions: false,
};

export interface SocketFrontendOptions {
  readonly transport: Transport;
  readonly path: string;
  readonly device: BlockDevice;
  readonly clock: Clock;
  readonly log: Logger;
}

/** @throws ADDRESS_IN_USE, INVALID_ARGUMENT. */
export function startSocketFrontend(options: SocketFrontendOptions): Promise<FrameServer> {
  const { transport, device, clock, log, path } = options;
  return startFrameServer({
    transport,
    endpoint: { kind: 'unix', path },
    device,
    policy: SOCKET_POLICY,
    clock,
    log: log.with({ frontend: 'socket' }),
  });
}

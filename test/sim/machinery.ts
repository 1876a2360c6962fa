// What all simulated machines share.

import type { Logger } from '../../src/core/log.js';
import type { SimAgent } from './agent.js';
import type { SimNetwork } from './network.js';
import type { Rng } from './rng.js';
import type { SimRpc } from './rpc.js';
import type { Scheduler } from './scheduler.js';

export interface Machinery {
  readonly scheduler: Scheduler;
  readonly rng: Rng;
  readonly network: SimNetwork;
  readonly rpc: SimRpc;
  readonly hasRevisionCounter: boolean;
  readonly logOf: (who: string) => Logger;
  /** Null while its process is not alive. */
  readonly agentOf: (host: string) => SimAgent | null;
}

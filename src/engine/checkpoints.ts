// Checkpoints: every few seconds of writing, all replicas make durable what they have, and forget that
// it was ever in doubt. They bound how much must be compared after a crash, and how much a replica
// that lost power may lack. A checkpoint never stops a client; when a step fails, the write intents
// simply stay.

import { BLOCK_OP, submitAndWait } from '../core/block-device.js';
import type { Clock, Timer } from '../core/clock.js';
import { toStorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import type { Member, Membership } from './membership.js';
import type { Volume } from './volume.js';

/** Writes older than about twice this are on stable storage, whether or not clients flush. */
export const CHECKPOINT_PERIOD_MS = 5000;

export interface CheckpointOptions {
  readonly membership: Membership;
  readonly volume: Volume;
  readonly clock: Clock;
  readonly log: Logger;
  /** False while intents must be kept: members are being made equal, or one left without a fork. */
  readonly mayForget: () => boolean;
}

export class Checkpoints {
  private readonly options: CheckpointOptions;
  private timer: Timer | null = null;
  private running: Promise<void> | null = null;
  private isStopped = true;
  /** Writes of the volume when the last finished checkpoint began; -1 before the first. */
  private writesCovered = -1;

  constructor(options: CheckpointOptions) {
    this.options = options;
  }

  start(): void {
    this.isStopped = false;
    this.writesCovered = -1;
    this.schedule();
  }

  /** Waits for one that runs. */
  async stop(): Promise<void> {
    this.isStopped = true;
    this.timer?.cancel();
    this.timer = null;
    await this.running;
  }

  private schedule(): void {
    if (this.isStopped) return;
    const { clock } = this.options;
    this.timer = clock.after(CHECKPOINT_PERIOD_MS, () => this.tick(), { unref: true });
  }

  private tick(): void {
    const { volume, mayForget } = this.options;
    if (volume.writesEntered === this.writesCovered || !mayForget()) {
      this.schedule();
      return;
    }
    this.running = this.run().finally(() => {
      this.running = null;
      this.schedule();
    });
  }

  private async run(): Promise<void> {
    const { membership, volume, log, mayForget } = this.options;
    const keepers = membership.readable.filter(({ port }) => port?.keepsRoster === true);
    const { writesEntered } = volume;
    try {
      await Promise.all(keepers.map((member) => member.port?.control.beginCheckpoint()));
      await volume.writesInFlightDone();
      await submitAndWait(volume, { op: BLOCK_OP.flush });
      // Who left meanwhile lacks something; its intents and ours are still needed then.
      if (!mayForget() || keepers.some(hasLeft)) return;
      await Promise.all(keepers.map((member) => member.port?.control.endCheckpoint()));
      this.writesCovered = writesEntered;
    } catch (error) {
      log.info('checkpoint.failed', { error: toStorageError(error) });
    }
  }
}

function hasLeft(member: Member): boolean {
  return member.mode !== 'RW';
}

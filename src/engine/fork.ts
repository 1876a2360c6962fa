// The fork: a system snapshot that the members cut soon after a replica left. Everything written later
// is in disks that the absent replica does not have, so it comes back by copying those.
// See docs/adr/0007-roster.md.

import type { Clock } from '../core/clock.js';
import { toStorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import type { ReplicaGroup } from './replica-group.js';
import type { RosterKeeper } from './roster-keeper.js';
import type { EngineSettings } from './settings.js';
import {
  checkSnapshotLimits,
  createdNow,
  cutSnapshot,
  prepareCut,
  snapshotDiskName,
} from './snapshot.js';
import type { Volume } from './volume.js';

/** Label that tells people why the snapshot is there. */
const FORK_LABEL = 'replica-absent';

export interface ForkParts {
  readonly group: ReplicaGroup;
  readonly keeper: RosterKeeper;
  readonly volume: Volume;
  readonly settings: EngineSettings;
  readonly clock: Clock;
  readonly log: Logger;
  readonly newId: () => string;
}

/** Cuts one fork for all absent replicas that have none. It never fails: without one they are compared. */
export async function cutFork(parts: ForkParts): Promise<void> {
  const { group, keeper, volume, settings, clock, log } = parts;
  if (!keeper.needsFork || group.membership.readable.length === 0) {
    volume.takeMissed();
    return;
  }
  const name = `replica-left-${parts.newId()}`;
  const labels = { [FORK_LABEL]: 'true' };
  try {
    await checkSnapshotLimits(group, settings);
    const record = { name, userCreated: false, created: createdNow(clock), labels };
    await prepareCut(group, volume, record);
    const since = await volume.withBarrier(async () => {
      await cutSnapshot(group, record);
      return volume.takeMissed();
    });
    await keeper.forked(snapshotDiskName(name), since);
    if (!keeper.needsFork) volume.takeMissed();
    log.info('fork.cut', { snapshot: name });
  } catch (error) {
    volume.takeMissed();
    await keeper.forkFailed();
    log.warn('fork.failed', { error: toStorageError(error) });
  }
}

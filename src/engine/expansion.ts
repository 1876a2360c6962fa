// Growing a volume: every replica first, then the frontend, then the engine's own size. It runs in
// the background; what went wrong is kept for whoever asks (facts: engine-semantics §5).

import type { Clock } from '../core/clock.js';
import { StorageError, toStorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import { isSectorAligned, SECTOR_BYTES } from '../core/units.js';
import type { FrontendPort } from './frontend-port.js';
import { leftReplicaAsItWas, type MemberResult, type ReplicaGroup } from './replica-group.js';
import { checkSnapshotLimits } from './snapshot.js';
import type { EngineSettings } from './settings.js';
import type { Volume } from './volume.js';

export interface ExpansionParts {
  readonly group: ReplicaGroup;
  readonly volume: Volume;
  readonly settings: EngineSettings;
  readonly frontend: () => FrontendPort;
  readonly clock: Clock;
  readonly log: Logger;
}

/** A replica's failed expansion left it as it was: refused, or taken back. */
function wasRolledBack(error: StorageError): boolean {
  if (error.details['rollback'] === 'succeeded' || /RollbackSucceeded/.test(error.message))
    return true;
  return leftReplicaAsItWas(error) && !/RollbackFailed/.test(error.message);
}

export class Expansion {
  private readonly parts: ExpansionParts;
  isRunning = false;
  lastError = '';
  lastFailedAt = '';

  constructor(parts: ExpansionParts) {
    this.parts = parts;
  }

  /**
   * From here on others are told that it runs, and run() must follow. False when the volume has
   * this size already. @throws INVALID_ARGUMENT, BUSY.
   */
  begin(sizeBytes: number): boolean {
    try {
      this.check(sizeBytes);
    } catch (error) {
      this.failed(`controller failed to start expansion: ${toStorageError(error).message}`);
      throw error;
    }
    this.lastError = '';
    this.lastFailedAt = '';
    this.isRunning = sizeBytes !== this.parts.volume.sizeBytes;
    this.parts.volume.isExpanding = this.isRunning;
    return this.isRunning;
  }

  /** What goes wrong is kept in lastError. */
  async run(sizeBytes: number): Promise<void> {
    const { group, volume, settings, log } = this.parts;
    try {
      await checkSnapshotLimits(group, settings);
      await volume.withBarrier(() => this.expandReplicas(sizeBytes));
      await this.parts.frontend().resized(sizeBytes);
      volume.resize(sizeBytes);
      log.info('volume.expanded', { sizeBytes });
    } catch (error) {
      const { message } = toStorageError(error);
      if (this.lastError === '') this.failed(message);
      log.error('volume.expansion.failed', { sizeBytes, error });
    } finally {
      this.isRunning = false;
      volume.isExpanding = false;
    }
  }

  /** It was begun, but could not run. */
  refused(error: unknown): void {
    this.failed(toStorageError(error).message);
    this.isRunning = false;
    this.parts.volume.isExpanding = false;
  }

  private check(sizeBytes: number): void {
    if (this.isRunning) throw new StorageError('BUSY', 'controller expansion is in progress');
    if (!isSectorAligned(sizeBytes)) {
      const text = `requested expansion size ${sizeBytes} not multiple of volume sector size ${SECTOR_BYTES}`;
      throw new StorageError('INVALID_ARGUMENT', text);
    }
    if (sizeBytes < this.parts.volume.sizeBytes) {
      const text = `controller cannot be expanded to a smaller size ${sizeBytes}`;
      throw new StorageError('INVALID_ARGUMENT', text);
    }
  }

  private async expandReplicas(sizeBytes: number): Promise<void> {
    const { group } = this.parts;
    const results = await group.onLive((port) => port.control.expand(sizeBytes));
    const failures = results.filter((result) => result.error !== null);
    if (failures.length === 0) return;
    const reasons = failures
      .map((f) => `${f.member.address}: ${f.error?.message ?? ''}`)
      .join('; ');
    if (results.some(({ member, error }) => member.mode === 'RW' && error === null)) {
      this.failAll(failures);
      this.failed(`the expansion succeeded, but some replica expansion failed: ${reasons}`);
      return;
    }
    // Those that are as they were stay; a WO replica that is larger now leaves.
    this.failAll(results.filter(({ error }) => error === null || !wasRolledBack(error)));
    const text = `the expansion failed since all replica expansion failed: ${reasons}`;
    this.failed(text);
    throw new StorageError('PEER_ERROR', text);
  }

  private failAll(failures: readonly MemberResult[]): void {
    for (const { member, error } of failures) {
      const grewAlone = 'only this replica, which is not readable, was expanded';
      this.parts.group.fail(member, error ?? new StorageError('INVALID_STATE', grewAlone));
    }
  }

  private failed(text: string): void {
    this.lastError = text;
    this.lastFailedAt = this.parts.clock.wallTime().toISOString();
  }
}

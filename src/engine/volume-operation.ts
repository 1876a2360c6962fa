// One client request on its way through the engine: the range it holds, its copies to replicas
// and what they answered. Pooled; a request allocates nothing unless a replica fails.

import type { BlockRequest, BlockRequestOwner } from '../core/block-device.js';
import type { StorageError } from '../core/errors.js';
import type { RangeHolder } from '../core/range-lock.js';
import type { Member } from './membership.js';
import type { RosterWaiter } from './roster-keeper.js';

/** The part of the volume that an operation calls back. */
export interface OperationHost {
  operationGranted(operation: VolumeOperation): void;
  operationSettled(operation: VolumeOperation, error: StorageError | null): void;
  copyDone(operation: VolumeOperation, copy: BlockRequest, error: StorageError | null): void;
}

export interface ReplicaFailure {
  readonly member: Member;
  readonly error: StorageError;
}

export class VolumeOperation implements RangeHolder, BlockRequestOwner, RosterWaiter {
  private readonly host: OperationHost;
  request: BlockRequest | null = null;
  /** True for a part of another operation, which holds the range for it. */
  isPart = false;
  /** Set for a range that is only held: called instead of sending anything. */
  whenHeld: (() => void) | null = null;
  startedMs = 0;
  pendingCopies = 0;
  /** Replicas the request was copied to, in the order of the copies' tags. */
  targets: readonly Member[] = [];
  /** Replicas already tried by a read that failed elsewhere. */
  failures: ReplicaFailure[] = [];

  constructor(host: OperationHost) {
    this.host = host;
  }

  granted(): void {
    this.host.operationGranted(this);
  }

  rosterSettled(error: StorageError | null): void {
    this.host.operationSettled(this, error);
  }

  blockRequestDone(copy: BlockRequest, error: StorageError | null): void {
    this.host.copyDone(this, copy, error);
  }

  reset(): void {
    this.request = null;
    this.isPart = false;
    this.whenHeld = null;
    this.targets = [];
    if (this.failures.length > 0) this.failures = [];
  }
}

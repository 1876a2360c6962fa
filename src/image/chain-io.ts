// What all requests of one open chain share: the layers, the order of overlapping requests, and
// what has happened to the head since it was last made durable. Structural changes take the whole
// range, so a request that holds any range sees a chain that stands still.

import { BLOCK_OP, type BlockRequest } from '../core/block-device.js';
import { StorageError, toStorageError } from '../core/errors.js';
import { RangeLock, type RangeHolder } from '../core/range-lock.js';
import type { Slab } from '../core/slab.js';
import type { DiskFile, DiskQueue } from '../disk/disk.js';
import { IndexPrefill } from './index-prefill.js';
import type { Layer, LayerStack } from './layer-stack.js';
import type { RevisionCounter } from './revision-counter.js';
import { ScratchBuffers } from './scratch.js';

/** An end beyond any volume: the whole range. */
export const WHOLE_RANGE_END = Number.MAX_SAFE_INTEGER;

export class ChainIo {
  readonly queue: DiskQueue;
  readonly slab: Slab;
  readonly scratch: ScratchBuffers;
  readonly lock = new RangeLock();
  readonly directory: string;
  readonly isReadOnly: boolean;
  stack: LayerStack;
  sizeBytes: number;
  counter: RevisionCounter | null = null;
  /** Longhorn's in-memory Dirty: changed since it was opened, or not closed cleanly before. */
  isDirty: boolean;
  /**
   * Changes of the head that were finished; compared with durableChanges by flush. One is counted from
   * the start: what was written before a crash of our process may still be in the system's caches only.
   */
  changes = 1;
  durableChanges = 0;
  /** Set when the chain can no longer be trusted or is closed; every request ends with it. */
  refusal: StorageError | null = null;
  /** Set when an fdatasync failed: the kernel may have dropped dirty pages, so no later one counts. */
  syncFailure: StorageError | null = null;
  private readonly prefill = new IndexPrefill(this);

  constructor(
    directory: string,
    stack: LayerStack,
    sizeBytes: number,
    isReadOnly: boolean,
    isDirty: boolean,
  ) {
    this.directory = directory;
    this.stack = stack;
    this.queue = stack.disk.queue;
    this.slab = stack.disk.slab;
    this.scratch = ScratchBuffers.of(this.slab);
    this.sizeBytes = sizeBytes;
    this.isReadOnly = isReadOnly;
    this.isDirty = isDirty;
  }

  /** Why a request may not start, or null. */
  refuse(request: BlockRequest): StorageError | null {
    if (this.refusal !== null) return this.refusal;
    const { op, offsetBytes, lengthBytes } = request;
    const isWithin =
      offsetBytes >= 0 && lengthBytes >= 0 && offsetBytes + lengthBytes <= this.sizeBytes;
    if (!isWithin && op !== BLOCK_OP.flush) return outOfRange(request, this.sizeBytes);
    const changes = op !== BLOCK_OP.read && op !== BLOCK_OP.flush && op !== BLOCK_OP.extents;
    if (changes && this.isReadOnly) {
      return new StorageError('READ_ONLY', 'the image chain is open for reading only');
    }
    return null;
  }

  /** Loads the owners of a range that the caller holds, and begins to load the others. */
  loadOwners(beginSector: number, endSector: number): Promise<void> {
    this.prefill.start();
    return this.stack.index.load(beginSector, endSector);
  }

  /** A second handle to a frozen layer's file, which is otherwise open for reading only. */
  openWritable(layer: Layer): Promise<DiskFile> {
    return this.stack.disk.open(`${this.directory}/${layer.diskName}`, { writable: true });
  }

  /** Makes a layer that was written durable. @throws IO_ERROR, as every flush from then on. */
  async syncLayer(layer: Layer): Promise<void> {
    try {
      await layer.file.sync();
    } catch (error) {
      this.syncFailure ??= toStorageError(error);
      throw error;
    }
  }

  /** Waits until nothing is in flight and holds later requests back until release(). */
  quiesce(): Promise<HeldRange> {
    return this.holdRange(0, WHOLE_RANGE_END, true);
  }

  /** Holds a range as a promise, for work that runs next to requests. */
  holdRange(beginOffset: number, endOffset: number, isExclusive: boolean): Promise<HeldRange> {
    return new Promise((resolve) => {
      const holder = new HeldRange(this.lock, resolve);
      if (this.lock.acquire(holder, beginOffset, endOffset, isExclusive)) holder.granted();
    });
  }
}

/** A held range; release it exactly once. */
export class HeldRange implements RangeHolder {
  private readonly lock: RangeLock;
  private readonly resolve: (holder: HeldRange) => void;

  constructor(lock: RangeLock, resolve: (holder: HeldRange) => void) {
    this.lock = lock;
    this.resolve = resolve;
  }

  granted(): void {
    this.resolve(this);
  }

  release(): void {
    this.lock.release(this);
  }
}

function outOfRange(request: BlockRequest, sizeBytes: number): StorageError {
  const { offsetBytes, lengthBytes } = request;
  return new StorageError(
    'OUT_OF_RANGE',
    `${lengthBytes} bytes at offset ${offsetBytes} are beyond volume size ${sizeBytes}`,
    { offsetBytes, lengthBytes, sizeBytes },
  );
}

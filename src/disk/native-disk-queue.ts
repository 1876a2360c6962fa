// The JavaScript half of the addon's disk queue. A request is written into memory shared with the
// addon and read back from there, so nothing is allocated and nothing is called per I/O. Requests
// beyond what the queue holds wait here, in order; none is ever refused for being too many.

import { constants } from 'node:os';

import {
  addon,
  type DiskBackend,
  type NativeDiskQueue as AddonQueue,
  type NativeFileTable,
} from '../addon/addon.js';
import type { DiskQueue, DiskRequest } from './disk.js';

/** File number that is never open: requests on it fail with EBADF. */
export const NO_FILE = -1;

const LAYOUT = addon.diskQueueLayout;
const TWO_32 = 0x1_0000_0000;

export class NativeDiskQueue implements DiskQueue {
  private readonly native: AddonQueue;
  private readonly words: Int32Array;
  private readonly requests: (DiskRequest | null)[] = [];
  /** Stack of free slots; the lowest are used first, so that few pages are touched. */
  private readonly freeSlots = new Int32Array(LAYOUT.slots);
  private freeCount = LAYOUT.slots;
  /** Requests that wait for a slot, with the file number each had when it was submitted. */
  private waiting: DiskRequest[] = [];
  private waitingFiles: number[] = [];
  private waitingBegin = 0;
  /** How many requests have ever waited, and how many of them have been started. */
  private waitedCount = 0;
  private startedCount = 0;
  private handOvers: { readonly startedCount: number; readonly resolve: () => void }[] = [];
  private idleWaiters: (() => void)[] = [];
  private isShutDown = false;

  /** @throws Error when the backend asked for cannot be used here. */
  constructor(slab: ArrayBuffer, files: NativeFileTable, backend: DiskBackend | 'auto') {
    const completed = (count: number): void => this.completed(count);
    this.native = new addon.DiskQueue(slab, files, backend, completed);
    this.words = new Int32Array(this.native.memory);
    for (let i = 0; i < LAYOUT.slots; i++) this.freeSlots[i] = LAYOUT.slots - 1 - i;
  }

  get backend(): DiskBackend {
    return this.native.backend;
  }

  /** Requests submitted and not yet complete. */
  get pendingCount(): number {
    return LAYOUT.slots - this.freeCount + this.waiting.length - this.waitingBegin;
  }

  submit(request: DiskRequest): void {
    if (this.isShutDown) {
      queueMicrotask(() => request.complete(-constants.errno.EBADF));
    } else if (this.freeCount === 0 || this.waiting.length > 0) {
      this.waiting.push(request);
      this.waitingFiles.push(request.file.slot);
      this.waitedCount++;
    } else {
      this.start(request, request.file.slot);
    }
  }

  /** Resolves when everything submitted so far is known to the addon, which then can close files. */
  async handedOver(): Promise<void> {
    const startedCount = this.waitedCount;
    if (this.startedCount < startedCount) {
      await new Promise<void>((resolve) => this.handOvers.push({ startedCount, resolve }));
    }
    this.native.flush();
  }

  /** Waits for all requests, then frees what the addon holds. Idempotent. */
  async shutdown(): Promise<void> {
    while (this.pendingCount > 0) {
      await new Promise<void>((resolve) => this.idleWaiters.push(resolve));
    }
    if (this.isShutDown) return;
    this.isShutDown = true;
    this.native.shutdown();
  }

  private start(request: DiskRequest, file: number): void {
    // From the first request to the end of the last one the process must not exit by itself.
    if (this.freeCount === LAYOUT.slots) this.native.setActive(true);
    const slot = this.freeSlots[--this.freeCount] as number;
    this.requests[slot] = request;
    const words = this.words;
    const entry = LAYOUT.entriesWord + slot * LAYOUT.entryWords;
    words[entry] = request.op;
    words[entry + 1] = file;
    words[entry + 2] = request.bufferOffset;
    words[entry + 3] = request.lengthBytes;
    words[entry + 4] = request.lengthBytes / TWO_32;
    words[entry + 5] = request.fileOffsetBytes;
    words[entry + 6] = request.fileOffsetBytes / TWO_32;
    const pendingCount = words[LAYOUT.pendingCountWord] as number;
    words[LAYOUT.pendingWord + pendingCount] = slot;
    words[LAYOUT.pendingCountWord] = pendingCount + 1;
  }

  /**
   * Called by the addon with a batch. Says how far it is before each request runs: should one
   * throw, the addon reports that as an uncaught exception and calls again for the rest.
   */
  private completed(count: number): void {
    const words = this.words;
    for (let i = words[LAYOUT.deliveredCountWord] as number; i < count; i++) {
      words[LAYOUT.deliveredCountWord] = i + 1;
      const slot = words[LAYOUT.completionsWord + i * 2] as number;
      const result = words[LAYOUT.completionsWord + i * 2 + 1] as number;
      const request = this.requests[slot] as DiskRequest;
      this.requests[slot] = null;
      this.freeSlots[this.freeCount++] = slot;
      request.complete(result);
    }
    if (this.waiting.length > 0) this.startWaiting();
    if (this.freeCount === LAYOUT.slots) this.becomeIdle();
  }

  private startWaiting(): void {
    while (this.freeCount > 0 && this.waitingBegin < this.waiting.length) {
      const index = this.waitingBegin++;
      this.startedCount++;
      this.start(this.waiting[index] as DiskRequest, this.waitingFiles[index] as number);
    }
    // Rarely, because it moves what is left; always when nothing is left.
    if (this.waitingBegin * 2 >= this.waiting.length) {
      this.waiting.splice(0, this.waitingBegin);
      this.waitingFiles.splice(0, this.waitingBegin);
      this.waitingBegin = 0;
    }
    while ((this.handOvers[0]?.startedCount ?? Infinity) <= this.startedCount) {
      this.handOvers.shift()?.resolve();
    }
  }

  private becomeIdle(): void {
    this.native.setActive(false);
    for (const resolve of this.idleWaiters.splice(0)) resolve();
  }
}

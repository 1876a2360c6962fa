// revision.counter: how many writes and trims this replica has seen, as decimal text in a 4 KiB
// block (facts: on-disk §2.4). Increments that arrive while one is being written share the next
// write. A request is answered only when its increment is on disk; unlike upstream, a counter that
// cannot be written fails the requests, because a stale counter would make a bad replica trusted.

import { StorageError } from '../core/errors.js';
import { NO_BUFFER } from '../core/slab.js';
import { SECTOR_BYTES } from '../core/units.js';
import { DISK_OP, type Disk, type DiskFile, type DiskRequest } from '../disk/disk.js';
import { diskError } from './disk-errors.js';
import { REVISION_COUNTER } from './names.js';

export interface RevisionTaker {
  revisionWritten(error: StorageError | null): void;
}

/** A revision counter's file mode under Longhorn. */
const COUNTER_MODE = 0o600;

export class RevisionCounter implements DiskRequest {
  readonly op = DISK_OP.write;
  readonly file: DiskFile;
  readonly bufferOffset: number;
  readonly lengthBytes = SECTOR_BYTES;
  readonly fileOffsetBytes = 0;
  private readonly disk: Disk;
  private current: number;
  private isWriting = false;
  private writing: RevisionTaker[] = [];
  private waiting: RevisionTaker[] = [];
  private failure: StorageError | null = null;

  /** Opens the counter, making one with 0 when there is none. @throws BAD_METADATA. */
  static async open(disk: Disk, directory: string): Promise<RevisionCounter> {
    const path = `${directory}/${REVISION_COUNTER}`;
    const value = await readValue(disk, path);
    const file = await disk.open(path, { writable: true, create: true, mode: COUNTER_MODE });
    const bufferOffset = disk.slab.allocate(SECTOR_BYTES);
    if (bufferOffset === NO_BUFFER) {
      await file.close();
      throw new StorageError('LIMIT_EXCEEDED', 'no buffer is free for the revision counter');
    }
    const counter = new RevisionCounter(disk, file, bufferOffset, value ?? 0);
    try {
      if (value === null) {
        await counter.set(0);
        await file.sync();
        await disk.syncDirectory(directory);
      }
    } catch (error) {
      await counter.close();
      throw error;
    }
    return counter;
  }

  private constructor(disk: Disk, file: DiskFile, bufferOffset: number, value: number) {
    this.disk = disk;
    this.file = file;
    this.bufferOffset = bufferOffset;
    this.current = value;
  }

  get value(): number {
    return this.current;
  }

  /** Adds one; revisionWritten() tells when it is on disk, possibly together with others. */
  increment(taker: RevisionTaker): void {
    if (this.failure !== null) {
      taker.revisionWritten(this.failure);
      return;
    }
    this.current++;
    this.waiting.push(taker);
    if (!this.isWriting) this.startWrite();
  }

  /** Writes a new value at once. */
  set(value: number): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.failure !== null) {
        reject(this.failure);
        return;
      }
      this.current = value;
      this.waiting.push({
        revisionWritten: (error) => (error === null ? resolve() : reject(error)),
      });
      if (!this.isWriting) this.startWrite();
    });
  }

  complete(result: number): void {
    if (result !== SECTOR_BYTES) this.failure = diskError(result, 'write', this.file.path);
    const finished = this.writing;
    this.writing = [];
    this.isWriting = false;
    if (this.waiting.length > 0) {
      if (this.failure === null) this.startWrite();
      else finished.push(...this.waiting.splice(0));
    }
    for (const taker of finished) taker.revisionWritten(this.failure);
    finished.length = 0;
  }

  /** Durable, for flush. */
  sync(): Promise<void> {
    return this.file.sync();
  }

  /** The caller has waited for its requests. */
  async close(): Promise<void> {
    await this.file.close();
    this.disk.slab.release(this.bufferOffset);
  }

  private startWrite(): void {
    this.isWriting = true;
    this.writing = this.waiting;
    this.waiting = [];
    const { bytes } = this.disk.slab;
    bytes.fill(0, this.bufferOffset, this.bufferOffset + SECTOR_BYTES);
    const text = String(this.current);
    for (let i = 0; i < text.length; i++) bytes[this.bufferOffset + i] = text.charCodeAt(i);
    this.disk.queue.submit(this);
  }
}

/** null when there is no counter. */
async function readValue(disk: Disk, path: string): Promise<number | null> {
  let content: Buffer;
  try {
    content = await disk.readFile(path, SECTOR_BYTES);
  } catch (error) {
    if (error instanceof StorageError && error.code === 'NOT_FOUND') return null;
    throw error;
  }
  const text = content.toString('latin1').replace(/^\0+|\0+$/g, '');
  const value = Number(text);
  // A crash between creating and first writing the file leaves it empty.
  if (text === '') return null;
  if (!/^-?\d+$/.test(text) || !Number.isSafeInteger(value)) {
    throw new StorageError('BAD_METADATA', `${REVISION_COUNTER} does not hold a number`, { path });
  }
  return value;
}

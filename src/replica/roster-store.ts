// volume.roster on disk: two slots that are written in turn, in place and synced, so that a change
// costs one small write and no file-system metadata, and a torn one leaves the other (promise P7).
// What update() resolved for is durable. It must never make up a roster: unreadable means none.

import { StorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import { alignUp, MIB, SECTOR_BYTES } from '../core/units.js';
import { DISK_OP, type Disk, type DiskFile } from '../disk/disk.js';
import { diskError } from '../image/disk-errors.js';
import { runDisk, writeSectors } from '../image/disk-work.js';
import { decodeSlot, encodeSlot, type RosterRecord } from './roster-record.js';

export const ROSTER_FILE = 'volume.roster';
/** Room for the largest record that limits allow; a usual one takes one sector. */
export const ROSTER_SLOT_BYTES = MIB;
/** Written once, so that usual records later overwrite blocks that exist. */
const PREPARED_BYTES = 16 * 1024;

export interface RosterStoreOptions {
  readonly disk: Disk;
  readonly directory: string;
  readonly log: Logger;
  readonly newId: () => string;
}

export class RosterStore {
  private readonly disk: Disk;
  private readonly file: DiskFile;
  private current: RosterRecord;
  private sequence: number;
  private last: Promise<void> = Promise.resolve();

  /** What the directory says, without opening anything for writing; null when there is no file. */
  static async look(options: RosterStoreOptions): Promise<RosterRecord | null> {
    const newest = await readNewest(options);
    if (newest === 'missing') return null;
    return newest === 'unreadable' ? { ...newRecord(''), isVoid: true } : newest.record;
  }

  /** Opens the file, making one when there is none. @throws NO_SPACE, IO_ERROR. */
  static async open(options: RosterStoreOptions): Promise<RosterStore> {
    const { disk, directory } = options;
    const newest = await readNewest(options);
    const path = `${directory}/${ROSTER_FILE}`;
    const file = await disk.open(path, { writable: true, create: true });
    try {
      if (newest !== 'missing' && newest !== 'unreadable') {
        return new RosterStore(disk, file, newest.record, newest.sequence);
      }
      const isVoid = newest === 'unreadable';
      const store = new RosterStore(disk, file, { ...newRecord(options.newId()), isVoid }, 0);
      await store.prepare(directory);
      return store;
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** Does nothing when there is no file. @throws IO_ERROR. */
  static async remove(disk: Disk, directory: string): Promise<void> {
    try {
      await disk.unlink(`${directory}/${ROSTER_FILE}`);
    } catch (error) {
      if (error instanceof StorageError && error.code === 'NOT_FOUND') return;
      throw error;
    }
    await disk.syncDirectory(directory);
  }

  private constructor(disk: Disk, file: DiskFile, record: RosterRecord, sequence: number) {
    this.disk = disk;
    this.file = file;
    this.current = record;
    this.sequence = sequence;
  }

  /** As last stored. */
  get record(): RosterRecord {
    return this.current;
  }

  /**
   * Changes fields and stores the record; one after the other, in call order.
   * @param change gets the record as it is then; null changes nothing.
   */
  update(change: (record: RosterRecord) => Partial<RosterRecord> | null): Promise<void> {
    const result = this.last.then(async () => {
      const fields = change(this.current);
      if (fields === null) return;
      const record = { ...this.current, ...fields };
      await this.write(record);
      this.current = record;
    });
    this.last = result.catch(() => undefined);
    return result;
  }

  async close(): Promise<void> {
    await this.last;
    await this.file.close();
  }

  /** Both slots get blocks of their own, and the file an entry in its directory. */
  private async prepare(directory: string): Promise<void> {
    await this.file.truncate(2 * ROSTER_SLOT_BYTES);
    for (const slot of [0, 1]) {
      await this.writeAt(slot * ROSTER_SLOT_BYTES, new Uint8Array(PREPARED_BYTES));
    }
    await this.write(this.current);
    await this.disk.syncDirectory(directory);
  }

  private async write(record: RosterRecord): Promise<void> {
    const sequence = this.sequence + 1;
    const bytes = encodeSlot(record, sequence);
    if (bytes.length > ROSTER_SLOT_BYTES) {
      throw new StorageError('LIMIT_EXCEEDED', `a roster of ${bytes.length} bytes`);
    }
    // The slot of the last good record is never the one that is written.
    await this.writeAt((sequence % 2) * ROSTER_SLOT_BYTES, bytes);
    await this.syncData();
    this.sequence = sequence;
  }

  /**
   * fdatasync: the blocks exist, so that this waits for the disk alone. An fsync, for the sake of the
   * time of change, would wait for all that busy replicas have in the file system's journal.
   */
  private async syncData(): Promise<void> {
    const result = await runDisk(this.disk.queue, DISK_OP.sync, this.file, 0, 0, 0);
    if (result < 0) throw diskError(result, 'sync', this.file.path);
  }

  private async writeAt(fileOffsetBytes: number, bytes: Uint8Array): Promise<void> {
    const { slab, queue } = this.disk;
    const lengthBytes = alignUp(bytes.length, SECTOR_BYTES);
    // A busy replica must not fail its engine's roster: the requests that hold the buffers end.
    const bufferOffset = await slab.allocateWhenFree(lengthBytes);
    try {
      slab.bytes.fill(0, bufferOffset + bytes.length, bufferOffset + lengthBytes);
      slab.bytes.set(bytes, bufferOffset);
      await writeSectors(queue, this.file, fileOffsetBytes, lengthBytes, bufferOffset);
    } finally {
      slab.release(bufferOffset);
    }
  }
}

/** Of a directory that nobody has said anything about. */
export function newRecord(replicaId: string): RosterRecord {
  return {
    replicaId,
    engineGeneration: 0,
    roster: null,
    isVoid: false,
    forks: {},
    bootId: '',
    lacksUnflushed: false,
    closedMeta: null,
  };
}

/** The valid slot with the larger sequence. A file without any says nothing: its replica gets a new id. */
async function readNewest(
  options: RosterStoreOptions,
): Promise<{ record: RosterRecord; sequence: number } | 'missing' | 'unreadable'> {
  const { disk, directory, log } = options;
  let content: Buffer;
  try {
    content = await disk.readFile(`${directory}/${ROSTER_FILE}`, 2 * ROSTER_SLOT_BYTES);
  } catch (error) {
    if (error instanceof StorageError && error.code === 'NOT_FOUND') return 'missing';
    throw error;
  }
  const slots = [0, ROSTER_SLOT_BYTES].map((at) =>
    decodeSlot(content.subarray(at, at + ROSTER_SLOT_BYTES)),
  );
  const [first = null, second = null] = slots;
  const newest = (first?.sequence ?? -1) > (second?.sequence ?? -1) ? first : second;
  if (newest !== null) return newest;
  // A crash while it was made leaves it empty. Otherwise there may have been a roster.
  if (content.every((byte) => byte === 0)) return 'missing';
  log.warn('roster.unreadable', { directory });
  return 'unreadable';
}

// One data piece of a transfer in aligned slab memory, and its disk I/O. A piece takes all its
// buffers at once or waits, so transfers cannot starve each other half-way; whoever acquired a
// piece must release it exactly once, and only when neither disk nor socket still uses it.

import { createHash } from 'node:crypto';

import { assert } from '../core/assert.js';
import { BLOCK_OP, submitAndWait } from '../core/block-device.js';
import type { BlockDevice } from '../core/block-device.js';
import { StorageError } from '../core/errors.js';
import { REQUEST_BYTES_MAX } from '../core/limits.js';
import { NO_BUFFER } from '../core/slab.js';
import type { Slab } from '../core/slab.js';
import { GIB, SECTOR_BYTES, alignUp } from '../core/units.js';
import { diskErrorOfResult } from '../disk/disk-error.js';
import { DISK_OP } from '../disk/disk.js';
import type { Disk, DiskFile, DiskOp, DiskRequest } from '../disk/disk.js';
import { PIECE_BYTES_MAX } from './constants.js';

const EOPNOTSUPP = 95;
/** Longest hole punched by one call: file systems hold locks meanwhile. */
const HOLE_BYTES_MAX = GIB;

/** One queued disk operation as a promise; for transfers, which are not on the per-I/O path. */
export function submitDisk(
  disk: Disk,
  op: DiskOp,
  file: DiskFile,
  bufferOffset: number,
  lengthBytes: number,
  fileOffsetBytes: number,
): Promise<number> {
  return new Promise((resolve) => {
    const request: DiskRequest = {
      op,
      file,
      bufferOffset,
      lengthBytes,
      fileOffsetBytes,
      complete: resolve,
    };
    disk.queue.submit(request);
  });
}

/** Makes a range a hole. @throws NO_SPACE, IO_ERROR, UNSUPPORTED. */
export async function punchHole(
  disk: Disk,
  file: DiskFile,
  beginOffset: number,
  lengthBytes: number,
): Promise<void> {
  for (let done = 0; done < lengthBytes; done += HOLE_BYTES_MAX) {
    const begin = beginOffset + done;
    const count = Math.min(HOLE_BYTES_MAX, lengthBytes - done);
    const result = await submitDisk(disk, DISK_OP.punchHole, file, 0, count, begin);
    if (result === 0) continue;
    // Where holes cannot be punched, what already is one still serves.
    const isHole =
      result === -EOPNOTSUPP && (await file.extents(begin, begin + count, 1)).length === 0;
    if (!isHole) throw diskErrorOfResult(result, 'punch hole in', file.path);
  }
}

export class PieceBuffer {
  /** Bytes of content, from the start of the first buffer on. */
  lengthBytes = 0;
  private readonly disk: Disk;
  private offsets: number[];

  private constructor(disk: Disk, offsets: number[]) {
    this.disk = disk;
    this.offsets = offsets;
  }

  /**
   * Waits until the slab can hold capacityBytes. @param capacityBytes at most PIECE_BYTES_MAX.
   * @throws CANCELLED when the signal aborts first.
   */
  static async acquire(
    disk: Disk,
    capacityBytes: number,
    signal?: AbortSignal,
  ): Promise<PieceBuffer> {
    assert(capacityBytes <= PIECE_BYTES_MAX, 'a piece fits its buffers');
    for (;;) {
      if (signal?.aborted === true) {
        throw new StorageError('CANCELLED', 'the transfer was cancelled', {}, signal.reason);
      }
      const offsets = takeBuffers(disk.slab, capacityBytes);
      if (offsets !== null) return new PieceBuffer(disk, offsets);
      await new Promise<void>((resolve) => disk.slab.whenReleased(resolve));
    }
  }

  /** Slab offset of the first buffer. */
  get bufferOffset(): number {
    const [offset] = this.offsets;
    assert(offset !== undefined, 'the piece is held');
    return offset;
  }

  release(): void {
    for (const offset of this.offsets) this.disk.slab.release(offset);
    this.offsets = [];
  }

  /** Views of the content, one for each buffer. */
  views(): Buffer[] {
    return this.parts().map((part) =>
      Buffer.from(this.disk.slab.memory, part.bufferOffset, part.lengthBytes),
    );
  }

  /** Base64 of the content's SHA-512. */
  hash(): string {
    const hash = createHash('sha512');
    for (const view of this.views()) hash.update(view);
    return hash.digest('base64');
  }

  /** Appends bytes; the caller has checked that they fit. */
  append(chunk: Uint8Array): void {
    let taken = 0;
    while (taken < chunk.length) {
      const index = Math.floor(this.lengthBytes / REQUEST_BYTES_MAX);
      const within = this.lengthBytes % REQUEST_BYTES_MAX;
      const count = Math.min(chunk.length - taken, REQUEST_BYTES_MAX - within);
      const offset = this.offsets[index];
      assert(offset !== undefined, 'appended bytes fit the piece');
      this.disk.slab.bytes.set(chunk.subarray(taken, taken + count), offset + within);
      this.lengthBytes += count;
      taken += count;
    }
  }

  /** Fills the piece from a file; lengthBytes is less than asked at the end of the file. */
  async read(file: DiskFile, fileOffsetBytes: number, lengthBytes: number): Promise<void> {
    this.lengthBytes = lengthBytes;
    const results = await Promise.all(
      this.parts().map((part) =>
        submitDisk(
          this.disk,
          DISK_OP.read,
          file,
          part.bufferOffset,
          alignUp(part.lengthBytes, SECTOR_BYTES),
          fileOffsetBytes + part.beginBytes,
        ),
      ),
    );
    let count = 0;
    for (const result of results) {
      if (result < 0) throw diskErrorOfResult(result, 'read', file.path);
      count += result;
    }
    this.lengthBytes = Math.min(count, lengthBytes);
  }

  /** Fills the piece from a device. The range is inside it. */
  async readDevice(device: BlockDevice, offsetBytes: number, lengthBytes: number): Promise<void> {
    this.lengthBytes = lengthBytes;
    const results = await Promise.allSettled(
      this.parts().map((part) =>
        submitAndWait(device, {
          op: BLOCK_OP.read,
          offsetBytes: offsetBytes + part.beginBytes,
          lengthBytes: part.lengthBytes,
          bufferOffset: part.bufferOffset,
        }),
      ),
    );
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  /** Writes one of the piece's buffers to its place in a piece that starts at fileOffsetBytes. */
  async writePart(file: DiskFile, fileOffsetBytes: number, index: number): Promise<void> {
    const part = this.parts()[index];
    assert(part !== undefined, 'the part has content');
    const { bufferOffset, lengthBytes } = part;
    const at = fileOffsetBytes + part.beginBytes;
    const { disk } = this;
    const result = await submitDisk(disk, DISK_OP.write, file, bufferOffset, lengthBytes, at);
    if (result < 0) throw diskErrorOfResult(result, 'write', file.path);
    assert(result === lengthBytes, 'the queue completes writes or fails them');
  }

  /** Buffers that have content. */
  get partCount(): number {
    return Math.ceil(this.lengthBytes / REQUEST_BYTES_MAX);
  }

  private parts(): { bufferOffset: number; beginBytes: number; lengthBytes: number }[] {
    return this.offsets.slice(0, this.partCount).map((bufferOffset, index) => {
      const beginBytes = index * REQUEST_BYTES_MAX;
      const lengthBytes = Math.min(REQUEST_BYTES_MAX, this.lengthBytes - beginBytes);
      return { bufferOffset, beginBytes, lengthBytes };
    });
  }
}

/**
 * All buffers of a piece or null. It asks for the count first: giving back a partial catch would
 * wake the other waiters, who would do the same to us for ever.
 */
function takeBuffers(slab: Slab, capacityBytes: number): number[] | null {
  if (capacityBytes <= REQUEST_BYTES_MAX) {
    const offset = slab.allocate(Math.max(capacityBytes, SECTOR_BYTES));
    return offset === NO_BUFFER ? null : [offset];
  }
  const count = Math.ceil(capacityBytes / REQUEST_BYTES_MAX);
  const largest = slab.freeCounts().find((c) => c.bufferBytes === REQUEST_BYTES_MAX);
  if (largest === undefined || largest.freeCount < count) return null;
  return Array.from({ length: count }, () => slab.allocate(REQUEST_BYTES_MAX));
}

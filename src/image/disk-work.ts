// Disk queue operations as promises, for work that is not one request: trims, coalescing, probes.

import {
  DISK_OP,
  type DiskFile,
  type DiskOp,
  type DiskQueue,
  type DiskRequest,
} from '../disk/disk.js';
import { diskError, EOPNOTSUPP } from './disk-errors.js';
import { SCRATCH_BYTES, type ScratchBuffers } from './scratch.js';

/** Longest hole punched by one call: file systems hold locks meanwhile. */
const HOLE_BYTES_MAX = 1024 * 1024 * 1024;

class Work implements DiskRequest {
  readonly op: DiskOp;
  readonly file: DiskFile;
  readonly bufferOffset: number;
  readonly lengthBytes: number;
  readonly fileOffsetBytes: number;
  private readonly resolve: (result: number) => void;

  constructor(
    op: DiskOp,
    file: DiskFile,
    fileOffsetBytes: number,
    lengthBytes: number,
    bufferOffset: number,
    resolve: (result: number) => void,
  ) {
    this.op = op;
    this.file = file;
    this.fileOffsetBytes = fileOffsetBytes;
    this.lengthBytes = lengthBytes;
    this.bufferOffset = bufferOffset;
    this.resolve = resolve;
  }

  complete(result: number): void {
    this.resolve(result);
  }
}

/** The queue's own result: bytes, 0 or a negative errno. */
export function runDisk(
  queue: DiskQueue,
  op: DiskOp,
  file: DiskFile,
  fileOffsetBytes: number,
  lengthBytes: number,
  bufferOffset: number,
): Promise<number> {
  return new Promise((resolve) => {
    queue.submit(new Work(op, file, fileOffsetBytes, lengthBytes, bufferOffset, resolve));
  });
}

/** Writes whole sectors. @throws NO_SPACE, IO_ERROR. */
export async function writeSectors(
  queue: DiskQueue,
  file: DiskFile,
  fileOffsetBytes: number,
  lengthBytes: number,
  bufferOffset: number,
): Promise<void> {
  const result = await runDisk(
    queue,
    DISK_OP.write,
    file,
    fileOffsetBytes,
    lengthBytes,
    bufferOffset,
  );
  if (result !== lengthBytes) throw diskError(result, 'write', file.path);
}

/**
 * Makes sectors read zero: as a hole (`punchHole`), or as an extent that hides older layers
 * (`zeroRange`). Where the file system has neither, zeros are written.
 */
export async function clearSectors(
  queue: DiskQueue,
  scratch: ScratchBuffers,
  op: typeof DISK_OP.punchHole | typeof DISK_OP.zeroRange,
  file: DiskFile,
  beginOffset: number,
  endOffset: number,
): Promise<void> {
  for (let begin = beginOffset; begin < endOffset; ) {
    const end = Math.min(endOffset, begin + HOLE_BYTES_MAX);
    const result = await runDisk(queue, op, file, begin, end - begin, 0);
    if (result === -EOPNOTSUPP) await writeZeroes(queue, scratch, file, begin, end);
    else if (result < 0) throw diskError(result, 'clear', file.path);
    begin = end;
  }
}

/** Real zeros: space and data. Sector aligned. */
export async function writeZeroes(
  queue: DiskQueue,
  scratch: ScratchBuffers,
  file: DiskFile,
  beginOffset: number,
  endOffset: number,
): Promise<void> {
  const bufferOffset = await new Promise<number>((resolve) => {
    scratch.take({ scratchGranted: resolve });
  });
  try {
    scratch.bytes.fill(0, bufferOffset, bufferOffset + SCRATCH_BYTES);
    for (let begin = beginOffset; begin < endOffset; begin += SCRATCH_BYTES) {
      const lengthBytes = Math.min(SCRATCH_BYTES, endOffset - begin);
      await writeSectors(queue, file, begin, lengthBytes, bufferOffset);
    }
  } finally {
    scratch.give(bufferOffset);
  }
}

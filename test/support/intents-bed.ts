// Write intents over a disk in memory, with a device behind them that notes what reaches it.

import {
  BLOCK_OP,
  type BlockDevice,
  type BlockRequest,
  submitAndWait,
} from '../../src/core/block-device.js';
import type { ByteRange } from '../../src/core/byte-ranges.js';
import { INTENTS_FILE, WriteIntents } from '../../src/replica/write-intents.js';
import { MemoryDisk } from './memory-disk.js';

export const DIRECTORY = '/r';
export const PATH = `${DIRECTORY}/${INTENTS_FILE}`;
export const WRITE_BYTES = 4096;

/** Stands for the image chain: notes what arrives and finishes it. */
export class Next implements BlockDevice {
  sizeBytes: number;
  readonly arrived: ByteRange[] = [];

  constructor(sizeBytes: number) {
    this.sizeBytes = sizeBytes;
  }

  submit(request: BlockRequest): void {
    const { op, offsetBytes, lengthBytes } = request;
    if (op !== BLOCK_OP.read && op !== BLOCK_OP.flush) {
      this.arrived.push({ beginOffset: offsetBytes, endOffset: offsetBytes + lengthBytes });
    }
    request.done(null);
  }
}

export async function newDisk(): Promise<MemoryDisk> {
  const disk = new MemoryDisk();
  await disk.makeDirectory(DIRECTORY);
  await disk.syncDirectory('/');
  return disk;
}

export function open(
  disk: MemoryDisk,
  next: BlockDevice,
  fields: { isMissingUnknown?: boolean; isStale?: boolean } = {},
): Promise<WriteIntents> {
  return WriteIntents.open({
    disk,
    directory: DIRECTORY,
    next,
    isMissingUnknown: fields.isMissingUnknown ?? false,
    isStale: fields.isStale ?? false,
  });
}

type Op = (typeof BLOCK_OP)[keyof typeof BLOCK_OP];

export function write(
  intents: WriteIntents,
  offsetBytes: number,
  lengthBytes = WRITE_BYTES,
  op: Op = BLOCK_OP.write,
): Promise<BlockRequest> {
  const device = {
    sizeBytes: 0,
    submit: (request: BlockRequest): void => intents.admit(request),
  };
  return submitAndWait(device, { op, offsetBytes, lengthBytes, bufferOffset: 0 });
}

/** True when every range is known to be touched. */
export function covers(known: readonly ByteRange[] | null, wanted: readonly ByteRange[]): boolean {
  if (known === null) return true;
  return wanted.every(({ beginOffset, endOffset }) =>
    known.some((range) => range.beginOffset <= beginOffset && endOffset <= range.endOffset),
  );
}

export async function syncCount(disk: MemoryDisk, work: () => Promise<unknown>): Promise<number> {
  disk.log.length = 0;
  await work();
  return disk.log.filter(({ kind, path }) => kind === 'sync' && path === PATH).length;
}

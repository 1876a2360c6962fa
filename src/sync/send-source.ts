// What a sender can send: one raw layer file, or a snapshot as the volume saw it, merged from its
// layers. Both are ranges that are holes or data; neither changes while it is sent.

import { BLOCK_OP, EXTENT_ENTRY_BYTES, EXTENT_HOLE, submitAndWait } from '../core/block-device.js';
import { type ByteRange, mergeRanges } from '../core/byte-ranges.js';
import type { Clock } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import { EXTENTS_BUFFER_BYTES } from '../core/limits.js';
import type { Logger } from '../core/log.js';
import { SECTOR_BYTES, alignUp } from '../core/units.js';
import type { Disk } from '../disk/disk.js';
import { ImageChain } from '../image/chain.js';
import { snapshotDiskName } from '../image/names.js';
import { isRecordCurrent } from './checksum-record.js';
import { readChecksumRecord } from './checksum-store.js';
import { PIECE_BYTES_MAX } from './constants.js';
import { filePieces, rangePieces } from './layout.js';
import type { LayoutPiece } from './layout.js';
import { PieceBuffer } from './piece-buffer.js';

export interface RecordedChecksum {
  readonly method: string;
  readonly checksum: string;
}

export interface SendSource {
  /** For the log. */
  readonly name: string;
  readonly sizeBytes: number;
  /** False for small metadata files. */
  readonly isDirect: boolean;
  /** True when only some ranges are sent: the receiver then keeps what it has of the others. */
  readonly isPartial: boolean;
  /** The hash record of exactly this content, when there is a current one. */
  readonly recorded: RecordedChecksum | null;
  /** Holes and data pieces in order; may be walked again. */
  pieces(): AsyncGenerator<LayoutPiece>;
  read(piece: PieceBuffer, offsetBytes: number, lengthBytes: number): Promise<void>;
  close(): Promise<void>;
}

/** What of a file is sent. */
export interface FileSelection {
  /** Empty: all of it. */
  readonly ranges: readonly ByteRange[];
  /** Only a receiver's file of the same size can keep the rest. */
  readonly receiverSizeBytes: number;
}

export const WHOLE_FILE: FileSelection = { ranges: [], receiverSizeBytes: 0 };

/** @param path absolute. @throws NOT_FOUND, IO_ERROR. */
export async function openFileSource(
  disk: Disk,
  path: string,
  { ranges, receiverSizeBytes }: FileSelection = WHOLE_FILE,
): Promise<SendSource> {
  const recorded = await currentRecord(disk, path);
  const isDirect = !path.endsWith('.meta');
  const file = await disk.open(path, { writable: false, direct: isDirect });
  try {
    const sizeBytes = await file.sizeBytes();
    const isPartial = ranges.length > 0 && receiverSizeBytes === sizeBytes && isDirect;
    const selected = isPartial ? onSectors(ranges, sizeBytes) : [];
    return {
      name: path,
      sizeBytes,
      isDirect,
      isPartial,
      recorded,
      pieces: () => (isPartial ? rangePieces(file, selected) : filePieces(file, sizeBytes)),
      read: (piece, offsetBytes, lengthBytes) => piece.read(file, offsetBytes, lengthBytes),
      close: () => file.close(),
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** The ranges with the sectors that they touch, inside the file. */
function onSectors(ranges: readonly ByteRange[], sizeBytes: number): ByteRange[] {
  const fileEnd = alignUp(sizeBytes, SECTOR_BYTES);
  return mergeRanges(
    ranges.map(({ beginOffset, endOffset }) => ({
      beginOffset: Math.floor(Math.max(0, beginOffset) / SECTOR_BYTES) * SECTOR_BYTES,
      endOffset: Math.min(alignUp(endOffset, SECTOR_BYTES), fileEnd),
    })),
  );
}

/** The file's own hash record when it may be trusted; only images have one. */
async function currentRecord(disk: Disk, path: string): Promise<RecordedChecksum | null> {
  const { changedNs } = await disk.stat(path);
  if (!path.endsWith('.img')) return null;
  try {
    const record = await readChecksumRecord(disk, path);
    if (record === null || record.isSilentlyCorrupted) return null;
    return isRecordCurrent(record, changedNs) ? record : null;
  } catch (error) {
    if (error instanceof StorageError && error.code === 'BAD_METADATA') return null;
    throw error;
  }
}

export interface SnapshotSourceOptions {
  readonly disk: Disk;
  readonly clock: Clock;
  readonly log: Logger;
  readonly directory: string;
  readonly snapshotName: string;
  /** False leaves the backing image's data out; what a layer hides of it stays hidden. */
  readonly includesBackingImage: boolean;
}

/** @throws NOT_FOUND with Longhorn's text for an unknown snapshot; CHAIN_BROKEN and the like. */
export async function openSnapshotSource(options: SnapshotSourceOptions): Promise<SendSource> {
  const { disk, directory, snapshotName, clock, log } = options;
  const headDiskName = snapshotDiskName(snapshotName);
  const backing = options.includesBackingImage ? {} : { backingFilePath: '' };
  const chainOptions = { clock, log, readOnly: true, headDiskName, ...backing };
  let chain: ImageChain;
  try {
    chain = await ImageChain.open(disk, directory, chainOptions);
  } catch (error) {
    if (!(error instanceof StorageError) || error.code !== 'NOT_FOUND') throw error;
    const message = `failed to find metadata for ${headDiskName}`;
    throw new StorageError('NOT_FOUND', message, {}, error);
  }
  return {
    name: headDiskName,
    sizeBytes: chain.sizeBytes,
    isDirect: true,
    isPartial: false,
    recorded: null,
    pieces: () => chainPieces(disk, chain),
    read: (piece, offsetBytes, lengthBytes) => piece.readDevice(chain, offsetBytes, lengthBytes),
    close: () => chain.close(),
  };
}

/** What no layer has is a hole; zeros that a layer has are data, since they may hide something. */
async function* chainPieces(disk: Disk, chain: ImageChain): AsyncGenerator<LayoutPiece> {
  let holeBegin: number | null = null;
  for (let position = 0; position < chain.sizeBytes; ) {
    for (const { lengthBytes, isHole } of await chainExtents(disk, chain, position)) {
      const end = position + lengthBytes;
      if (isHole) {
        holeBegin ??= position;
      } else {
        if (holeBegin !== null) yield { beginOffset: holeBegin, endOffset: position, isHole: true };
        holeBegin = null;
        for (let begin = position; begin < end; begin += PIECE_BYTES_MAX) {
          const endOffset = Math.min(begin + PIECE_BYTES_MAX, end);
          yield { beginOffset: begin, endOffset, isHole: false };
        }
      }
      position = end;
    }
  }
  if (holeBegin !== null)
    yield { beginOffset: holeBegin, endOffset: chain.sizeBytes, isHole: true };
}

interface ChainExtent {
  readonly lengthBytes: number;
  readonly isHole: boolean;
}

async function chainExtents(
  disk: Disk,
  chain: ImageChain,
  offsetBytes: number,
): Promise<ChainExtent[]> {
  const buffer = await PieceBuffer.acquire(disk, EXTENTS_BUFFER_BYTES);
  try {
    const lengthBytes = chain.sizeBytes - offsetBytes;
    const { bufferOffset } = buffer;
    const fields = { op: BLOCK_OP.extents, offsetBytes, lengthBytes, bufferOffset };
    const { resultBytes } = await submitAndWait(chain, fields);
    const extents: ChainExtent[] = [];
    for (let at = bufferOffset; at < bufferOffset + resultBytes; at += EXTENT_ENTRY_BYTES) {
      const isHole = (disk.slab.view.getUint32(at + 4, true) & EXTENT_HOLE) !== 0;
      extents.push({ lengthBytes: disk.slab.view.getUint32(at, true), isHole });
    }
    if (extents.length === 0) throw new StorageError('IO_ERROR', 'the chain has no extents');
    return extents;
  } finally {
    buffer.release();
  }
}

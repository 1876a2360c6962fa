// The data work of a purge, on the raw files of two neighbouring layers while the replica keeps
// both open: folding a child into its removed parent's file, and punching out of the removed layer
// behind the head what the head hides. Both may be stopped or crash at any point and be done
// again: the upper layer, which readers use, is never changed. Source: sparse-tools
// sparse/{sfold,sprune}.go (on-disk §8.3).

import { StorageError } from '../core/errors.js';
import { SECTOR_BYTES } from '../core/units.js';
import type { Disk, DiskFile } from '../disk/disk.js';
import { SENDER_WORKERS } from './constants.js';
import { filePieces } from './layout.js';
import type { LayoutPiece } from './layout.js';
import { PieceBuffer, punchHole } from './piece-buffer.js';

export interface LayerWorkOptions {
  readonly disk: Disk;
  /** Absolute path of the removed layer, which is changed. */
  readonly lowerPath: string;
  /** Absolute path of its only child, which is only read. */
  readonly upperPath: string;
  readonly signal: AbortSignal;
  /** Called with bytes of the volume that are done and the volume's size. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
}

/** Copies every extent of the upper layer into the lower file and makes it durable. */
export function coalesceLayers(options: LayerWorkOptions): Promise<void> {
  return workOnLayers(options, async (lower, upper, piece) => {
    const lengthBytes = piece.endOffset - piece.beginOffset;
    const buffer = await PieceBuffer.acquire(options.disk, lengthBytes, options.signal);
    try {
      await buffer.read(upper, piece.beginOffset, lengthBytes);
      if (buffer.lengthBytes !== lengthBytes) {
        throw new StorageError('IMAGE_TRUNCATED', `${upper.path} became shorter`);
      }
      const writes: Promise<void>[] = [];
      for (let index = 0; index < buffer.partCount; index++) {
        writes.push(buffer.writePart(lower, piece.beginOffset, index));
      }
      const results = await Promise.allSettled(writes);
      for (const result of results) if (result.status === 'rejected') throw result.reason;
    } finally {
      buffer.release();
    }
  });
}

/** Frees in the lower file what the upper layer hides. */
export function pruneLayer(options: LayerWorkOptions): Promise<void> {
  return workOnLayers(options, (lower, _upper, piece) =>
    punchHole(options.disk, lower, piece.beginOffset, piece.endOffset - piece.beginOffset),
  );
}

type PieceWork = (lower: DiskFile, upper: DiskFile, piece: LayoutPiece) => Promise<void>;

async function workOnLayers(options: LayerWorkOptions, work: PieceWork): Promise<void> {
  const { disk, lowerPath, upperPath } = options;
  const upper = await disk.open(upperPath, { writable: false });
  try {
    const lower = await disk.open(lowerPath, { writable: true });
    try {
      const sizeBytes = await matchSizes(lower, upper);
      await workOnPieces(options, lower, upper, sizeBytes, work);
      // Whoever drops the upper file next relies on this.
      await lower.sync();
    } finally {
      await lower.close();
    }
  } finally {
    await upper.close();
  }
}

/** A volume only ever grows, so the lower layer may be the smaller one. */
async function matchSizes(lower: DiskFile, upper: DiskFile): Promise<number> {
  const lowerBytes = await lower.sizeBytes();
  const upperBytes = await upper.sizeBytes();
  if (lowerBytes > upperBytes) {
    const message = `${lower.path} is larger than ${upper.path}`;
    throw new StorageError('CHAIN_BROKEN', message, { lowerBytes, upperBytes });
  }
  if (upperBytes % SECTOR_BYTES !== 0) {
    const message = `${upper.path}: size ${upperBytes} is not a multiple of ${SECTOR_BYTES}`;
    throw new StorageError('NOT_ALIGNED', message, { upperBytes });
  }
  if (lowerBytes < upperBytes) await lower.truncate(upperBytes);
  return upperBytes;
}

async function workOnPieces(
  options: LayerWorkOptions,
  lower: DiskFile,
  upper: DiskFile,
  sizeBytes: number,
  work: PieceWork,
): Promise<void> {
  const { signal, onProgress } = options;
  const pieces = filePieces(upper, sizeBytes);
  let hasFailed = false;
  let doneBytes = 0;
  const worker = async (): Promise<void> => {
    while (!hasFailed) {
      if (signal.aborted) throw new StorageError('CANCELLED', 'the purge was cancelled');
      const next = await pieces.next();
      if (next.done === true) return;
      if (!next.value.isHole) await work(lower, upper, next.value);
      doneBytes += next.value.endOffset - next.value.beginOffset;
      onProgress?.(doneBytes, sizeBytes);
    }
  };
  const guarded = async (): Promise<void> => {
    try {
      await worker();
    } catch (error) {
      hasFailed = true;
      throw error;
    }
  };
  const outcomes = await Promise.allSettled(Array.from({ length: SENDER_WORKERS }, guarded));
  for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
}

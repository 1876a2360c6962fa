// Copies a file from another replica's directory on the same node without the network, holes
// kept. It ends like a transfer: durable content, and the source's hash record when it is current.
// A failure leaves no record, and the caller falls back to the network.

import { dirname, basename } from 'node:path';

import { StorageError } from '../core/errors.js';
import type { Disk, DiskFile } from '../disk/disk.js';
import { SENDER_WORKERS } from './constants.js';
import { isRecordCurrent } from './checksum-record.js';
import { readChecksumRecord, removeChecksumRecord, writeChecksumRecord } from './checksum-store.js';
import { filePieces } from './layout.js';
import type { LayoutPiece } from './layout.js';
import { PieceBuffer } from './piece-buffer.js';
import { openReceivedFile } from './received-file.js';
import type { ReceivedFile } from './received-file.js';

export interface LocalCopyOptions {
  readonly disk: Disk;
  readonly sourcePath: string;
  readonly targetPath: string;
  readonly signal: AbortSignal;
  readonly onProgress?: (bytes: number) => void;
}

/** @throws NOT_FOUND, NO_SPACE, IO_ERROR, CANCELLED. */
export async function copyLocally(options: LocalCopyOptions): Promise<void> {
  const { disk, sourcePath, targetPath } = options;
  const isDirect = !sourcePath.endsWith('.meta');
  const { changedNs } = await disk.stat(sourcePath);
  const record = sourcePath.endsWith('.img') ? await readChecksumRecord(disk, sourcePath) : null;
  const source = await disk.open(sourcePath, { writable: false, direct: isDirect });
  try {
    const sizeBytes = await source.sizeBytes();
    await removeChecksumRecord(disk, targetPath);
    const target = await openReceivedFile({
      disk,
      directory: dirname(targetPath),
      fileName: basename(targetPath),
      sizeBytes,
      isDirect,
    });
    try {
      await copyPieces(options, source, target);
    } catch (error) {
      await target.discard();
      throw error;
    }
    await target.commit();
  } finally {
    await source.close();
  }
  if (record === null || record.isSilentlyCorrupted || !isRecordCurrent(record, changedNs)) return;
  const { method, checksum } = record;
  const copied = await disk.stat(targetPath);
  await writeChecksumRecord(disk, targetPath, { method, checksum, changedNs: copied.changedNs });
}

async function copyPieces(
  options: LocalCopyOptions,
  source: DiskFile,
  target: ReceivedFile,
): Promise<void> {
  const pieces = filePieces(source, target.sizeBytes);
  let hasFailed = false;
  const worker = async (): Promise<void> => {
    try {
      while (!hasFailed) {
        const next = await pieces.next();
        if (next.done === true) return;
        if (options.signal.aborted) throw new StorageError('CANCELLED', 'the copy was cancelled');
        if (next.value.isHole) await target.punch(next.value);
        else await copyPiece(options, source, target, next.value);
      }
    } catch (error) {
      hasFailed = true;
      throw error;
    }
  };
  const outcomes = await Promise.allSettled(Array.from({ length: SENDER_WORKERS }, worker));
  for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
}

async function copyPiece(
  options: LocalCopyOptions,
  source: DiskFile,
  target: ReceivedFile,
  piece: LayoutPiece,
): Promise<void> {
  const lengthBytes = piece.endOffset - piece.beginOffset;
  const buffer = await PieceBuffer.acquire(options.disk, lengthBytes, options.signal);
  try {
    await buffer.read(source, piece.beginOffset, lengthBytes);
    const sink = await target.write(piece, options.signal);
    for (const view of buffer.views()) sink.push(view);
    await sink.finish();
    options.onProgress?.(buffer.lengthBytes);
  } finally {
    buffer.release();
  }
}

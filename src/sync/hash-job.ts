// Hashes one snapshot and keeps its `.checksum` record. A hash that differs from the record of an
// unchanged file means that the disk changed data behind our back: that is reported and the old
// record kept, never overwritten. Source: pkg/replica/hash.go (on-disk §2.3).

import { basename } from 'node:path';

import { sleepMs } from '../core/clock.js';
import type { Clock } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import type { Disk, DiskFile } from '../disk/disk.js';
import { rfc3339 } from '../image/chain-changes.js';
import { CHECKSUM_METHOD, isRecordCurrent } from './checksum-record.js';
import type { ChecksumRecord } from './checksum-record.js';
import { readChecksumRecord, removeChecksumRecord, writeChecksumRecord } from './checksum-store.js';
import { Crc64 } from './crc64.js';
import { filePieces } from './layout.js';
import type { LayoutPiece } from './layout.js';
import type { HeldLock, NodeLock } from './node-lock.js';
import { PieceBuffer } from './piece-buffer.js';

/** Pause between two looks at a lock that another job holds. */
const LOCK_PAUSE_MS = 200;
/** Pieces read ahead of the one that is hashed. */
const READ_AHEAD_PIECES = 2;

export interface HashJobOptions {
  readonly disk: Disk;
  readonly clock: Clock;
  readonly lock: NodeLock;
  /** Absolute path of the snapshot's image. */
  readonly path: string;
  /** Hash again although a current record exists. */
  readonly isRehash: boolean;
  readonly signal: AbortSignal;
}

export interface HashResult {
  readonly checksum: string;
  readonly isSilentlyCorrupted: boolean;
}

/** @throws NOT_FOUND, CANCELLED, INVALID_STATE when the file changed meanwhile. */
export async function hashSnapshot(options: HashJobOptions): Promise<HashResult> {
  const held = await waitForLock(options);
  try {
    return await hashLocked(options);
  } finally {
    await held.release();
  }
}

async function waitForLock(options: HashJobOptions): Promise<HeldLock> {
  const { lock, clock, signal } = options;
  for (;;) {
    checkCancelled(signal);
    const held = await lock.tryAcquire();
    if (held !== null) return held;
    await sleepMs(clock, LOCK_PAUSE_MS, signal);
  }
}

function checkCancelled(signal: AbortSignal): void {
  if (signal.aborted) throw new StorageError('CANCELLED', 'the hash job was cancelled');
}

/** Longhorn's text for a missing file names it relative to the replica's directory. */
async function changeTimeOf(disk: Disk, path: string): Promise<bigint> {
  try {
    return (await disk.stat(path)).changedNs;
  } catch (error) {
    if (!(error instanceof StorageError) || error.code !== 'NOT_FOUND') throw error;
    const message = `stat ${basename(path)}: no such file or directory`;
    throw new StorageError('NOT_FOUND', message, {}, error);
  }
}

async function hashLocked(options: HashJobOptions): Promise<HashResult> {
  const { disk, clock, path } = options;
  const changedNs = await changeTimeOf(disk, path);
  const record = await readRecord(disk, path);
  const current = record !== null && isRecordCurrent(record, changedNs) ? record : null;
  if (current !== null && (current.isSilentlyCorrupted || !options.isRehash)) {
    return { checksum: current.checksum, isSilentlyCorrupted: current.isSilentlyCorrupted };
  }
  const checksum = await crc64OfFile(disk, path, options.signal);
  const isSilentlyCorrupted = current !== null && current.checksum !== checksum;
  await writeChecksumRecord(disk, path, {
    method: CHECKSUM_METHOD,
    checksum: isSilentlyCorrupted ? current.checksum : checksum,
    changedNs,
    lastHashedAt: isSilentlyCorrupted ? current.lastHashedAt : rfc3339(clock.wallTime()),
    isSilentlyCorrupted,
  });
  if ((await changeTimeOf(disk, path)) !== changedNs) {
    await removeChecksumRecord(disk, path);
    const message = `snapshot ${basename(path)} modification time is changed`;
    throw new StorageError('INVALID_STATE', message);
  }
  return { checksum: isSilentlyCorrupted ? current.checksum : checksum, isSilentlyCorrupted };
}

/** An unreadable record is as good as none. */
async function readRecord(disk: Disk, path: string): Promise<ChecksumRecord | null> {
  try {
    return await readChecksumRecord(disk, path);
  } catch (error) {
    if (error instanceof StorageError && error.code === 'BAD_METADATA') return null;
    throw error;
  }
}

/** The CRC-64 of a whole file, holes as zeros; reads run ahead of the arithmetic. */
export async function crc64OfFile(disk: Disk, path: string, signal: AbortSignal): Promise<string> {
  const file = await disk.open(path, { writable: false });
  const pieces: Promise<ReadPiece>[] = [];
  const crc = new Crc64();
  try {
    const sizeBytes = await file.sizeBytes();
    const layout = filePieces(file, sizeBytes);
    let isEnd = false;
    while (!isEnd || pieces.length > 0) {
      while (!isEnd && pieces.length <= READ_AHEAD_PIECES) {
        const next = await layout.next();
        if (next.done === true) isEnd = true;
        else pieces.push(readPiece(disk, file, next.value, signal));
      }
      const piece = await pieces.shift();
      if (piece === undefined) break;
      checkedUpdate(crc, piece, sizeBytes, signal);
    }
    return crc.digest();
  } finally {
    for (const piece of await Promise.allSettled(pieces)) {
      if (piece.status === 'fulfilled') piece.value.buffer?.release();
    }
    await file.close();
  }
}

interface ReadPiece {
  readonly layout: LayoutPiece;
  /** Null for a hole. */
  readonly buffer: PieceBuffer | null;
}

async function readPiece(
  disk: Disk,
  file: DiskFile,
  layout: LayoutPiece,
  signal: AbortSignal,
): Promise<ReadPiece> {
  if (layout.isHole) return { layout, buffer: null };
  const lengthBytes = layout.endOffset - layout.beginOffset;
  const buffer = await PieceBuffer.acquire(disk, lengthBytes, signal);
  try {
    await buffer.read(file, layout.beginOffset, lengthBytes);
  } catch (error) {
    buffer.release();
    throw error;
  }
  return { layout, buffer };
}

function checkedUpdate(crc: Crc64, piece: ReadPiece, sizeBytes: number, signal: AbortSignal): void {
  const { beginOffset, endOffset } = piece.layout;
  const count = Math.min(endOffset, sizeBytes) - beginOffset;
  if (piece.buffer === null) {
    crc.updateZeros(count);
  } else {
    const hasAll = piece.buffer.lengthBytes >= count;
    if (hasAll) for (const view of piece.buffer.views()) crc.update(view);
    piece.buffer.release();
    if (!hasAll) throw new StorageError('IMAGE_TRUNCATED', 'the file became shorter');
  }
  checkCancelled(signal);
}

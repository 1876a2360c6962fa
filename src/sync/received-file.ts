// The destination of one transfer. Image files are written in place with O_DIRECT; small metadata
// files are collected in memory and replace the old file atomically at close, so that a broken
// transfer never leaves a torn .meta, which would keep the replica from opening.
// What it must never do: record a checksum for content that was not completely received.

import { createHash } from 'node:crypto';
import { join } from 'node:path';

import { StorageError } from '../core/errors.js';
import { SECTOR_BYTES, alignUp } from '../core/units.js';
import type { Disk, DiskFile } from '../disk/disk.js';
import { PIECE_BYTES_MAX, STAGED_FILE_BYTES_MAX } from './constants.js';
import { IntervalSet } from './interval-set.js';
import { PieceBuffer, punchHole } from './piece-buffer.js';
import type { Interval } from './query.js';

/** Takes the body of one writeData. Exactly one of finish and abandon ends it. */
export interface BodySink {
  /** The chunk is copied before push returns. The caller checks the total length. */
  push(chunk: Uint8Array): void;
  /** Resolves when the bytes are in the file. @throws NO_SPACE, IO_ERROR. */
  finish(): Promise<void>;
  /** The body broke off: waits for what was already submitted and frees the memory. */
  abandon(): Promise<void>;
}

export interface ReceivedFile {
  readonly sizeBytes: number;
  /** True when every byte of the file was written, punched or compared. */
  readonly isComplete: boolean;
  punch(interval: Interval): Promise<void>;
  write(interval: Interval, signal: AbortSignal): Promise<BodySink>;
  /** Base64 SHA-512, or null when the interval is not exactly one extent. */
  checksum(interval: Interval, signal: AbortSignal): Promise<string | null>;
  /** Makes content and directory entry durable. @throws INVALID_STATE for an incomplete .meta. */
  commit(): Promise<void>;
  /** Ends without a commit. */
  discard(): Promise<void>;
}

export interface ReceivedFileOptions {
  readonly disk: Disk;
  readonly directory: string;
  readonly fileName: string;
  readonly sizeBytes: number;
  readonly isDirect: boolean;
}

/** @throws NOT_ALIGNED, REQUEST_TOO_LARGE, NO_SPACE, IO_ERROR. */
export async function openReceivedFile(options: ReceivedFileOptions): Promise<ReceivedFile> {
  const { sizeBytes, isDirect } = options;
  if (!isDirect && sizeBytes <= STAGED_FILE_BYTES_MAX) return await StagedFile.open(options);
  if (sizeBytes % SECTOR_BYTES !== 0) {
    const message = `file size ${sizeBytes} is not a multiple of ${SECTOR_BYTES}`;
    throw new StorageError('NOT_ALIGNED', message, { sizeBytes });
  }
  return await ImageFile.open(options);
}

/** @throws OUT_OF_RANGE. A tail interval may end at the file's last whole sector. */
function checkInside(interval: Interval, sizeBytes: number): void {
  if (interval.endOffset > alignUp(sizeBytes, SECTOR_BYTES)) {
    const message = `interval ends at ${interval.endOffset}, beyond the file's ${sizeBytes} bytes`;
    throw new StorageError('OUT_OF_RANGE', message, { ...interval, sizeBytes });
  }
}

/** @throws REQUEST_TOO_LARGE above PIECE_BYTES_MAX; OUT_OF_RANGE. */
function checkPiece(interval: Interval, sizeBytes: number): void {
  const lengthBytes = interval.endOffset - interval.beginOffset;
  if (lengthBytes > PIECE_BYTES_MAX) {
    const message = `interval of ${lengthBytes} bytes is above ${PIECE_BYTES_MAX}`;
    throw new StorageError('REQUEST_TOO_LARGE', message, { lengthBytes });
  }
  checkInside(interval, sizeBytes);
}

function checkAligned(interval: Interval): void {
  const { beginOffset, endOffset } = interval;
  if (beginOffset % SECTOR_BYTES !== 0 || endOffset % SECTOR_BYTES !== 0) {
    const message = `interval ${beginOffset}-${endOffset} is not aligned to ${SECTOR_BYTES}`;
    throw new StorageError('NOT_ALIGNED', message, { beginOffset, endOffset });
  }
}

class ImageFile implements ReceivedFile {
  readonly sizeBytes: number;
  private readonly disk: Disk;
  private readonly directory: string;
  private readonly file: DiskFile;
  private readonly covered = new IntervalSet();

  private constructor(options: ReceivedFileOptions, file: DiskFile) {
    this.disk = options.disk;
    this.directory = options.directory;
    this.sizeBytes = options.sizeBytes;
    this.file = file;
  }

  static async open(options: ReceivedFileOptions): Promise<ImageFile> {
    const path = join(options.directory, options.fileName);
    const file = await options.disk.open(path, {
      writable: true,
      create: true,
      direct: options.isDirect,
    });
    try {
      await file.truncate(options.sizeBytes);
    } catch (error) {
      await file.close();
      throw error;
    }
    return new ImageFile(options, file);
  }

  get isComplete(): boolean {
    return this.covered.covers({ beginOffset: 0, endOffset: this.sizeBytes });
  }

  async punch(interval: Interval): Promise<void> {
    checkInside(interval, this.sizeBytes);
    checkAligned(interval);
    const lengthBytes = interval.endOffset - interval.beginOffset;
    if (lengthBytes > 0) await punchHole(this.disk, this.file, interval.beginOffset, lengthBytes);
    this.covered.add(interval);
  }

  async write(interval: Interval, signal: AbortSignal): Promise<BodySink> {
    checkPiece(interval, this.sizeBytes);
    checkAligned(interval);
    const lengthBytes = interval.endOffset - interval.beginOffset;
    const piece = await PieceBuffer.acquire(this.disk, lengthBytes, signal);
    return new PieceSink(piece, this.file, interval, () => this.covered.add(interval));
  }

  async checksum(interval: Interval, signal: AbortSignal): Promise<string | null> {
    checkPiece(interval, this.sizeBytes);
    checkAligned(interval);
    const { beginOffset, endOffset } = interval;
    const [extent, second] = await this.file.extents(beginOffset, endOffset, 2);
    if (extent === undefined || second !== undefined) return null;
    if (extent.beginOffset > beginOffset || extent.endOffset < endOffset) return null;
    const lengthBytes = endOffset - beginOffset;
    const piece = await PieceBuffer.acquire(this.disk, lengthBytes, signal);
    try {
      await piece.read(this.file, beginOffset, lengthBytes);
      const hash = piece.hash();
      this.covered.add(interval);
      return hash;
    } finally {
      piece.release();
    }
  }

  async commit(): Promise<void> {
    await this.file.sync();
    await this.file.close();
    await this.disk.syncDirectory(this.directory);
  }

  async discard(): Promise<void> {
    await this.file.close();
  }
}

/** Writes each buffer of a piece as soon as it is full, while the rest still arrives. */
class PieceSink implements BodySink {
  private readonly piece: PieceBuffer;
  private readonly file: DiskFile;
  private readonly interval: Interval;
  private readonly onWritten: () => void;
  private readonly writes: Promise<void>[] = [];

  constructor(piece: PieceBuffer, file: DiskFile, interval: Interval, onWritten: () => void) {
    this.piece = piece;
    this.file = file;
    this.interval = interval;
    this.onWritten = onWritten;
  }

  push(chunk: Uint8Array): void {
    this.piece.append(chunk);
    // The last started buffer may still grow; all before it are full.
    while (this.writes.length < this.piece.partCount - 1) this.submitNext();
  }

  async finish(): Promise<void> {
    while (this.writes.length < this.piece.partCount) this.submitNext();
    const results = await Promise.allSettled(this.writes);
    this.piece.release();
    for (const result of results) if (result.status === 'rejected') throw result.reason;
    this.onWritten();
  }

  async abandon(): Promise<void> {
    await Promise.allSettled(this.writes);
    this.piece.release();
  }

  private submitNext(): void {
    const { beginOffset } = this.interval;
    const write = this.piece.writePart(this.file, beginOffset, this.writes.length);
    write.catch(() => undefined); // finish and abandon look at the outcome later
    this.writes.push(write);
  }
}

class StagedFile implements ReceivedFile {
  readonly sizeBytes: number;
  private readonly disk: Disk;
  private readonly directory: string;
  private readonly path: string;
  private readonly content: Buffer;
  /** Bytes that came from the file as it was; only they can be compared. */
  private readonly existingBytes: number;
  private readonly covered = new IntervalSet();

  private constructor(options: ReceivedFileOptions, existing: Buffer) {
    this.disk = options.disk;
    this.directory = options.directory;
    this.path = join(options.directory, options.fileName);
    this.sizeBytes = options.sizeBytes;
    this.content = Buffer.alloc(options.sizeBytes);
    this.existingBytes = existing.copy(this.content);
  }

  static async open(options: ReceivedFileOptions): Promise<StagedFile> {
    const path = join(options.directory, options.fileName);
    let existing: Buffer = Buffer.alloc(0);
    try {
      existing = await options.disk.readFile(path, STAGED_FILE_BYTES_MAX);
    } catch (error) {
      // Too large an old file is simply replaced, without comparing.
      const code = error instanceof StorageError ? error.code : null;
      if (code !== 'NOT_FOUND' && code !== 'LIMIT_EXCEEDED') throw error;
    }
    return new StagedFile(options, existing);
  }

  get isComplete(): boolean {
    return this.covered.covers({ beginOffset: 0, endOffset: this.sizeBytes });
  }

  async punch(interval: Interval): Promise<void> {
    checkInside(interval, this.sizeBytes);
    this.content.fill(0, interval.beginOffset, Math.min(interval.endOffset, this.sizeBytes));
    this.covered.add(interval);
  }

  async write(interval: Interval): Promise<BodySink> {
    checkPiece(interval, this.sizeBytes);
    const { content, covered } = this;
    let at = interval.beginOffset;
    return {
      push(chunk: Uint8Array): void {
        content.set(chunk, at);
        at += chunk.length;
      },
      async finish(): Promise<void> {
        covered.add({ beginOffset: interval.beginOffset, endOffset: at });
      },
      async abandon(): Promise<void> {
        // Nothing is outside this object before commit.
      },
    };
  }

  async checksum(interval: Interval): Promise<string | null> {
    checkPiece(interval, this.sizeBytes);
    const endOffset = Math.min(interval.endOffset, this.sizeBytes);
    if (interval.beginOffset >= endOffset || endOffset > this.existingBytes) return null;
    this.covered.add({ beginOffset: interval.beginOffset, endOffset });
    const bytes = this.content.subarray(interval.beginOffset, endOffset);
    return createHash('sha512').update(bytes).digest('base64');
  }

  async commit(): Promise<void> {
    if (!this.isComplete) {
      throw new StorageError('INVALID_STATE', `${this.path} was not completely received`);
    }
    const temporary = `${this.path}.tmp`;
    await this.disk.writeFile(temporary, this.content);
    await this.disk.rename(temporary, this.path);
    await this.disk.syncDirectory(this.directory);
  }

  async discard(): Promise<void> {
    // Nothing was written.
  }
}

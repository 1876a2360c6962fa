// Reads, writes and removes `<disk>.checksum` files. A new record replaces the old one atomically;
// the content it speaks about must be durable before it is written.

import { dirname } from 'node:path';

import { StorageError } from '../core/errors.js';
import type { Disk } from '../disk/disk.js';
import {
  CHECKSUM_RECORD_BYTES_MAX,
  CHECKSUM_SUFFIX,
  CHECKSUM_TEMPORARY_SUFFIX,
  decodeChecksumRecord,
  encodeChecksumRecord,
  formatChangeTime,
} from './checksum-record.js';
import type { ChecksumRecord } from './checksum-record.js';

/** The record of a disk file, or null when there is none. @throws BAD_METADATA, IO_ERROR. */
export async function readChecksumRecord(
  disk: Disk,
  diskPath: string,
): Promise<ChecksumRecord | null> {
  try {
    const content = await disk.readFile(diskPath + CHECKSUM_SUFFIX, CHECKSUM_RECORD_BYTES_MAX);
    return decodeChecksumRecord(content.toString('utf8'));
  } catch (error) {
    if (error instanceof StorageError && error.code === 'NOT_FOUND') return null;
    throw error;
  }
}

export interface NewChecksumRecord {
  readonly method: string;
  readonly checksum: string;
  readonly changedNs: bigint;
  /** RFC 3339; left out for a record that came with a transfer. */
  readonly lastHashedAt?: string;
  readonly isSilentlyCorrupted?: boolean;
}

export async function writeChecksumRecord(
  disk: Disk,
  diskPath: string,
  record: NewChecksumRecord,
): Promise<void> {
  const text = encodeChecksumRecord({
    method: record.method,
    checksum: record.checksum,
    changeTime: formatChangeTime(record.changedNs),
    lastHashedAt: record.lastHashedAt ?? '',
    isSilentlyCorrupted: record.isSilentlyCorrupted ?? false,
  });
  const temporary = diskPath + CHECKSUM_TEMPORARY_SUFFIX;
  await disk.writeFile(temporary, Buffer.from(text));
  await disk.rename(temporary, diskPath + CHECKSUM_SUFFIX);
  await disk.syncDirectory(dirname(diskPath));
}

/** Removes the record, if there is one. */
export async function removeChecksumRecord(disk: Disk, diskPath: string): Promise<void> {
  try {
    await disk.unlink(diskPath + CHECKSUM_SUFFIX);
  } catch (error) {
    if (!(error instanceof StorageError) || error.code !== 'NOT_FOUND') throw error;
  }
}

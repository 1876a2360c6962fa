// What the layers above need of a file system: a batched queue for data and promises for control.
// The native implementation talks to the addon; the simulator implements the same interface with
// a volatile cache, torn writes and crashes, so nothing above may reach around it.

import type { Slab } from '../core/slab.js';

export const DISK_OP = {
  read: 0,
  write: 1,
  /** fdatasync: data and the metadata needed to find it are durable. */
  sync: 2,
  /** Deallocate a range, keeping the file's size. */
  punchHole: 3,
  /**
   * The range reads zero and stays (or becomes) an extent, so that it hides older layers: fallocate
   * with FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE. The caller copes with -EOPNOTSUPP.
   */
  zeroRange: 4,
} as const;
export type DiskOp = (typeof DISK_OP)[keyof typeof DISK_OP];

/**
 * One queued operation; a pooled object of the caller. The caller fills the fields, submits, and
 * gets complete() exactly once: bytes moved (short at the end of the file), 0 for the other ops,
 * or a negative errno. The native queue already retries EINTR, EAGAIN and short transfers.
 */
export interface DiskRequest {
  op: DiskOp;
  file: DiskFile;
  /** Slab offset; a multiple of 4096 for read and write. */
  bufferOffset: number;
  /** A multiple of 4096 for read and write. */
  lengthBytes: number;
  fileOffsetBytes: number;
  complete(result: number): void;
}

/** Batched asynchronous data I/O. Requests of one event-loop turn reach the kernel together. */
export interface DiskQueue {
  submit(request: DiskRequest): void;
}

/** `[beginOffset, endOffset)` of a file with any extent: written, unwritten or delayed. */
export interface FileExtent {
  readonly beginOffset: number;
  readonly endOffset: number;
}

/** An open data file. Every promise rejects with a StorageError. */
export interface DiskFile {
  readonly path: string;
  /** Index for the queue's shared arrays; meaningless to callers. */
  readonly slot: number;
  sizeBytes(): Promise<number>;
  /** st_blocks * 512. */
  allocatedBytes(): Promise<number>;
  /** Up to maxExtents extents from beginOffset on, ascending, clipped to [beginOffset, endOffset); adjacent ones merged. */
  extents(beginOffset: number, endOffset: number, maxExtents: number): Promise<FileExtent[]>;
  /** The same of extents that have space and no data: they read zero. */
  unwrittenExtents(
    beginOffset: number,
    endOffset: number,
    maxExtents: number,
  ): Promise<FileExtent[]>;
  truncate(sizeBytes: number): Promise<void>;
  /** Data and metadata to stable storage. */
  sync(): Promise<void>;
  /** Waits for what is in flight on this file. Idempotent. */
  close(): Promise<void>;
}

export interface OpenOptions {
  readonly writable: boolean;
  /** Create when missing. With exclusive: fail with ALREADY_EXISTS when present. */
  readonly create?: boolean;
  readonly exclusive?: boolean;
  /** Cut an existing file to zero length. */
  readonly truncate?: boolean;
  /** Mode of a created file; default 0o600. */
  readonly mode?: number;
  /** O_DIRECT; where the file system refuses it the open falls back to buffered I/O and says so once in the log. Default true. */
  readonly direct?: boolean;
}

export interface FileStat {
  readonly sizeBytes: number;
  readonly allocatedBytes: number;
  readonly modifiedMs: number;
  /** Nanoseconds since the epoch. */
  readonly modifiedNs: bigint;
  readonly changedNs: bigint;
  readonly isDirectory: boolean;
  /** Equal for two hard links of one file; unique within the file system. */
  readonly inode: bigint;
}

/** A file system, as much of it as replicas use. Paths are absolute. */
export interface Disk {
  readonly slab: Slab;
  readonly queue: DiskQueue;
  /** @throws NOT_FOUND, ALREADY_EXISTS, NO_SPACE, IO_ERROR. */
  open(path: string, options: OpenOptions): Promise<DiskFile>;
  /** Whole small file. @throws NOT_FOUND; LIMIT_EXCEEDED above maxBytes. */
  readFile(path: string, maxBytes: number): Promise<Buffer>;
  /** Creates or replaces a file and makes its content durable (fsync), not its directory entry. */
  writeFile(path: string, content: Uint8Array, mode?: number): Promise<void>;
  rename(from: string, to: string): Promise<void>;
  /**
   * Two files of one directory swap their names, in one step.
   * @throws NOT_FOUND; UNSUPPORTED where the file system cannot.
   */
  exchange(path: string, otherPath: string): Promise<void>;
  /** Hard link. @throws ALREADY_EXISTS. */
  link(existing: string, created: string): Promise<void>;
  /** @throws NOT_FOUND. */
  unlink(path: string): Promise<void>;
  /** One level, mode 0700. @throws ALREADY_EXISTS. */
  makeDirectory(path: string): Promise<void>;
  /** An empty directory. @throws NOT_FOUND; INVALID_STATE when not empty. */
  removeDirectory(path: string): Promise<void>;
  /** Names of entries, sorted. @throws NOT_FOUND; INVALID_ARGUMENT when it is no directory. */
  list(directory: string): Promise<string[]>;
  /** @throws NOT_FOUND. */
  stat(path: string): Promise<FileStat>;
  /** fsync of a directory: renames, links and unlinks in it are durable. */
  syncDirectory(directory: string): Promise<void>;
}

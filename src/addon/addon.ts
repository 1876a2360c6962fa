// The only loader of the native addon, and its typing. What crosses here is plain: numbers, one
// ArrayBuffer of shared memory, errno values. Failures of system calls are returned as negative
// errno values, never thrown; a thrown TypeError is a bug of the caller.

import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

export type DiskBackend = 'io_uring' | 'threads';

/** Word offsets in DiskQueue.memory (an Int32Array); see native/disk_queue.h. */
export interface DiskQueueLayout {
  /** Requests the queue holds at a time. */
  readonly slots: number;
  readonly pendingCountWord: number;
  readonly deliveredCountWord: number;
  /** List of slots to start; pendingCountWord says how many. */
  readonly pendingWord: number;
  /** Requests by slot, entryWords each: op, file, bufferOffset, lengthBytes, offset low, high. */
  readonly entriesWord: number;
  readonly entryWords: number;
  /** Finished requests, two words each: slot, result. */
  readonly completionsWord: number;
}

/**
 * Open files, each known by a number that is never reused. Results are promises of a value that
 * is not negative, or of a negative errno.
 */
export interface NativeFileTable {
  /** flags: O_* of open(2). direct: try O_DIRECT; isDirect() tells whether the file system took it. */
  open(path: string, flags: number, mode: number, direct: boolean): Promise<number>;
  isDirect(file: number): boolean;
  /** Waits for what is in flight on the file, then closes it. */
  close(file: number): Promise<number>;
  truncate(file: number, sizeBytes: number): Promise<number>;
  /** fsync, or fdatasync when dataOnly. */
  sync(file: number, dataOnly: boolean): Promise<number>;
  /** fallocate: reserves space; the size grows when the range ends beyond it. */
  allocate(file: number, offsetBytes: number, lengthBytes: number): Promise<number>;
  /** [size, allocated bytes, mtime ns, ctime ns], or a negative errno. */
  stat(file: number): Promise<BigInt64Array | number>;
  /** FIEMAP: begin and end of each extent, merged and clipped; or a negative errno. */
  extents(
    file: number,
    beginOffset: number,
    endOffset: number,
    maxExtents: number,
  ): Promise<Float64Array | number>;
  /** The same of unwritten extents only. */
  unwrittenExtents(
    file: number,
    beginOffset: number,
    endOffset: number,
    maxExtents: number,
  ): Promise<Float64Array | number>;
  /** flock(LOCK_EX | LOCK_NB): 0, or -EWOULDBLOCK when another holds it. */
  tryLock(file: number): Promise<number>;
  /** renameat2(RENAME_EXCHANGE): 0 or a negative errno. */
  exchange(path: string, otherPath: string): Promise<number>;
}

export interface NativeDiskQueue {
  readonly backend: DiskBackend;
  readonly memory: ArrayBuffer;
  /** While active the queue keeps the event loop alive. */
  setActive(active: boolean): void;
  /** Starts what is pending now instead of at the end of the event-loop turn. */
  flush(): void;
  /** Frees the kernel's and the thread pool's resources. Nothing may be in flight. */
  shutdown(): void;
}

/** What happens on a socket set's sockets; error values are errno, 0 for none. */
export interface NativeSocketEvents {
  connected(id: number, errno: number): void;
  /** peer: "ip:port", empty for unix sockets. Attach memory to it or close it. */
  accepted(listenerId: number, id: number, peer: string): void;
  /** byteCount bytes arrived: first in the connection's target, then in its receive buffer. */
  received(id: number, byteCount: number): void;
  /** The shared lists say which connections finished segments. */
  sent(): void;
  /** The socket is closed already; 0 for an orderly end. */
  closed(id: number, errno: number): void;
}

/**
 * Data sockets on the event loop. Queues and positions are shared memory; see
 * native/socket_hub.h and src/transport/connection-memory.ts. Numbers of closed sockets are reused.
 */
export interface NativeSocketSet {
  /** A connection's number, or a negative errno; events.connected follows. */
  connectTcp(ip: string, port: number): number;
  connectUnix(path: string): number;
  /** A listener's number, or a negative errno. */
  listenTcp(ip: string, port: number): number;
  listenUnix(path: string): number;
  listenerPort(listenerId: number): number;
  closeListener(listenerId: number): void;
  /** blockOffset: slab offset of the connection's block, a multiple of 64. */
  attach(id: number, blockOffset: number): void;
  /** Begins to read. */
  start(id: number): void;
  /** Reads again after the block's paused word was cleared. */
  resume(id: number): void;
  /** Closes now; no event follows. */
  close(id: number): void;
  /** Closes everything; no event follows. */
  shutdown(): void;
}

export interface NativeAddon {
  /** Page-aligned zeroed memory; pages cost nothing until touched. */
  allocateSlab(bytes: number): ArrayBuffer;
  /** Gives back memory that only the start needed; bytes of program files let go. */
  trimMemory(): number;
  readonly FileTable: new () => NativeFileTable;
  /** completed(count): the first count entries of the completion list are new. */
  readonly DiskQueue: new (
    slab: ArrayBuffer,
    files: NativeFileTable,
    backend: DiskBackend | 'auto',
    completed: (count: number) => void,
  ) => NativeDiskQueue;
  readonly diskQueueLayout: DiskQueueLayout;
  /** The slab holds the shared lists at listsOffset. bufferBytes: the sockets' own buffers. */
  readonly SocketSet: new (
    slab: ArrayBuffer,
    listsOffset: number,
    socketsMax: number,
    bufferBytes: number,
    events: NativeSocketEvents,
  ) => NativeSocketSet;
}

function loadAddon(): NativeAddon {
  const built = new URL('../../../build/Release/longhorn.node', import.meta.url);
  const path = process.env['LONGHORN_ADDON_PATH'] ?? fileURLToPath(built);
  try {
    return createRequire(import.meta.url)(path) as NativeAddon;
  } catch (error) {
    throw new Error(`the native addon does not load (npx node-gyp rebuild builds it): ${path}`, {
      cause: error,
    });
  }
}

export const addon: NativeAddon = loadAddon();

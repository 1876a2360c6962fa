// What differs between the two servers of the data protocol: a replica's data server and the
// engine's `socket` frontend.

import type { StorageError } from '../core/errors.js';

/** Decides which connections may still reach the device. Asked for every request: no allocation. */
export interface SessionFence {
  /** Pass of a new connection, which has not said whose it is. */
  newPass(): number;
  /** Pass of a connection of the engine with this generation. */
  passOf(generation: number): number;
  /** Null while the pass is good. @param generation 0 until the connection said one. */
  refusal(pass: number, generation: number): StorageError | null;
}

export interface FrameServerPolicy {
  /** Answer to a ping: null when healthy. */
  ping(): StorageError | null;
  /** Frame type (FRAME_TYPE.error or noSpace) and text that tell a peer of this error. */
  errorType(error: StorageError): number;
  errorText(error: StorageError): string;
  /** A replica clips unmaps to its size; the engine refuses them. */
  readonly clipsUnmap: boolean;
  /** Extension frames are answered; otherwise they are ignored like any unknown type. */
  readonly extensions: boolean;
  /** Without one every connection is served. */
  readonly fence?: SessionFence;
}

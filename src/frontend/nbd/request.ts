// One NBD request from its header to the moment its reply has left, or one part of a large one.
// Pooled by its session: nothing is allocated per request once the pool has grown.

import { BLOCK_OP, BlockRequest, type BlockOp } from '../../core/block-device.js';
import type { StorageError } from '../../core/errors.js';
import { NO_BUFFER } from '../../core/slab.js';
import { NBD_ERROR, type NbdError } from '../../wire/nbd/constants.js';

export class NbdRequest extends BlockRequest {
  /** Names this object in Connection.send(); never 0. */
  readonly token: number;
  command = 0;
  commandFlags = 0;
  cookieHigh = 0;
  cookieLow = 0;
  /** Size of the buffer at bufferOffset as counted against the connection's share. */
  bufferBytes = 0;
  /** The device works on it, so its buffer may not be given back. */
  isSubmitted = false;
  /** Set before the device is asked when the request will be answered with it. */
  refusal: NbdError = NBD_ERROR.none;
  /** A flush follows the operation, for FUA of what is no single write. */
  flushAfter = false;

  /** The request that this one is a part of. */
  whole: NbdRequest | null = null;
  /** What follows is for requests that are split. */
  partOp: BlockOp = BLOCK_OP.read;
  partBytesMax = 0;
  partsMax = 0;
  /** Where the next part begins, and the end of the last one. */
  nextOffset = 0;
  endOffset = 0;
  /** Parts begun and not done. */
  partsPending = 0;
  /** Parts begun whose memory is still in use; includes replies that have not left. */
  partsHeld = 0;
  isAdvancing = false;
  /** False while payload of a split write is still to come from the client. */
  isFed = true;
  partError: StorageError | null = null;
  /** Nothing more will be sent for this request. */
  isReplied = false;
  /** The header of a simple READ reply is out: an error can no longer be told. */
  isReplyBegun = false;

  constructor(token: number) {
    super();
    this.token = token;
    this.bufferOffset = NO_BUFFER;
  }

  /** Prepares to run as parts of at most partBytesMax, partsMax of them together. */
  split(partOp: BlockOp, partBytesMax: number, partsMax: number): void {
    this.partOp = partOp;
    this.partBytesMax = partBytesMax;
    this.partsMax = partsMax;
    this.nextOffset = this.offsetBytes;
    this.endOffset = this.offsetBytes + this.lengthBytes;
  }

  get hasPartsToBegin(): boolean {
    return this.partError === null && this.nextOffset < this.endOffset;
  }

  get mayBeginPart(): boolean {
    return this.hasPartsToBegin && this.partsHeld < this.partsMax;
  }

  /** Makes a used object as good as new, apart from what every request sets. */
  reset(): void {
    this.fua = false;
    this.resultBytes = 0;
    this.refusal = NBD_ERROR.none;
    this.flushAfter = false;
    this.whole = null;
    this.partsPending = 0;
    this.partsHeld = 0;
    this.partError = null;
    this.isFed = true;
    this.isReplied = false;
    this.isReplyBegun = false;
  }
}

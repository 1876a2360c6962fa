// Puts replies of the transmission phase on a connection: a header in the connection's own
// header memory, then the payload straight from its slab buffer. The last segment carries the
// request's token, so its memory and its place are given back only when the reply has left.

import { StorageError } from '../../core/errors.js';
import { NO_BUFFER } from '../../core/slab.js';
import type { Connection } from '../../transport/connection.js';
import {
  NBD_ALLOCATION_CONTEXT_ID,
  NBD_CHUNK_CONTEXT_BYTES,
  NBD_CHUNK_ERROR_BYTES,
  NBD_CHUNK_HEADER_BYTES,
  NBD_CHUNK_OFFSET_BYTES,
  NBD_COMMAND,
  NBD_ERROR,
  NBD_SIMPLE_REPLY_BYTES,
  type NbdError,
} from '../../wire/nbd/constants.js';
import {
  writeBlockStatusHeader,
  writeDataChunkHeader,
  writeErrorChunk,
  writeSimpleReply,
} from '../../wire/nbd/encoder.js';
import type { NbdRequest } from './request.js';

const DATA_HEADER_BYTES = NBD_CHUNK_HEADER_BYTES + NBD_CHUNK_OFFSET_BYTES;
const STATUS_HEADER_BYTES = NBD_CHUNK_HEADER_BYTES + NBD_CHUNK_CONTEXT_BYTES;
const ERROR_CHUNK_BYTES = NBD_CHUNK_HEADER_BYTES + NBD_CHUNK_ERROR_BYTES;
/** Segments whose memory belongs to nobody. */
const NO_TOKEN = 0;

export class ReplyWriter {
  private readonly connection: Connection;
  private readonly view: DataView;
  private readonly structuredReplies: boolean;

  constructor(connection: Connection, structuredReplies: boolean) {
    this.connection = connection;
    this.view = connection.slab.view;
    this.structuredReplies = structuredReplies;
  }

  /** The whole reply to anything but a read or a block status. */
  simple(request: NbdRequest, error: NbdError): void {
    const position = this.header(NBD_SIMPLE_REPLY_BYTES);
    if (position === NO_BUFFER) return;
    writeSimpleReply(this.view, position, error, request.cookieHigh, request.cookieLow);
    this.connection.send(position, NBD_SIMPLE_REPLY_BYTES, request.token);
  }

  error(request: NbdRequest, error: NbdError): void {
    const { command } = request;
    const isChunked = command === NBD_COMMAND.read || command === NBD_COMMAND.blockStatus;
    if (!this.structuredReplies || !isChunked) {
      this.simple(request, error);
      return;
    }
    const position = this.header(ERROR_CHUNK_BYTES);
    if (position === NO_BUFFER) return;
    writeErrorChunk(this.view, position, error, request.cookieHigh, request.cookieLow);
    this.connection.send(position, ERROR_CHUNK_BYTES, request.token);
  }

  /** The whole reply to a read that was not split. */
  read(request: NbdRequest): void {
    if (this.structuredReplies) this.dataChunk(request, request, true);
    else this.simpleData(request, request);
  }

  /** A part of a read: a chunk of its own, or the next bytes of the one simple reply. */
  readPart(whole: NbdRequest, part: NbdRequest, isLast: boolean): void {
    if (this.structuredReplies) {
      this.dataChunk(whole, part, isLast);
    } else if (whole.isReplyBegun) {
      this.connection.send(part.bufferOffset, part.lengthBytes, part.token);
    } else {
      whole.isReplyBegun = true;
      this.simpleData(whole, part);
    }
  }

  /** descriptorBytes of descriptors lie at the start of the request's buffer. */
  blockStatus(request: NbdRequest, descriptorBytes: number): void {
    const position = this.header(STATUS_HEADER_BYTES);
    if (position === NO_BUFFER) return;
    const { cookieHigh, cookieLow } = request;
    const contextId = NBD_ALLOCATION_CONTEXT_ID;
    writeBlockStatusHeader(this.view, position, cookieHigh, cookieLow, contextId, descriptorBytes);
    this.connection.send(position, STATUS_HEADER_BYTES, NO_TOKEN);
    this.connection.send(request.bufferOffset, descriptorBytes, request.token);
  }

  private simpleData(whole: NbdRequest, data: NbdRequest): void {
    const position = this.header(NBD_SIMPLE_REPLY_BYTES);
    if (position === NO_BUFFER) return;
    writeSimpleReply(this.view, position, NBD_ERROR.none, whole.cookieHigh, whole.cookieLow);
    this.connection.send(position, NBD_SIMPLE_REPLY_BYTES, NO_TOKEN);
    this.connection.send(data.bufferOffset, data.lengthBytes, data.token);
  }

  private dataChunk(whole: NbdRequest, data: NbdRequest, isLast: boolean): void {
    const position = this.header(DATA_HEADER_BYTES);
    if (position === NO_BUFFER) return;
    writeDataChunkHeader(
      this.view,
      position,
      isLast,
      whole.cookieHigh,
      whole.cookieLow,
      data.offsetBytes,
      data.lengthBytes,
    );
    this.connection.send(position, DATA_HEADER_BYTES, NO_TOKEN);
    this.connection.send(data.bufferOffset, data.lengthBytes, data.token);
  }

  /**
   * The limits on requests and parts in flight leave room for all their headers, so this fails
   * only if those limits are wrong; then the connection is broken rather than a reply lost.
   */
  private header(lengthBytes: number): number {
    const position = this.connection.header(lengthBytes);
    if (position === NO_BUFFER) {
      this.connection.destroy(new StorageError('LIMIT_EXCEEDED', 'no room for a reply header'));
    }
    return position;
  }
}

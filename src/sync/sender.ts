// Sends a raw layer file or a merged snapshot to a receiver: holes as holes, data in pieces, several in flight. When
// the destination existed only what differs by SHA-512 is sent, and with a current hash record on
// both sides nothing at all. After a failed transfer close carries no checksum: the receiver would
// record it for content it does not have. Source: sparse-tools sparse/client.go, data-protocol §5.

import type { Clock } from '../core/clock.js';
import { StorageError, toStorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import type { Disk } from '../disk/disk.js';
import { BandwidthLimit } from './bandwidth.js';
import { decodeChecksumRecord } from './checksum-record.js';
import { CLOSE_TIMEOUT_MS, REQUEST_TIMEOUT_MS, SENDER_WORKERS } from './constants.js';
import type { LayoutPiece } from './layout.js';
import { Pace } from './pace.js';
import { PieceBuffer } from './piece-buffer.js';
import { intervalParameters } from './query.js';
import type { Interval } from './query.js';
import { openFileSource } from './send-source.js';
import type { SendSource } from './send-source.js';
import { SyncClient } from './sync-client.js';

export interface SendOptions {
  readonly disk: Disk;
  readonly clock: Clock;
  readonly log: Logger;
  readonly host: string;
  readonly port: number;
  /** Compare hash records first and skip the transfer when they agree. */
  readonly isFastSync: boolean;
  /** Limit of one request; default REQUEST_TIMEOUT_MS. */
  readonly timeoutMs?: number;
  readonly bytesPerSecondMax?: number;
  /** Shared by all that one process sends; its own by default. */
  readonly pace?: Pace;
  /** Bytes of data that are now at the destination. */
  readonly onProgress?: (bytes: number) => void;
  readonly signal?: AbortSignal;
}

export interface SendFileOptions extends SendOptions {
  /** Absolute path of the file. */
  readonly sourcePath: string;
}

export interface SendResult {
  readonly sizeBytes: number;
  /** Data of the source, sent or found equal. */
  readonly dataBytes: number;
  readonly sentBytes: number;
  readonly wasSkipped: boolean;
}

const NO_CHECKSUM = { checksum: '', checksumMethod: '' };

/**
 * Sends one raw file. @param sourcePath absolute.
 * @throws NOT_FOUND for the source; PEER_ERROR, NO_SPACE, CONNECTION_LOST, TIMEOUT, CANCELLED.
 */
export async function sendFile(options: SendFileOptions): Promise<SendResult> {
  return await sendSource(options, await openFileSource(options.disk, options.sourcePath));
}

/** Sends an open source and closes it. */
export async function sendSource(options: SendOptions, source: SendSource): Promise<SendResult> {
  const sending = new Sending(options, source);
  try {
    return await sending.run();
  } finally {
    sending.destroy();
    await source.close();
  }
}

class Sending {
  private readonly options: SendOptions;
  private readonly source: SendSource;
  private readonly client: SyncClient;
  private readonly closer: SyncClient;
  private readonly failure = new AbortController();
  private readonly limit: BandwidthLimit | null;
  private readonly pace: Pace;
  private readonly onAbort = (): void => this.failure.abort(this.options.signal?.reason);
  private mustCompare = false;
  private dataBytes = 0;
  private sentBytes = 0;

  constructor(options: SendOptions, source: SendSource) {
    this.options = options;
    this.source = source;
    const { clock, host, port, bytesPerSecondMax } = options;
    const timeoutMs = options.timeoutMs ?? REQUEST_TIMEOUT_MS;
    this.client = new SyncClient({ clock, host, port, timeoutMs, signal: this.failure.signal });
    // Close is sent after a failure too, so it does not listen to the failure's signal.
    const signal = new AbortController().signal;
    this.closer = new SyncClient({ clock, host, port, timeoutMs: CLOSE_TIMEOUT_MS, signal });
    const hasLimit = bytesPerSecondMax !== undefined && bytesPerSecondMax > 0;
    this.pace = options.pace ?? new Pace(clock);
    this.limit = hasLimit ? new BandwidthLimit(clock, bytesPerSecondMax) : null;
    if (options.signal?.aborted === true) this.onAbort();
    options.signal?.addEventListener('abort', this.onAbort, { once: true });
  }

  destroy(): void {
    this.options.signal?.removeEventListener('abort', this.onAbort);
    this.client.destroy();
    this.closer.destroy();
  }

  async run(): Promise<SendResult> {
    const { sizeBytes } = this.source;
    let wasSkipped = false;
    try {
      wasSkipped = this.options.isFastSync && (await this.isAlreadyThere());
      if (!wasSkipped) await this.transfer();
    } catch (error) {
      await this.closeAfterFailure();
      throw toStorageError(error);
    }
    await this.client.call({
      action: 'close',
      parameters: this.closeParameters(),
      timeoutMs: CLOSE_TIMEOUT_MS,
    });
    const { dataBytes, sentBytes } = this;
    return { sizeBytes, dataBytes, sentBytes, wasSkipped };
  }

  private closeParameters(): Record<string, string> {
    const { recorded } = this.source;
    if (recorded === null || this.source.isPartial) return NO_CHECKSUM;
    return { checksum: recorded.checksum, checksumMethod: recorded.method };
  }

  /** Frees the receiver's port; the failure itself is what the caller hears of. */
  private async closeAfterFailure(): Promise<void> {
    try {
      await this.closer.attempt({ action: 'close', parameters: NO_CHECKSUM });
    } catch (error) {
      this.options.log.info('sender.close.failed', { source: this.source.name, error });
    }
  }

  private async isAlreadyThere(): Promise<boolean> {
    const { recorded } = this.source;
    if (recorded === null) return false;
    let body: Buffer;
    try {
      body = await this.client.callWhenUp({ action: 'getRecordedMetadata' });
      const theirs = decodeChecksumRecord(body.toString('utf8'));
      return theirs.checksum === recorded.checksum && !theirs.isSilentlyCorrupted;
    } catch (error) {
      // No record, an outdated or an unreadable one: all mean that the file must be compared.
      if (error instanceof StorageError && error.kind !== 'unavailable') return false;
      if (error instanceof StorageError && error.code === 'PEER_ERROR') return false;
      throw error;
    }
  }

  private async transfer(): Promise<void> {
    const { sizeBytes, isDirect } = this.source;
    const body = await this.client.callWhenUp({
      action: 'open',
      parameters: {
        ...intervalParameters({ beginOffset: 0, endOffset: sizeBytes }),
        directIO: String(isDirect),
      },
    });
    this.mustCompare = body.toString('utf8') === 'true';
    const pieces = this.source.pieces();
    const workers = Array.from({ length: SENDER_WORKERS }, () => this.work(pieces));
    // All of them end before close is sent: a late write must not meet a closed file.
    const outcomes = await Promise.allSettled(workers);
    if (this.failure.signal.aborted) throw toStorageError(this.failure.signal.reason, 'CANCELLED');
    for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
  }

  private async work(pieces: AsyncGenerator<LayoutPiece>): Promise<void> {
    try {
      while (!this.failure.signal.aborted) {
        const next = await pieces.next();
        if (next.done === true) return;
        if (next.value.isHole) {
          const parameters = intervalParameters(next.value);
          await this.client.call({ action: 'sendHole', parameters });
        } else {
          await this.sendData(next.value);
        }
      }
    } catch (error) {
      this.failure.abort(error); // the first failure stops the others
      throw error;
    }
  }

  private async sendData(interval: Interval): Promise<void> {
    const { pace } = this;
    await pace.enter();
    let pauseMs = 0;
    try {
      pauseMs = await this.sendPiece(interval);
      // Whoever pauses keeps its place, so that nobody else takes it.
      await pace.pause(pauseMs, this.failure.signal);
    } finally {
      pace.leave();
    }
  }

  /** Milliseconds to pause afterwards. */
  private async sendPiece(interval: Interval): Promise<number> {
    const { disk, clock } = this.options;
    const lengthBytes = interval.endOffset - interval.beginOffset;
    const piece = await PieceBuffer.acquire(disk, lengthBytes, this.failure.signal);
    const beganMs = clock.nowMs();
    try {
      const reading = this.source.read(piece, interval.beginOffset, lengthBytes);
      const theirs = this.mustCompare ? await this.remoteHash(interval, reading) : null;
      await reading;
      const isEqual = theirs !== null && theirs === piece.hash();
      if (!isEqual) await this.writeData(interval, piece);
      this.dataBytes += piece.lengthBytes;
      this.options.onProgress?.(piece.lengthBytes);
      // Waiting for the limit would look like waiting for the disk.
      if (this.limit !== null) return 0;
      return this.pace.arrived(isEqual ? 'equal' : 'sent', lengthBytes, beganMs);
    } finally {
      piece.release();
    }
  }

  /** Base64 of the destination's hash or null. The disk still fills our piece when this fails. */
  private async remoteHash(interval: Interval, reading: Promise<void>): Promise<string | null> {
    const parameters = intervalParameters(interval);
    try {
      const body = await this.client.call({ action: 'getChecksum', parameters });
      const value: unknown = JSON.parse(body.toString('utf8'));
      return typeof value === 'string' ? value : null;
    } catch (error) {
      await reading.catch(() => undefined);
      if (error instanceof SyntaxError) return null;
      throw error;
    }
  }

  private async writeData(interval: Interval, piece: PieceBuffer): Promise<void> {
    await this.limit?.take(piece.lengthBytes, this.failure.signal);
    const parameters = intervalParameters(interval);
    await this.client.call({ action: 'writeData', parameters, body: piece.views() });
    this.sentBytes += piece.lengthBytes;
  }
}

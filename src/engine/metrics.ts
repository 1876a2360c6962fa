// Per-second I/O counters of a volume. The current bucket fills, the last full one is reported.
// Unmaps, flushes and failed requests are not counted, as in Longhorn.

export interface MetricsSnapshot {
  readonly readBytes: number;
  readonly writeBytes: number;
  readonly readCount: number;
  readonly writeCount: number;
  /** Averages in nanoseconds. */
  readonly readLatencyNs: number;
  readonly writeLatencyNs: number;
}

class Direction {
  bytes = 0;
  count = 0;
  latencyMs = 0;

  add(bytes: number, latencyMs: number): void {
    this.bytes += bytes;
    this.count++;
    this.latencyMs += latencyMs;
  }

  clear(): void {
    this.bytes = 0;
    this.count = 0;
    this.latencyMs = 0;
  }

  latencyNs(): number {
    return this.count === 0 ? 0 : Math.round((this.latencyMs * 1e6) / this.count);
  }
}

const EMPTY: MetricsSnapshot = {
  readBytes: 0,
  writeBytes: 0,
  readCount: 0,
  writeCount: 0,
  readLatencyNs: 0,
  writeLatencyNs: 0,
};

const BUCKET_MS = 1000;

/** Buckets roll when they are touched or read, so an idle volume needs no timer. */
export class VolumeMetrics {
  private readonly reads = new Direction();
  private readonly writes = new Direction();
  private bucketStartMs = 0;
  private last: MetricsSnapshot = EMPTY;

  countRead(bytes: number, startedMs: number, nowMs: number): void {
    this.roll(nowMs);
    this.reads.add(bytes, nowMs - startedMs);
  }

  countWrite(bytes: number, startedMs: number, nowMs: number): void {
    this.roll(nowMs);
    this.writes.add(bytes, nowMs - startedMs);
  }

  /** The last complete second. */
  lastSecond(nowMs: number): MetricsSnapshot {
    this.roll(nowMs);
    return this.last;
  }

  private roll(nowMs: number): void {
    const elapsedMs = nowMs - this.bucketStartMs;
    if (elapsedMs < BUCKET_MS) return;
    this.last = elapsedMs >= 2 * BUCKET_MS ? EMPTY : this.full();
    this.reads.clear();
    this.writes.clear();
    this.bucketStartMs = nowMs - (elapsedMs % BUCKET_MS);
  }

  private full(): MetricsSnapshot {
    return {
      readBytes: this.reads.bytes,
      writeBytes: this.writes.bytes,
      readCount: this.reads.count,
      writeCount: this.writes.count,
      readLatencyNs: this.reads.latencyNs(),
      writeLatencyNs: this.writes.latencyNs(),
    };
  }
}

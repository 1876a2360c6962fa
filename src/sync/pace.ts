// How many pieces one sync agent has under way: as many as keep the copy going and no more, so that
// clients of the volume do not queue behind it. A piece that takes much longer than the quickest of
// its kind has met somebody else's work (or too many of its own kind): then fewer go at once, and in
// the end one at a time with pauses. It never stops, so a rebuild always ends.

import { sleepMs } from '../core/clock.js';
import type { Clock } from '../core/clock.js';
import { PIECES_AT_ONCE_MAX } from './constants.js';

const PIECES_AT_ONCE_FIRST = 4;
/** Of the quickest: a piece that takes longer has waited for others. */
const SLOW_FACTOR = 2.5;
const DECREASE = 0.7;
/** The quickest is slowly forgotten: a disk may really have become slower. */
const FORGET = 1.001;
const PAUSE_MS_MAX = 20;

/** What is compared with what: pieces that take the same steps and are about as long. */
export type PieceKind = 'sent' | 'equal';

export class Pace {
  private readonly clock: Clock;
  private readonly quickestMs = new Map<string, number>();
  private readonly waiting: (() => void)[] = [];
  private allowed = PIECES_AT_ONCE_FIRST;
  private underWay = 0;
  /** Pieces that began before are no reason to slow down again. */
  private slowedAtMs = 0;

  constructor(clock: Clock) {
    this.clock = clock;
  }

  get piecesAtOnce(): number {
    return Math.floor(this.allowed);
  }

  /** Resolves when another piece may go; the caller must call leave, whatever happens. */
  async enter(): Promise<void> {
    while (this.underWay >= this.piecesAtOnce) {
      await new Promise<void>((resolve) => this.waiting.push(resolve));
    }
    this.underWay++;
  }

  leave(): void {
    this.underWay--;
    this.wake();
  }

  /**
   * A piece that began then has arrived.
   * @returns milliseconds to pause before the next one.
   */
  arrived(kind: PieceKind, lengthBytes: number, beganMs: number): number {
    const nowMs = this.clock.nowMs();
    const tookMs = nowMs - beganMs;
    const key = `${kind} ${Math.ceil(Math.log2(lengthBytes))}`;
    const quickest = this.quickestMs.get(key) ?? Number.POSITIVE_INFINITY;
    this.quickestMs.set(key, Math.min(tookMs, quickest * FORGET));
    if (tookMs <= quickest * SLOW_FACTOR) {
      this.allowed = Math.min(PIECES_AT_ONCE_MAX, this.allowed + 1 / this.allowed);
      this.wake();
      return 0;
    }
    const wasAlone = this.allowed === 1;
    if (beganMs >= this.slowedAtMs) {
      this.allowed = Math.max(1, this.allowed * DECREASE);
      this.slowedAtMs = nowMs;
    }
    return wasAlone ? Math.min(tookMs, PAUSE_MS_MAX) : 0;
  }

  async pause(delayMs: number, signal: AbortSignal): Promise<void> {
    if (delayMs > 0) await sleepMs(this.clock, delayMs, signal);
  }

  private wake(): void {
    for (let free = this.piecesAtOnce - this.underWay; free > 0; free--) this.waiting.shift()?.();
  }
}

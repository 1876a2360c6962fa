// Progress of a rebuild on stderr: one line that changes on a terminal, plain lines elsewhere.

import type { RebuildProgress, RebuildStep } from '../client/rebuild.js';

/** Elsewhere than on a terminal a line every so many percent. */
const PLAIN_PERCENT_STEP = 10;
const CLEAR_LINE = '\r\u001b[K';

const STEP_TEXT = {
  check: 'checking volume and replica',
  start: 'starting the volume',
  expand: 'expanding it to the size of the volume',
  mark: 'marking it as incomplete',
  join: 'taking a snapshot and letting it receive writes',
  prepare: 'listing the files to copy',
  sync: 'copying',
  reload: 'opening the copied files',
  verify: 'comparing it with the others',
  finish: 'done',
} as const satisfies Record<RebuildStep, string>;

export interface ProgressStream {
  readonly isTTY?: boolean;
  write(text: string): unknown;
}

export class ProgressPrinter {
  private readonly stream: ProgressStream;
  private readonly address: string;
  private readonly isQuiet: boolean;
  private shownPercent = -1;
  private hasOpenLine = false;

  constructor(stream: ProgressStream, address: string, isQuiet: boolean) {
    this.stream = stream;
    this.address = address;
    this.isQuiet = isQuiet;
  }

  show(progress: RebuildProgress): void {
    if (this.isQuiet) return;
    const text = `replica ${this.address}: ${stepText(progress)}`;
    if (this.stream.isTTY === true) {
      this.stream.write(`${CLEAR_LINE}${text}`);
      this.hasOpenLine = true;
    } else if (this.isWorthALine(progress)) {
      this.stream.write(`${text}\n`);
    }
  }

  /** The next output begins on a line of its own. */
  end(): void {
    if (this.hasOpenLine) this.stream.write('\n');
    this.hasOpenLine = false;
  }

  private isWorthALine({ percent }: RebuildProgress): boolean {
    if (percent === null) return true;
    const isNews =
      this.shownPercent < 0 ||
      percent >= this.shownPercent + PLAIN_PERCENT_STEP ||
      (percent === 100 && this.shownPercent < 100);
    if (isNews) this.shownPercent = percent;
    return isNews;
  }
}

function stepText({ step, percent, sources }: RebuildProgress): string {
  const amount = percent === null ? '' : ` ${percent}%`;
  const from = sources.length === 0 ? '' : ` from ${sources.join(', ')}`;
  return `${STEP_TEXT[step]}${amount}${from}`;
}

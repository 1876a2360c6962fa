// What happened, in order. Everything enters a hash, so that two runs of one seed can be compared;
// the text is kept only when somebody wants to read it.

export class Trace {
  hash = 0x811c9dc5;
  eventCount = 0;
  /** Null: nobody reads it. */
  readonly lines: string[] | null;
  private readonly nowUs: () => number;

  constructor(nowUs: () => number, keepsText: boolean) {
    this.nowUs = nowUs;
    this.lines = keepsText ? [] : null;
  }

  /** Something small and frequent: only its numbers count. */
  mix(value: number): void {
    this.eventCount++;
    this.hash = Math.imul(this.hash ^ value, 0x0100_0193) >>> 0;
  }

  note(text: string): void {
    for (let i = 0; i < text.length; i++) this.mix(text.charCodeAt(i));
    if (this.lines === null) return;
    const ms = (this.nowUs() / 1000).toFixed(3).padStart(12);
    this.lines.push(`${ms}  ${text}`);
  }

  get isKept(): boolean {
    return this.lines !== null;
  }
}

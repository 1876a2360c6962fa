// What a run of the benchmark produces: one sample for each round, cell and target, and one for
// each start of a process. Plain data as it stands in the JSON file, and the few sums made of it.

export interface Sample {
  readonly round: number;
  readonly iops: number;
  readonly bytesPerSecond: number;
  /** From submission to completion as the client saw it. */
  readonly meanMicros: number;
  readonly p99Micros: number;
  /** CPU time of each server process for each request, in microseconds. */
  readonly cpuMicrosPerIo: Readonly<Record<string, number>>;
  /** Share of the machine (0 to 1) that neither the servers nor fio used: others disturb. */
  readonly othersCpuShare: number;
}

/** All rounds of one job against one target. */
export interface CellResult {
  readonly cell: string;
  readonly target: string;
  readonly samples: readonly Sample[];
}

/** One process just after its start, volume attached, one client having come and gone. */
export interface StartSample {
  readonly round: number;
  readonly target: string;
  readonly process: string;
  /** From spawning it to its first answer; null for what another process started. */
  readonly startMs: number | null;
  readonly anonymousBytes: number;
  readonly rssBytes: number;
}

export interface Machine {
  readonly cpu: string;
  readonly cores: number;
  readonly memoryBytes: number;
  readonly kernel: string;
  readonly node: string;
  readonly fio: string;
  readonly qemuNbd: string;
  /** File system and device under the measured files. */
  readonly disk: string;
  readonly loadAverageBefore: number;
}

export interface Settings {
  readonly sizeBytes: number;
  readonly rounds: number;
  /** Each cell runs this long, or this many requests; one of the two is null. */
  readonly seconds: number | null;
  readonly requests: number | null;
  readonly idleSeconds: number;
  /** Between engine and replica: tcp or unix. */
  readonly dataProtocol: string;
}

export interface BenchResults {
  readonly startedAt: string;
  readonly machine: Machine;
  readonly settings: Settings;
  readonly cells: readonly CellResult[];
  readonly starts: readonly StartSample[];
}

/** Of an even number, half-way between the two in the middle. @returns NaN for none. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const upper = sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
  const lower = sorted[Math.floor((sorted.length - 1) / 2)] ?? Number.NaN;
  return (lower + upper) / 2;
}

export function best(values: readonly number[]): number {
  return values.length === 0 ? Number.NaN : Math.max(...values);
}

export function samplesOf(results: BenchResults, target: string, cell: string): readonly Sample[] {
  const found = results.cells.find((entry) => entry.target === target && entry.cell === cell);
  return found?.samples ?? [];
}

export interface Ratio {
  /** Median of the ratios within each round: drift of the disk from minute to minute cancels. */
  readonly median: number;
  /** Best round of one to best round of the other. */
  readonly best: number;
}

/** How many times the baseline's requests a second a target reached; null when not measured. */
export function ratioTo(
  results: BenchResults,
  target: string,
  baseline: string,
  cell: string,
): Ratio | null {
  const ours = samplesOf(results, target, cell);
  const theirs = samplesOf(results, baseline, cell);
  const within = ours.flatMap(({ round, iops }) => {
    const other = theirs.find((sample) => sample.round === round);
    return other === undefined ? [] : [iops / other.iops];
  });
  if (within.length === 0) return null;
  const iopsOf = (samples: readonly Sample[]): number[] => samples.map(({ iops }) => iops);
  return { median: median(within), best: best(iopsOf(ours)) / best(iopsOf(theirs)) };
}

/** CPU time for each request of all server processes of a target together. */
export function totalCpu(sample: Sample): number {
  return Object.values(sample.cpuMicrosPerIo).reduce((sum, micros) => sum + micros, 0);
}

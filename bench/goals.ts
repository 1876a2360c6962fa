// The figures that the project promises to reach, as data, and whether a run reached them. They are
// ratios within one run wherever the disk has a say: absolute figures differ from machine to machine.

import { MIB } from '../src/core/units.js';
import {
  type BenchResults,
  median,
  ratioTo,
  samplesOf,
  type StartSample,
  totalCpu,
} from './results.js';

interface RatioGoal {
  readonly kind: 'ratio';
  readonly target: string;
  readonly cell: string;
  readonly atLeast: number;
}

interface CpuGoal {
  readonly kind: 'cpu';
  readonly target: string;
  readonly cell: string;
  readonly atMostMicros: number;
}

interface StartGoal {
  readonly kind: 'anonymous' | 'rss' | 'start';
  readonly process: 'engine' | 'replica';
  /** MiB of memory, or milliseconds. */
  readonly atMost: number;
}

export type Goal = RatioGoal | CpuGoal | StartGoal;

export interface GoalOutcome {
  readonly measure: string;
  readonly wanted: string;
  readonly reached: string;
  /** Null when this run did not measure it. */
  readonly isMet: boolean | null;
}

export const BASELINE = 'qemu-nbd';

function ratio(target: string, cell: string, atLeast: number): RatioGoal {
  return { kind: 'ratio', target, cell, atLeast };
}

function ofStart(kind: StartGoal['kind'], atMost: number): StartGoal[] {
  return [
    { kind, process: 'engine', atMost },
    { kind, process: 'replica', atMost },
  ];
}

/** Names of targets and cells are those of targets.ts and cells.ts. */
export const GOALS: readonly Goal[] = [
  ratio('1 replica', 'randread-qd32', 0.9),
  ratio('1 replica', 'randwrite-qd32', 0.9),
  ratio('1 replica', 'randread-qd1', 0.65),
  ratio('1 replica', 'randwrite-qd1', 0.65),
  ratio('1 replica', 'read-1m-qd4', 0.8),
  ratio('1 replica', 'write-1m-qd4', 0.8),
  ratio('3 replicas', 'randread-qd32', 0.8),
  ratio('3 replicas', 'randwrite-qd32', 0.3),
  ratio('3 replicas', 'write-1m-qd4', 0.35),
  { kind: 'cpu', target: '1 replica', cell: 'randread-qd32', atMostMicros: 35 },
  { kind: 'cpu', target: '1 replica', cell: 'randwrite-qd32', atMostMicros: 35 },
  ...ofStart('anonymous', 12),
  ...ofStart('rss', 50),
  ...ofStart('start', 300),
];

function judgeRatio(goal: RatioGoal, results: BenchResults): GoalOutcome {
  const found = ratioTo(results, goal.target, BASELINE, goal.cell);
  return {
    measure: `${goal.target}, ${goal.cell}`,
    wanted: `≥ ${goal.atLeast} of ${BASELINE}`,
    reached:
      found === null ? '' : `${found.median.toFixed(2)} (best rounds ${found.best.toFixed(2)})`,
    isMet: found === null ? null : found.median >= goal.atLeast,
  };
}

function judgeCpu(goal: CpuGoal, results: BenchResults): GoalOutcome {
  const micros = median(samplesOf(results, goal.target, goal.cell).map(totalCpu));
  const baseline = median(samplesOf(results, BASELINE, goal.cell).map(totalCpu));
  const beside = Number.isNaN(baseline) ? '' : ` (${BASELINE} ${baseline.toFixed(1)})`;
  return {
    measure: `CPU a request, ${goal.target}, ${goal.cell}`,
    wanted: `≤ ${goal.atMostMicros} µs`,
    reached: Number.isNaN(micros) ? '' : `${micros.toFixed(1)} µs${beside}`,
    isMet: Number.isNaN(micros) ? null : micros <= goal.atMostMicros,
  };
}

const START_MEASURES: Record<
  StartGoal['kind'],
  { text: string; unit: string; of: (sample: StartSample) => number | null }
> = {
  anonymous: {
    text: 'private memory when idle',
    unit: 'MiB',
    of: ({ anonymousBytes }) => anonymousBytes / MIB,
  },
  rss: { text: 'RSS when idle', unit: 'MiB', of: ({ rssBytes }) => rssBytes / MIB },
  start: { text: 'start to serving', unit: 'ms', of: ({ startMs }) => startMs },
};

/** Of the volume with one replica: with three, they start beside each other on few cores. */
function judgeStart(goal: StartGoal, results: BenchResults): GoalOutcome {
  const { text, unit, of } = START_MEASURES[goal.kind];
  const values = results.starts
    .filter(({ target, process }) => target === '1 replica' && process.startsWith(goal.process))
    .map(of)
    .filter((value) => value !== null);
  const reached = median(values);
  return {
    measure: `${goal.process}, ${text}`,
    wanted: `≤ ${goal.atMost} ${unit}`,
    reached: Number.isNaN(reached) ? '' : `${reached.toFixed(1)} ${unit}`,
    isMet: Number.isNaN(reached) ? null : reached <= goal.atMost,
  };
}

function judge(goal: Goal, results: BenchResults): GoalOutcome {
  if (goal.kind === 'ratio') return judgeRatio(goal, results);
  return goal.kind === 'cpu' ? judgeCpu(goal, results) : judgeStart(goal, results);
}

export function judgeGoals(results: BenchResults): GoalOutcome[] {
  return GOALS.map((goal) => judge(goal, results));
}

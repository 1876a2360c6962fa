// One run of the benchmark: make the files, start everything, measure every cell with all targets
// in turn, round after round. Within a round the targets follow each other within each cell, so
// that a disk that is slow for a minute is slow for all of them.

import { setTimeout as sleep } from 'node:timers/promises';
import { MIB } from '../src/core/units.js';
import type { Cell } from './cells.js';
import { type FioJob, type FioLength, type FioOutcome, runFio } from './fio.js';
import { childrenOf, cpuMicros, machineBusyMicros, memoryOf } from './process-stats.js';
import type { CellResult, Sample, Settings, StartSample } from './results.js';
import { assertFullyWritten, type Target } from './targets.js';

/** The files grow in turns of this much, so that they lie alike on the disk. */
const FILL_SLICE_BYTES = 256 * MIB;
const FILL_JOB: FioJob = { rw: 'write', blockBytes: MIB, depth: 4 };
/** Code that has just started is still being compiled: both ways run a moment before it counts. */
const WARM_UP_JOBS: readonly FioJob[] = [
  { rw: 'randread', blockBytes: 4096, depth: 32 },
  { rw: 'randwrite', blockBytes: 4096, depth: 32 },
];
const ONE_READ: FioJob = { rw: 'randread', blockBytes: 4096, depth: 1 };

export interface Plan {
  readonly settings: Settings;
  readonly cells: readonly Cell[];
  readonly targets: readonly Target[];
  readonly cores: number;
  readonly signal: AbortSignal;
  readonly progress: (text: string) => void;
}

/** Writes all data files whole, all through the server that will serve them. */
async function fill({ targets, settings, signal, progress }: Plan): Promise<void> {
  const { sizeBytes } = settings;
  const filled: Target[] = [];
  for (const target of targets) {
    await target.start(signal);
    if ((await target.dataFiles()).length > 0) filled.push(target);
  }
  for (let offsetBytes = 0; offsetBytes < sizeBytes; offsetBytes += FILL_SLICE_BYTES) {
    progress(`writing the files: ${offsetBytes / MIB} of ${sizeBytes / MIB} MiB`);
    const slice = { offsetBytes, sizeBytes: Math.min(FILL_SLICE_BYTES, sizeBytes - offsetBytes) };
    for (const { place } of filled) {
      await runFio({ job: FILL_JOB, place, ...slice, length: 'once' }, signal);
    }
  }
  for (const target of filled) {
    for (const path of await target.dataFiles()) await assertFullyWritten(path, sizeBytes);
  }
  for (const target of targets) await target.stop();
}

/** Starts a target alone on full files, lets one client come and go, waits, looks at the memory. */
async function measureStart(target: Target, round: number, plan: Plan): Promise<StartSample[]> {
  const { settings, signal } = plan;
  await target.start(signal);
  const { sizeBytes, idleSeconds } = settings;
  const read = { job: ONE_READ, place: target.place, sizeBytes, length: { requests: 1 } };
  await runFio(read, signal);
  await sleep(idleSeconds * 1000, undefined, { signal });
  const samples: StartSample[] = [];
  for (const { name, pid, startMs } of target.processes) {
    const found = { round, target: target.name, process: name, startMs };
    samples.push({ ...found, ...(await memoryOf(pid)) });
    for (const child of await childrenOf(pid)) {
      const helper = { round, target: target.name, process: `sync agent of ${name}` };
      samples.push({ ...helper, startMs: null, ...(await memoryOf(child)) });
    }
  }
  await target.stop();
  return samples;
}

interface Before {
  readonly cpu: readonly number[];
  readonly busy: number;
  readonly atMs: number;
}

async function look(target: Target): Promise<Before> {
  const cpu = await Promise.all(target.processes.map(({ pid }) => cpuMicros(pid)));
  return { cpu, busy: await machineBusyMicros(), atMs: performance.now() };
}

function toSample(
  round: number,
  target: Target,
  outcome: FioOutcome,
  [before, after]: readonly [Before, Before],
  cores: number,
): Sample {
  const used = target.processes.map((_, i) => (after.cpu[i] ?? 0) - (before.cpu[i] ?? 0));
  const ours = used.reduce((sum, micros) => sum + micros, outcome.cpuMicros);
  const available = (after.atMs - before.atMs) * 1000 * cores;
  const perIo = target.processes.map(({ name }, i): [string, number] => {
    return [name, (used[i] ?? 0) / outcome.requests];
  });
  const { iops, bytesPerSecond, meanMicros, p99Micros } = outcome;
  return {
    ...{ round, iops, bytesPerSecond, meanMicros, p99Micros },
    cpuMicrosPerIo: Object.fromEntries(perIo),
    othersCpuShare: Math.max(0, (after.busy - before.busy - ours) / available),
  };
}

function cellLength({ seconds, requests }: Settings): FioLength {
  return seconds === null ? { requests: requests ?? 1 } : { seconds };
}

async function warmUp({ targets, settings, signal, progress }: Plan): Promise<void> {
  progress('warming up');
  const { sizeBytes } = settings;
  for (const { place } of targets) {
    for (const job of WARM_UP_JOBS) {
      await runFio({ job, place, sizeBytes, length: cellLength(settings) }, signal);
    }
  }
}

async function measureCell(cell: Cell, target: Target, round: number, plan: Plan): Promise<Sample> {
  const { settings, signal, cores } = plan;
  const length = cellLength(settings);
  const { sizeBytes } = settings;
  const before = await look(target);
  const outcome = await runFio({ job: cell.job, place: target.place, sizeBytes, length }, signal);
  return toSample(round, target, outcome, [before, await look(target)], cores);
}

/** Starting with another one each round: whoever comes first after a change of job is no one's lot. */
function rotated<Item>(items: readonly Item[], by: number): Item[] {
  const from = by % items.length;
  return [...items.slice(from), ...items.slice(0, from)];
}

async function measureCells(plan: Plan): Promise<CellResult[]> {
  const { cells, targets, settings, signal, progress } = plan;
  const results = targets.flatMap((target) =>
    cells.map((cell) => ({ cell: cell.name, target: target.name, samples: [] as Sample[] })),
  );
  for (const target of targets) await target.start(signal);
  await warmUp(plan);
  for (let round = 1; round <= settings.rounds; round++) {
    for (const cell of cells) {
      progress(`round ${round} of ${settings.rounds}: ${cell.name}`);
      for (const target of rotated(targets, round - 1)) {
        const result = results.find((r) => r.cell === cell.name && r.target === target.name);
        result?.samples.push(await measureCell(cell, target, round, plan));
      }
    }
  }
  for (const target of targets) await target.stop();
  return results;
}

/** @throws when anything fails; the caller ends processes and removes files then too. */
export async function runSuite(
  plan: Plan,
): Promise<{ starts: StartSample[]; cells: CellResult[] }> {
  await fill(plan);
  const starts: StartSample[] = [];
  for (let round = 1; round <= plan.settings.rounds; round++) {
    plan.progress(`round ${round} of ${plan.settings.rounds}: start and idle memory`);
    for (const target of plan.targets) starts.push(...(await measureStart(target, round, plan)));
  }
  return { starts, cells: await measureCells(plan) };
}

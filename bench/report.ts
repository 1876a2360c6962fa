// Turns the results of a run into tables, as plain text or as Markdown. Pure: no clocks, no files.

import { GIB, MIB } from '../src/core/units.js';
import { BASELINE, type GoalOutcome, judgeGoals } from './goals.js';
import {
  type BenchResults,
  type CellResult,
  best,
  median,
  type Ratio,
  ratioTo,
  type Sample,
} from './results.js';

export type Format = 'text' | 'markdown';
type Row = readonly string[];

const RAW = 'raw file';
/** Above this the median of a cell is marked: somebody else used the machine meanwhile. */
const DISTURBED_SHARE = 0.15;

function renderTable(header: Row, rows: readonly Row[], format: Format): string {
  if (format === 'markdown') {
    const line = (cells: Row): string => `| ${cells.join(' | ')} |`;
    return [line(header), line(header.map(() => '---')), ...rows.map(line)].join('\n');
  }
  const widths = header.map((_, i) => Math.max(...[header, ...rows].map((r) => r[i]?.length ?? 0)));
  const line = (cells: Row): string =>
    cells
      .map((cell, i) => cell.padEnd(widths[i] ?? 0))
      .join('  ')
      .trimEnd();
  return [
    line(header),
    widths.map((width) => '-'.repeat(width)).join('  '),
    ...rows.map(line),
  ].join('\n');
}

function heading(text: string, format: Format): string {
  return format === 'markdown' ? `### ${text}\n` : `${text}\n`;
}

/** Requests a second for small blocks, megabytes a second for large ones. */
function throughput(cell: string): { unit: string; of: (sample: Sample) => number } {
  return cell.includes('-1m-')
    ? { unit: 'MB/s', of: ({ bytesPerSecond }) => bytesPerSecond / 1e6 }
    : { unit: 'IOPS', of: ({ iops }) => iops };
}

function showRatio(ratio: Ratio | null): string {
  return ratio === null ? '' : `${ratio.median.toFixed(2)} (${ratio.best.toFixed(2)})`;
}

function showCpu(samples: readonly Sample[]): string {
  const names = Object.keys(samples[0]?.cpuMicrosPerIo ?? {});
  return names
    .map((name) => {
      const micros = median(
        samples.map(({ cpuMicrosPerIo }) => cpuMicrosPerIo[name] ?? Number.NaN),
      );
      return `${name} ${micros.toFixed(1)}`;
    })
    .join(', ');
}

function cellRow({ cell, target, samples }: CellResult, results: BenchResults): Row {
  const { unit, of } = throughput(cell);
  const values = samples.map(of);
  const isDisturbed = median(samples.map((s) => s.othersCpuShare)) > DISTURBED_SHARE;
  return [
    cell,
    target + (isDisturbed ? ' *' : ''),
    `${best(values).toFixed(0)} ${unit}`,
    `${median(values).toFixed(0)} ${unit}`,
    showRatio(target === BASELINE ? null : ratioTo(results, target, BASELINE, cell)),
    showRatio(target === RAW ? null : ratioTo(results, target, RAW, cell)),
    median(samples.map((sample) => sample.meanMicros)).toFixed(0),
    median(samples.map((sample) => sample.p99Micros)).toFixed(0),
    showCpu(samples),
  ];
}

function cellTable(results: BenchResults, format: Format): string {
  const header = ['job', 'target', 'best', 'median', `of ${BASELINE}`, `of ${RAW}`];
  header.push('mean µs', 'p99 µs', 'CPU µs a request');
  const names = [...new Set(results.cells.map(({ cell }) => cell))];
  const rows = names.flatMap((name) =>
    results.cells.filter(({ cell }) => cell === name).map((entry) => cellRow(entry, results)),
  );
  return renderTable(header, rows, format);
}

function startTable(results: BenchResults, format: Format): string {
  const header = ['target', 'process', 'start ms', 'private MiB', 'RSS MiB'];
  const keys = [...new Set(results.starts.map((s) => `${s.target}\0${s.process}`))];
  const rows = keys.map((key) => {
    const [target = '', process = ''] = key.split('\0');
    const found = results.starts.filter((s) => s.target === target && s.process === process);
    const starts = found.map(({ startMs }) => startMs).filter((ms) => ms !== null);
    const mib = (bytes: number[]): string => (median(bytes) / MIB).toFixed(1);
    return [
      target,
      process,
      starts.length === 0 ? '' : median(starts).toFixed(0),
      mib(found.map(({ anonymousBytes }) => anonymousBytes)),
      mib(found.map(({ rssBytes }) => rssBytes)),
    ];
  });
  return renderTable(header, rows, format);
}

function verdict({ isMet }: GoalOutcome): string {
  if (isMet === null) return 'not measured';
  return isMet ? 'met' : 'NOT MET';
}

function goalTable(results: BenchResults, format: Format): string {
  const rows = judgeGoals(results).map((goal) => [
    goal.measure,
    goal.wanted,
    goal.reached,
    verdict(goal),
  ]);
  return renderTable(['measure', 'wanted', 'reached', ''], rows, format);
}

/** What was run on what, in a few lines. */
function facts({ machine, settings, startedAt }: BenchResults): string[] {
  const length =
    settings.seconds === null
      ? `${settings.requests} requests a cell (too few to mean anything)`
      : `${settings.seconds} s a cell`;
  return [
    `${machine.cores} × ${machine.cpu}, ${(machine.memoryBytes / GIB).toFixed(0)} GiB, ` +
      `Linux ${machine.kernel}, ${machine.disk}`,
    `Node ${machine.node}, ${machine.fio}, ${machine.qemuNbd}`,
    `${startedAt}, load before ${machine.loadAverageBefore.toFixed(1)}; ` +
      `files of ${settings.sizeBytes / MIB} MiB, ${settings.rounds} rounds, ${length}, ` +
      `engine to replica over ${settings.dataProtocol}`,
  ];
}

const LEGEND = [
  'Ratios: median of the ratios within each round, in parentheses best round to best round.',
  'Latency and CPU: medians. * others used more than 15 % of the machine meanwhile.',
];

export function renderReport(results: BenchResults, format: Format): string {
  const lines = (items: readonly string[]): string =>
    items.map((item) => (format === 'markdown' ? `- ${item}` : item)).join('\n');
  const parts = [lines(facts(results))];
  if (results.cells.length > 0) {
    parts.push(`${heading('Through the client', format)}\n${cellTable(results, format)}`);
    parts.push(lines(LEGEND));
  }
  if (results.starts.length > 0) {
    const title = `Start, and memory ${results.settings.idleSeconds} s later`;
    parts.push(`${heading(title, format)}\n${startTable(results, format)}`);
  }
  parts.push(`${heading('Goals', format)}\n${goalTable(results, format)}`);
  return `${parts.join('\n\n')}\n`;
}

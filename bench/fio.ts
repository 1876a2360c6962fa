// Runs fio once and reads its JSON report. fio takes a run time below one second as "for ever" and
// may print text before the JSON; it runs under `timeout`, so that it ends whatever happens to us.

import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

export interface FioJob {
  readonly rw: 'randread' | 'randwrite' | 'randrw' | 'read' | 'write';
  readonly blockBytes: number;
  readonly depth: number;
}

/** How long a job runs: a time of at least one second, a number of requests, or the range once. */
export type FioLength = { readonly seconds: number } | { readonly requests: number } | 'once';

export interface FioRun {
  readonly job: FioJob;
  /** Arguments that say which engine of fio to use on what. */
  readonly place: readonly string[];
  readonly offsetBytes?: number;
  readonly sizeBytes: number;
  readonly length: FioLength;
}

export interface FioOutcome {
  readonly requests: number;
  readonly iops: number;
  readonly bytesPerSecond: number;
  readonly meanMicros: number;
  readonly p99Micros: number;
  /** The slowest request. */
  readonly maxMicros: number;
  /** CPU time of fio itself. */
  readonly cpuMicros: number;
}

interface FioDirection {
  readonly total_ios: number;
  readonly iops: number;
  readonly bw_bytes: number;
  /** Milliseconds. */
  readonly runtime: number;
  readonly lat_ns: { readonly mean: number };
  readonly clat_ns: {
    readonly max?: number;
    readonly percentile?: Readonly<Record<string, number>>;
  };
}

interface FioReport {
  readonly jobs: readonly {
    readonly error: number;
    readonly usr_cpu: number;
    readonly sys_cpu: number;
    readonly read: FioDirection;
    readonly write: FioDirection;
  }[];
}

const GRACE_SECONDS = 30;
const UNTIMED_SECONDS = 600;
const OUTPUT_BYTES_MAX = 16 * 1024 * 1024;

export function onNbd(socketPath: string, exportName: string): string[] {
  return ['--ioengine=nbd', `--uri=nbd+unix:///${exportName}?socket=${socketPath}`];
}

export function onFile(path: string): string[] {
  return ['--ioengine=io_uring', '--direct=1', `--filename=${path}`];
}

/** @throws RangeError for a run time that fio would take as for ever. */
export function fioArguments({ job, place, offsetBytes = 0, sizeBytes, length }: FioRun): string[] {
  const args = ['--name=bench', ...place, `--rw=${job.rw}`, `--bs=${job.blockBytes}`];
  args.push(`--iodepth=${job.depth}`, `--offset=${offsetBytes}`, `--size=${sizeBytes}`);
  args.push('--norandommap', '--randrepeat=0', '--output-format=json');
  if (length === 'once') return args;
  if ('requests' in length) return [...args, `--number_ios=${length.requests}`];
  if (!(length.seconds >= 1)) throw new RangeError('fio needs a run time of at least a second');
  return [...args, '--time_based', `--runtime=${length.seconds}`];
}

/** Of randrw the writes. @throws when the report is no report, or tells of an error or of no requests at all. */
export function parseFioReport(output: string, rw: FioJob['rw']): FioOutcome {
  const begin = output.indexOf('{');
  if (begin < 0) throw new Error(`fio printed no report: ${output.slice(0, 500)}`);
  const [job] = (JSON.parse(output.slice(begin)) as FioReport).jobs;
  const direction = rw.endsWith('read') ? job?.read : job?.write;
  if (job === undefined || direction === undefined) throw new Error('fio reported no job');
  if (job.error !== 0) throw new Error(`fio ended with errno ${job.error}`);
  if (direction.total_ios === 0) throw new Error('fio did no requests');
  return {
    requests: direction.total_ios,
    iops: direction.iops,
    bytesPerSecond: direction.bw_bytes,
    meanMicros: direction.lat_ns.mean / 1000,
    p99Micros: (direction.clat_ns.percentile?.['99.000000'] ?? Number.NaN) / 1000,
    maxMicros: (direction.clat_ns.max ?? Number.NaN) / 1000,
    cpuMicros: ((job.usr_cpu + job.sys_cpu) / 100) * direction.runtime * 1000,
  };
}

/** @throws with what fio said when it fails; AbortError when the signal ends it. */
export async function runFio(run: FioRun, signal: AbortSignal): Promise<FioOutcome> {
  const limit =
    run.length !== 'once' && 'seconds' in run.length
      ? run.length.seconds + GRACE_SECONDS
      : UNTIMED_SECONDS;
  const args = ['--kill-after=5', String(limit), 'fio', ...fioArguments(run)];
  try {
    const options = { signal, maxBuffer: OUTPUT_BYTES_MAX };
    const { stdout } = await promisify(execFile)('timeout', args, options);
    return parseFioReport(stdout, run.job.rw);
  } catch (error) {
    signal.throwIfAborted();
    const said = (error as { stderr?: string }).stderr?.trim() ?? '';
    throw new Error(`fio ${fioArguments(run).join(' ')}: ${said}`, { cause: error });
  }
}

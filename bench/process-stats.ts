// What the kernel says of processes: CPU time, memory, children, and how busy the machine is as a
// whole. Linux only; reads /proc and never changes anything.

import { readFile } from 'node:fs/promises';

/** Linux reports CPU time to user space in hundredths of a second on every architecture. */
const MICROS_PER_TICK = 10_000;
const BYTES_PER_KB = 1024;
/** Positions after the command's closing parenthesis in /proc/PID/stat. Source: proc(5). */
const STAT_USER = 11;
const STAT_SYSTEM = 12;
/** Columns of the first line of /proc/stat that count as busy: not idle, iowait nor steal. */
const BUSY_COLUMNS = [1, 2, 3, 6, 7];

export interface Memory {
  /** Anonymous pages: what this process costs beyond files that others share. */
  readonly anonymousBytes: number;
  readonly rssBytes: number;
}

/** User and system time of a process with all its threads. @throws when there is no such process. */
export async function cpuMicros(pid: number): Promise<number> {
  return parseCpuMicros(await readFile(`/proc/${pid}/stat`, 'utf8'));
}

/** The name in parentheses may hold spaces and parentheses itself. */
export function parseCpuMicros(stat: string): number {
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[STAT_USER]) + Number(fields[STAT_SYSTEM])) * MICROS_PER_TICK;
}

export async function memoryOf(pid: number): Promise<Memory> {
  return parseMemory(await readFile(`/proc/${pid}/smaps_rollup`, 'utf8'));
}

export function parseMemory(rollup: string): Memory {
  const bytes = (name: string): number => {
    const match = new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(rollup);
    return Number(match?.[1]) * BYTES_PER_KB;
  };
  return { anonymousBytes: bytes('Anonymous'), rssBytes: bytes('Rss') };
}

export async function childrenOf(pid: number): Promise<number[]> {
  const text = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8').catch(() => '');
  return text.split(' ').filter(Boolean).map(Number);
}

/** CPU time that all processors together have spent busy since the machine started. */
export async function machineBusyMicros(): Promise<number> {
  const [total = ''] = (await readFile('/proc/stat', 'utf8')).split('\n');
  const columns = total.split(/\s+/).map(Number);
  return BUSY_COLUMNS.reduce((sum, column) => sum + (columns[column] ?? 0), 0) * MICROS_PER_TICK;
}

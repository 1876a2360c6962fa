// What a run needs and what it ran on: programs that must be there, room on the disk, and the facts
// without which its figures mean nothing.

import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { cpus, loadavg, release, totalmem } from 'node:os';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { GIB } from '../src/core/units.js';
import type { Machine } from './results.js';

const PROGRAM = fileURLToPath(new URL('../bundle/app/main.js', import.meta.url));
/** For file system metadata, logs and everyone else. */
const SPARE_BYTES = GIB / 2;

async function output(program: string, args: readonly string[]): Promise<string | null> {
  try {
    return (await promisify(execFile)(program, [...args])).stdout.trim();
  } catch {
    return null;
  }
}

async function firstLine(program: string): Promise<string> {
  return (await output(program, ['--version']))?.split('\n')[0] ?? 'missing';
}

/** What is missing, each with what to do about it. */
export async function missingPrograms(): Promise<string[]> {
  const missing: string[] = [];
  if ((await output('fio', ['--version'])) === null) {
    missing.push('fio is missing: apt-get install fio');
  } else if ((await output('fio', ['--enghelp=nbd'])) === null) {
    missing.push('fio was built without its nbd engine: use the package of Debian 12 or later');
  }
  if ((await output('qemu-nbd', ['--version'])) === null) {
    missing.push('qemu-nbd is missing: apt-get install qemu-utils');
  }
  if (!existsSync(PROGRAM)) missing.push('the program is not built: node scripts/setup.mjs');
  return missing;
}

/** @throws when the directory's disk has too little room. */
export async function assertRoom(directory: string, neededBytes: number): Promise<void> {
  const { bavail, bsize } = await statfs(directory);
  const free = bavail * bsize;
  if (free >= neededBytes + SPARE_BYTES) return;
  const gib = (bytes: number): string => `${(bytes / GIB).toFixed(1)} GiB`;
  throw new Error(
    `${directory} has ${gib(free)} free; ${gib(neededBytes + SPARE_BYTES)} are needed: ` +
      'choose another with --dir, or less with --size',
  );
}

export async function describeMachine(directory: string): Promise<Machine> {
  const columns = ['--output=fstype,source', directory];
  const disk = (await output('df', columns))?.split('\n')[1] ?? 'unknown';
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    cores: cpus().length,
    memoryBytes: totalmem(),
    kernel: release(),
    node: process.version,
    fio: await firstLine('fio'),
    qemuNbd: await firstLine('qemu-nbd'),
    disk: disk.trim().split(/\s+/).join(' on '),
    loadAverageBefore: loadavg()[0] ?? Number.NaN,
  };
}

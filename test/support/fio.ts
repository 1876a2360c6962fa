// fio as a client of a volume: starts it on an NBD export and tells how it ended.

import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';

/** Why fio cannot be used here, for `skip`; false when it can. */
export function fioRefusal(): string | false {
  try {
    const engines = execFileSync('fio', ['--enghelp'], { encoding: 'utf8' });
    return /\bnbd\b/.test(engines) ? false : 'this fio has no nbd engine';
  } catch {
    return 'fio is not installed';
  }
}

export interface FioResult {
  readonly code: number | null;
  /** Both streams, for messages of failed tests. */
  readonly output: string;
}

export interface FioRun {
  readonly finished: Promise<FioResult>;
  kill(): void;
}

/** @param flags such as '--rw=randwrite'; queue depth 32 unless they say another. */
export function startFio(uri: string, directory: string, flags: readonly string[]): FioRun {
  const common = ['--name=job', '--ioengine=nbd', `--uri=${uri}`, '--iodepth=32', '--thread'];
  const process = spawn('fio', [...common, '--verify_state_save=0', ...flags], { cwd: directory });
  let output = '';
  process.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
  process.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
  const finished = once(process, 'close').then(([code]) => ({ code, output }));
  return { finished, kill: () => void process.kill('SIGKILL') };
}

export function runFio(
  uri: string,
  directory: string,
  flags: readonly string[],
): Promise<FioResult> {
  return startFio(uri, directory, flags).finished;
}

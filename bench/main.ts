// `npm run bench`: how fast is a volume, beside qemu-nbd and beside the file itself, in one run?
// Prints tables and the project's goals; leaves no process and no file, however it ends.

import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { parseSizeBytes, SECTOR_BYTES } from '../src/core/units.js';
import { CELLS } from './cells.js';
import { Children } from './child.js';
import { judgeGoals } from './goals.js';
import { askQuestions, QUESTION_NAMES } from './questions.js';
import { assertRoom, describeMachine, missingPrograms } from './machine.js';
import { renderReport } from './report.js';
import type { BenchResults, Settings } from './results.js';
import { runSuite } from './suite.js';
import { createTargets, DATA_COPIES, TARGET_NAMES } from './targets.js';

const USAGE = `usage: npm run bench -- [options]
       npm run bench -- ask [NAME…] [--quick] [--dir DIR]   (${QUESTION_NAMES.join(' ')})
  --quick            small files, one round, one second a cell: under two minutes
  --rounds N         rounds (default 5; at least 3 mean something)
  --seconds N        how long each cell runs, at least 1 (default 2)
  --requests N       so many requests a cell instead of a time
  --size SIZE        of the volume and the file (default 2g)
  --idle SECONDS     wait before memory is read (default 2)
  --only TEXT        only cells whose name contains it (repeat): ${CELLS.map(({ name }) => name).join(' ')}
  --target NAME      only this target (repeat): ${TARGET_NAMES.map((name) => `'${name}'`).join(' ')}
  --data-server-protocol tcp|unix
                     between engine and replica (default tcp)
  --dir DIR          where the files go for the time of the run (default: the temporary directory)
  --json FILE        also write all samples there
  --markdown         print Markdown tables
  --from FILE        measure nothing: print the results in a file written by --json`;

class UsageError extends Error {}

function parseOptions(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        quick: { type: 'boolean', default: false },
        rounds: { type: 'string' },
        seconds: { type: 'string' },
        requests: { type: 'string' },
        size: { type: 'string' },
        idle: { type: 'string', default: '2' },
        only: { type: 'string', multiple: true, default: [''] },
        target: { type: 'string', multiple: true, default: [...TARGET_NAMES] },
        'data-server-protocol': { type: 'string', default: 'tcp' },
        dir: { type: 'string', default: tmpdir() },
        json: { type: 'string' },
        markdown: { type: 'boolean', default: false },
        from: { type: 'string' },
        help: { type: 'boolean', default: false },
      },
    });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

type Options = ReturnType<typeof parseOptions>['values'];

/** @throws UsageError below the minimum. */
function atLeast(minimum: number, text: string, name: string): number {
  const value = Number(text);
  if (value >= minimum && Number.isFinite(value)) return value;
  throw new UsageError(`--${name} must be a number from ${minimum} on, not '${text}'`);
}

function wholeAtLeast(minimum: number, text: string, name: string): number {
  if (!/^\d+$/.test(text)) throw new UsageError(`--${name} must be a whole number, not '${text}'`);
  return atLeast(minimum, text, name);
}

function settingsOf(options: Options): Settings {
  const { quick, requests } = options;
  const seconds = wholeAtLeast(1, options.seconds ?? (quick ? '1' : '2'), 'seconds');
  const sizeBytes = parseSizeBytes(options.size ?? (quick ? '256m' : '2g'));
  if (sizeBytes % SECTOR_BYTES !== 0 || sizeBytes === 0) {
    throw new UsageError(`--size must be a multiple of ${SECTOR_BYTES} bytes`);
  }
  const dataProtocol = options['data-server-protocol'];
  if (dataProtocol !== 'tcp' && dataProtocol !== 'unix') {
    throw new UsageError(`--data-server-protocol is tcp or unix, not '${dataProtocol}'`);
  }
  return {
    sizeBytes,
    rounds: wholeAtLeast(1, options.rounds ?? (quick ? '1' : '5'), 'rounds'),
    seconds: requests === undefined ? seconds : null,
    requests: requests === undefined ? null : wholeAtLeast(1, requests, 'requests'),
    idleSeconds: atLeast(0, options.idle, 'idle'),
    dataProtocol,
  };
}

/** @throws UsageError for names that select nothing. */
function select(options: Options): { cells: typeof CELLS; targetNames: Set<string> } {
  const cells = CELLS.filter(({ name }) => options.only.some((text) => name.includes(text)));
  if (cells.length === 0) throw new UsageError('--only selects no cell');
  const known: readonly string[] = TARGET_NAMES;
  const wrong = options.target.find((name) => !known.includes(name));
  if (wrong !== undefined) throw new UsageError(`there is no target '${wrong}'`);
  const targetNames = new Set(options.target);
  // The file is made by qemu-nbd.
  if (targetNames.has('raw file')) targetNames.add('qemu-nbd');
  return { cells, targetNames };
}

/** Runs the suite in a directory of its own. @throws AbortError when the signal ends it. */
async function measure(options: Options, signal: AbortSignal): Promise<BenchResults> {
  const settings = settingsOf(options);
  const { cells, targetNames } = select(options);
  const parent = resolve(options.dir);
  await assertRoom(parent, settings.sizeBytes * DATA_COPIES);
  const directory = await mkdtemp(join(parent, 'longhorn-bench-'));
  const children = new Children();
  const abandon = (): void => {
    children.killAll();
    rmSync(directory, { recursive: true, force: true });
  };
  process.once('exit', abandon);
  try {
    const machine = await describeMachine(directory);
    const { sizeBytes, dataProtocol } = settings;
    const all = createTargets({ directory, sizeBytes, children, dataProtocol });
    const targets = all.filter(({ name }) => targetNames.has(name));
    const startedAt = new Date().toISOString();
    const progress = (text: string): void => console.error(`bench: ${text}`);
    const plan = { settings, cells, targets, cores: cpus().length, signal, progress };
    return { startedAt, machine, settings, ...(await runSuite(plan)) };
  } finally {
    await children.stopAll();
    await rm(directory, { recursive: true, force: true });
    process.off('exit', abandon);
  }
}

async function resultsOf(options: Options, signal: AbortSignal): Promise<BenchResults | null> {
  if (options.from !== undefined) {
    return JSON.parse(await readFile(options.from, 'utf8')) as BenchResults;
  }
  const missing = await missingPrograms();
  if (missing.length === 0) return measure(options, signal);
  for (const text of missing) console.error(`bench: ${text}`);
  process.exitCode = 1;
  return null;
}

/** Exit codes: 0 measured (whether goals are met or not), 1 failed, 2 wrong usage, 128 + signal. */
async function main(args: readonly string[]): Promise<void> {
  const abort = new AbortController();
  for (const [name, code] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const) {
    process.on(name, () => {
      process.exitCode = code;
      abort.abort();
    });
  }
  try {
    const { values: options, positionals } = parseOptions(args);
    if (options.help) return console.log(USAGE);
    const [command, ...names] = positionals;
    if (command === 'ask') {
      const { quick } = options;
      return await askQuestions(names, resolve(options.dir), { quick, signal: abort.signal });
    }
    if (command !== undefined) throw new UsageError(`there is no command '${command}'`);
    const results = await resultsOf(options, abort.signal);
    if (results === null) return;
    console.log(renderReport(results, options.markdown ? 'markdown' : 'text'));
    if (options.json === undefined) return;
    const whole = { ...results, goals: judgeGoals(results) };
    await writeFile(options.json, `${JSON.stringify(whole, null, 2)}\n`);
  } catch (error) {
    if (abort.signal.aborted) return console.error('bench: stopped; nothing is left behind');
    if (error instanceof UsageError) console.error(`bench: ${error.message}\n${USAGE}`);
    else console.error(`bench: ${(error as Error).message}`);
    process.exitCode = error instanceof UsageError ? 2 : 1;
  }
}

await main(process.argv.slice(2));

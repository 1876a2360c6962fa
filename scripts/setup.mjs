// Brings a checkout to where it can run, and says what it does and why: Debian packages, npm
// packages, the C++ addon, the compiled program. Plain Node without npm packages, since it runs
// before there are any. Each step is skipped when its inputs have not changed since it last
// succeeded. It must never need root for anything but Debian packages, nor stop for want of a
// package that only some part needs: it reports what is missing and the caller decides.

import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { listFiles, repoRoot } from './source-files.mjs';

const NODE_MIN = [20, 19];
const STAMPS = join(repoRoot, 'node_modules/.longhorn');
const SYSTEM_PATH = [
  ...(process.env.PATH ?? '').split(':'),
  '/usr/sbin',
  '/sbin',
  '/usr/local/sbin',
];

/** Programs from Debian: the package that has each, and what wants it for what. */
const PROGRAMS = [
  { name: 'python3', debian: 'python3', for: { build: 'node-gyp runs on it' } },
  { name: 'make', debian: 'make', for: { build: 'compiles the addon' } },
  { name: 'g++', debian: 'g++', for: { build: 'compiles the addon' } },
  {
    name: 'qemu-img',
    debian: 'qemu-utils',
    for: { quickstart: 'copies the image in and reads it back', tests: 'a real NBD client' },
  },
  { name: 'qemu-nbd', debian: 'qemu-utils', for: { bench: 'the server we compare with' } },
  {
    name: 'nbdcopy',
    debian: 'libnbd-bin',
    for: { quickstart: 'copies the image in', tests: 'a real NBD client' },
  },
  {
    name: 'mke2fs',
    debian: 'e2fsprogs',
    for: {
      quickstart: 'makes the ext4 image',
      tests: 'makes ext4 images',
      crash: 'makes ext4 images',
    },
  },
  {
    name: 'fio',
    debian: 'fio',
    for: {
      quickstart: 'writes while a replica dies',
      tests: 'verifies writes under faults',
      bench: 'measures',
    },
  },
  { name: 'zstd', debian: 'zstd', for: { tests: 'unpacks recorded replica directories' } },
  { name: 'nbd-client', debian: 'nbd-client', for: { tests: 'a real NBD client' } },
  {
    name: 'qemu-storage-daemon',
    debian: 'qemu-system-common',
    for: {
      tests: 'a disk that loses power',
      crash: 'a disk that loses power',
    },
  },
];

class SetupError extends Error {}

function say(text) {
  process.stdout.write(`setup: ${text}\n`);
}

function findProgram(name) {
  return SYSTEM_PATH.some((directory) => directory !== '' && existsSync(join(directory, name)));
}

/** Runs a command, its output hidden unless it fails. @throws SetupError with the output's end. */
function run(command, args, { env = {}, what = command } = {}) {
  return new Promise((resolvePromise, reject) => {
    const child = spawn(command, args, {
      cwd: repoRoot,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let output = '';
    const collect = (chunk) => (output = (output + chunk).slice(-64 * 1024));
    child.stdout.on('data', collect);
    child.stderr.on('data', collect);
    child.on('error', (error) => reject(new SetupError(`${what}: ${error.message}`)));
    child.on('close', (code) => {
      if (code === 0) resolvePromise(output);
      else
        reject(
          new SetupError(`${what} failed:\n${output.trimEnd().split('\n').slice(-80).join('\n')}`),
        );
    });
  });
}

/** Runs a step with a line before and its time after. */
async function step(title, work) {
  process.stdout.write(`setup: ${title} … `);
  const begin = performance.now();
  try {
    const result = await work();
    process.stdout.write(`${((performance.now() - begin) / 1000).toFixed(1)} s\n`);
    return result;
  } catch (error) {
    process.stdout.write('failed\n');
    throw error;
  }
}

function hashOf(paths, extra) {
  const hash = createHash('sha256').update(JSON.stringify(extra));
  for (const path of paths) hash.update(`\0${path}\0`).update(readFileSync(join(repoRoot, path)));
  return hash.digest('hex');
}

/** Does work when its inputs or outputs differ from its last success. @returns whether it worked. */
async function whenChanged(name, title, { inputs, extra, outputs }, work) {
  const stamp = join(STAMPS, name);
  const hash = hashOf(inputs, extra);
  const isCurrent =
    existsSync(stamp) &&
    readFileSync(stamp, 'utf8') === hash &&
    outputs.every((path) => {
      const stat = statSync(join(repoRoot, path), { throwIfNoEntry: false });
      return stat !== undefined && stat.mtimeMs <= statSync(stamp).mtimeMs;
    });
  if (isCurrent) return false;
  await step(title, work);
  mkdirSync(STAMPS, { recursive: true });
  writeFileSync(stamp, hash);
  return true;
}

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major < NODE_MIN[0] || (major === NODE_MIN[0] && minor < NODE_MIN[1])) {
    throw new SetupError(
      `Node ${NODE_MIN.join('.')} or later is needed; this is ${process.version}`,
    );
  }
}

/** Installs missing Debian packages when that is possible. @returns programs still missing. */
async function installDebianPackages(purposes, mayInstall) {
  const wanted = PROGRAMS.filter((program) => purposes.some((purpose) => purpose in program.for));
  const missing = wanted.filter((program) => !findProgram(program.name));
  if (missing.length === 0) return [];
  const packages = [...new Set(missing.map((program) => program.debian))];
  for (const program of missing) {
    const reasons = purposes.filter((p) => p in program.for).map((p) => `${p}: ${program.for[p]}`);
    say(`${program.name} is missing (${reasons.join('; ')})`);
  }
  if (!mayInstall || process.getuid() !== 0 || !findProgram('apt-get')) {
    say(`to install them, run as root: apt-get install ${packages.join(' ')}`);
    return missing.map((program) => program.name);
  }
  const install = ['install', '-y', '--no-install-recommends', ...packages];
  const options = { env: { DEBIAN_FRONTEND: 'noninteractive' }, what: 'apt-get' };
  try {
    await step(`Debian packages by apt: ${packages.join(' ')}`, async () => {
      // A fresh machine has no package lists; a used one usually has good ones.
      await run('apt-get', install, options).catch(async () => {
        await run('apt-get', ['update'], options);
        await run('apt-get', install, options);
      });
    });
  } catch (error) {
    say(error.message);
  }
  return missing.map((program) => program.name).filter((name) => !findProgram(name));
}

/** True when node_modules holds what the lock file asks for; npm's own record of it is compared. */
function npmPackagesAreCurrent() {
  const read = (path) => JSON.parse(readFileSync(join(repoRoot, path), 'utf8')).packages ?? {};
  if (!existsSync(join(repoRoot, 'node_modules/.package-lock.json'))) return false;
  const installed = read('node_modules/.package-lock.json');
  return Object.entries(read('package-lock.json')).every(([path, wanted]) => {
    if (path === '') return true;
    const found = installed[path];
    return found === undefined ? wanted.optional === true : found.version === wanted.version;
  });
}

/** Where node's own headers are, so that node-gyp need not download them; null when not here. */
function nodeHeaderPrefix() {
  const prefix = resolve(realpathSync(process.execPath), '../..');
  return existsSync(join(prefix, 'include/node/node_api.h')) ? prefix : null;
}

async function installNpmPackages() {
  if (npmPackagesAreCurrent()) return;
  const prefix = nodeHeaderPrefix();
  await step('npm packages (npm ci): compilers, the test runner and three libraries', () =>
    run('npm', ['ci', '--no-audit', '--no-fund', '--loglevel=error'], {
      env: prefix === null ? {} : { npm_config_nodedir: prefix },
      what: 'npm ci',
    }),
  );
}

async function buildAddon() {
  const prefix = nodeHeaderPrefix();
  const args = [
    join(repoRoot, 'node_modules/node-gyp/bin/node-gyp.js'),
    'configure',
    'build',
    '--loglevel=warn',
    `--jobs=${availableParallelism()}`,
    ...(prefix === null ? [] : [`--nodedir=${prefix}`]),
  ];
  const inputs = [
    'binding.gyp',
    'node_modules/node-addon-api/package.json',
    ...listFiles(repoRoot, 'native', ['.cc', '.h']),
  ];
  await whenChanged(
    'addon',
    'C++ addon (disk and socket I/O)',
    {
      inputs,
      extra: [process.version, process.arch, args],
      outputs: ['build/Release/longhorn.node'],
    },
    () => run(process.execPath, args, { what: 'node-gyp' }),
  );
}

function typescriptSources(folders) {
  return folders.flatMap((folder) => [
    ...listFiles(repoRoot, folder, ['.ts']),
    ...listFiles(repoRoot, `${folder}/api/generated`, ['.ts']),
  ]);
}

function compiledPath(source) {
  return `dist/${source.replace(/\.ts$/, '.js')}`;
}

/** Output of sources that no longer exist would still be run as tests. */
function removeStaleOutput(sources) {
  const expected = new Set(sources.map(compiledPath));
  for (const folder of ['src', 'test', 'bench']) {
    for (const path of [folder, `${folder}/api/generated`].flatMap((f) =>
      listFiles(repoRoot, `dist/${f}`, ['.js']),
    )) {
      if (!expected.has(path)) rmSync(join(repoRoot, path));
    }
  }
}

async function compileForTests() {
  const sources = typescriptSources(['src', 'test', 'bench']);
  await whenChanged(
    'types',
    'type check and compile',
    { inputs: ['tsconfig.json', ...sources], extra: [], outputs: sources.map(compiledPath) },
    async () => {
      removeStaleOutput(sources);
      await run(process.execPath, [join(repoRoot, 'node_modules/typescript/bin/tsc'), '-p', '.'], {
        what: 'tsc',
      });
    },
  );
}

async function bundleProgram() {
  const inputs = ['scripts/bundle.mjs', 'package-lock.json', ...typescriptSources(['src'])];
  await whenChanged(
    'bundle',
    'program bundle',
    { inputs, extra: [], outputs: ['dist/bundle/app/main.js'] },
    async () => {
      const { bundle } = await import('./bundle.mjs');
      await bundle(repoRoot).catch((error) => {
        throw new SetupError(`esbuild: ${error.message}`);
      });
    },
  );
}

/** tap compiles its own plugin set once after it is installed (.taprc switches one off). */
async function prepareTestRunner() {
  await whenChanged(
    'tap',
    'test runner (tap build)',
    { inputs: ['.taprc', 'node_modules/tap/package.json'], extra: [repoRoot], outputs: [] },
    () =>
      run(process.execPath, [join(repoRoot, 'node_modules/tap/dist/esm/run.mjs'), 'build'], {
        what: 'tap build',
      }),
  );
}

/** One set-up at a time in a checkout. @returns how to let the next one in. */
async function takeTurn() {
  const name = createHash('sha256').update(repoRoot).digest('hex').slice(0, 16);
  const path = join(tmpdir(), `longhorn-setup-${process.getuid()}-${name}.lock`);
  for (let hasWaited = false; ; hasWaited = true) {
    try {
      writeFileSync(path, String(process.pid), { flag: 'wx' });
      return () => rmSync(path, { force: true });
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
    }
    if (!isAlive(path)) {
      rmSync(path, { force: true });
      continue;
    }
    if (!hasWaited) say('waiting for another set-up in this checkout');
    await new Promise((wake) => setTimeout(wake, 200));
  }
}

function isAlive(lockPath) {
  try {
    process.kill(Number(readFileSync(lockPath, 'utf8')), 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM';
  }
}

/**
 * @param purposes any of `quickstart`, `tests`, `bench`, `crash`: which Debian programs are wanted.
 * @param development also compile for the tests and prepare the test runner.
 * @returns { missing } names of programs that could not be had.
 * @throws SetupError when the program cannot be built.
 */
export async function setup({ purposes = [], development = false, mayInstall = true } = {}) {
  checkNode();
  const finish = await takeTurn();
  try {
    const missing = await installDebianPackages(['build', ...purposes], mayInstall);
    await installNpmPackages();
    await buildAddon();
    if (development) await compileForTests();
    await bundleProgram();
    if (development) await prepareTestRunner();
    return { missing };
  } finally {
    finish();
  }
}

/** Prints a set-up failure as its message, anything else with its stack, and sets exit status 1. */
export function reportSetupError(error) {
  console.error(error instanceof SetupError ? error.message : error);
  process.exitCode = 1;
}

const USAGE = `usage: node scripts/setup.mjs [--dev] [--for quickstart|tests|bench|crash] [--no-apt]
  --dev      also compile the tests and prepare the test runner
  --for X    also install the Debian packages that X wants; may be repeated
  --no-apt   never install Debian packages`;

async function main(args) {
  const purposes = [];
  let development = false;
  let mayInstall = true;
  for (let i = 0; i < args.length; i++) {
    if (args[i] === '--dev') development = true;
    else if (args[i] === '--no-apt') mayInstall = false;
    else if (args[i] === '--for' && ['quickstart', 'tests', 'bench', 'crash'].includes(args[i + 1]))
      purposes.push(args[++i]);
    else throw new SetupError(USAGE);
  }
  await setup({ purposes, development, mayInstall });
  say('ready');
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  main(process.argv.slice(2)).catch(reportSetupError);
}

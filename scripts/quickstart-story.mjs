// The story of one volume, told while it happens: three copies, a real client, a snapshot, a copy
// killed under load, a new one rebuilt, and proof that every copy alone holds the same bytes.

import { createHash } from 'node:crypto';
import { spawn } from 'node:child_process';
import {
  cpSync,
  createReadStream,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { listFiles, repoRoot } from './source-files.mjs';
import { run, Stack } from './quickstart-stack.mjs';

const MIB = 1024 * 1024;
const VOLUME = 'demo';
const VOLUME_BYTES = 512 * MIB;
const IMAGE_BYTES = 128 * MIB;
/** Where the writer works: behind the image. */
const WRITER_OFFSET_BYTES = 256 * MIB;
const WRITER_BYTES = 96 * MIB;
/** The replica dies when the writer has got this far. */
const KILL_AFTER_BYTES = 16 * MIB;
const MARKER = '.longhorn-quickstart';
/** What goes into the ext4 image. */
const SOURCE_DIRECTORIES = ['src', 'native', 'test', 'bench', 'scripts', 'docs'];
const SOURCE_ENDINGS = ['.ts', '.cc', '.h', '.mjs', '.md', '.proto'];

let stepNumber = 0;
/** After Ctrl-C the story may fail anywhere, and nobody wants to read how. */
let isInterrupted = false;
const startedMs = Date.now();

function step(text) {
  if (isInterrupted) return;
  stepNumber++;
  const seconds = ((Date.now() - startedMs) / 1000).toFixed(1);
  console.log(`\n[${seconds.padStart(5)} s] ${stepNumber}. ${text}`);
}

function say(text) {
  if (isInterrupted) return;
  console.log(`          ${text.split('\n').join('\n          ')}`);
}

/** Empties the directory of an earlier quickstart; refuses one that is something else. */
function prepareDirectory(directory) {
  if (existsSync(directory) && !statSync(directory).isDirectory()) {
    throw new Error(`${directory} is not a directory; choose another --dir`);
  }
  const marker = join(directory, MARKER);
  const isForeign = existsSync(directory) && !existsSync(marker);
  if (isForeign && readdirSync(directory).length > 0) {
    throw new Error(`${directory} holds other files; choose an empty --dir`);
  }
  const runningPid = existsSync(marker) ? Number(readFileSync(marker, 'utf8')) : 0;
  if (runningPid > 0 && isRunning(runningPid)) {
    throw new Error(`a quickstart (pid ${runningPid}) is running in ${directory}; stop it first`);
  }
  try {
    rmSync(directory, { recursive: true, force: true });
    // Not recursive: Node 20 never returns where mkdir says ENOENT below a parent that exists (/proc).
    mkdirSync(directory, { mode: 0o700 });
  } catch (error) {
    const text = `cannot create ${directory}: ${error.code}; --dir must be in an existing directory`;
    throw new Error(`${text} that you may write to`);
  }
  writeFileSync(marker, String(process.pid));
}

function isRunning(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

async function sha256OfFile(path, lengthBytes) {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { end: lengthBytes - 1 })) hash.update(chunk);
  return hash.digest('hex');
}

/** An ext4 image of the project's own sources, made without root. */
async function makeImage(directory) {
  const tree = join(directory, 'tree');
  const files = SOURCE_DIRECTORIES.flatMap((name) => listFiles(repoRoot, name, SOURCE_ENDINGS));
  for (const file of files) {
    const target = join(tree, file);
    mkdirSync(dirname(target), { recursive: true });
    cpSync(join(repoRoot, file), target);
  }
  const image = join(directory, 'image.ext4');
  const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };
  const args = [
    '-q',
    '-t',
    'ext4',
    '-d',
    tree,
    '-L',
    'longhorn-demo',
    image,
    `${IMAGE_BYTES / MIB}M`,
  ];
  const made = await run('mke2fs', args, { env });
  if (made.code !== 0) throw new Error(`mke2fs failed: ${made.stderr}`);
  rmSync(tree, { recursive: true });
  return { image, count: files.length };
}

/** Copies the volume out through NBD and hashes it. */
async function readVolume(stack, path) {
  rmSync(path, { force: true });
  const copied = await run('nbdcopy', [stack.uri, path]);
  if (copied.code !== 0) throw new Error(`nbdcopy failed: ${copied.stderr}`);
  if (statSync(path).size !== VOLUME_BYTES) throw new Error('the copy has the wrong size');
  return sha256OfFile(path, VOLUME_BYTES);
}

/** fio writes and verifies; `onProgress` hears how many bytes reached the replica's file so far. */
async function writeWhile(stack, action) {
  const args = [
    '--name=writer',
    '--ioengine=nbd',
    `--uri=${stack.uri}`,
    '--rw=randwrite',
    '--bs=4k',
    '--iodepth=16',
    `--offset=${WRITER_OFFSET_BYTES}`,
    `--size=${WRITER_BYTES}`,
    '--verify=crc32c',
    '--do_verify=1',
    '--verify_fatal=1',
    '--verify_state_save=0',
  ];
  const child = spawn('fio', args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  child.stdout.on('data', (chunk) => (output += chunk));
  child.stderr.on('data', (chunk) => (output += chunk));
  const ended = new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  const head = join(stack.directory, 'replica-1', 'volume-head-001.img');
  const beganBytes = statSync(head).blocks * 512;
  let hasActed = false;
  while (child.exitCode === null && !hasActed) {
    if (statSync(head).blocks * 512 - beganBytes >= KILL_AFTER_BYTES) {
      hasActed = true;
      action();
    } else await new Promise((resolve) => setTimeout(resolve, 10));
  }
  const code = await ended;
  if (!hasActed) throw new Error('the writer ended before the replica was killed');
  return { code, output };
}

async function buildVolume(stack) {
  step('Three replicas in three directories, an engine over them, an NBD socket');
  for (const name of ['replica-1', 'replica-2', 'replica-3']) {
    const { pid, address } = await stack.startReplica(name);
    say(`${name}   pid ${pid}   ${address}   ${join(stack.directory, name)}`);
  }
  const pid = await stack.startEngine(['replica-1', 'replica-2', 'replica-3']);
  say(`engine      pid ${pid}   ${stack.url}`);
  say(`endpoint    ${stack.uri}`);
}

async function fillVolume(stack) {
  step('An ext4 image of this source tree, copied in through a real client (nbdcopy)');
  const { image, count } = await makeImage(stack.directory);
  const copied = await run('nbdcopy', [image, stack.uri]);
  if (copied.code !== 0) throw new Error(`nbdcopy failed: ${copied.stderr}`);
  const imageHash = await sha256OfFile(image, IMAGE_BYTES);
  say(`${count} files, ${IMAGE_BYTES / MIB} MiB, sha256 ${imageHash.slice(0, 16)}…`);
  step('A snapshot');
  const name = (await stack.command('snapshot', 'create', 'before-the-fault')).trim();
  say(`$ longhorn snapshot create before-the-fault\n${name}`);
  return { image, imageHash };
}

async function loseReplica(stack) {
  step('A client writes and verifies; meanwhile replica-2 is killed with SIGKILL');
  const victim = stack.replicas.get('replica-2');
  const { code, output } = await writeWhile(stack, () => {
    process.kill(victim.pid, 'SIGKILL');
    say(
      `kill -9 ${victim.pid}   (after ${KILL_AFTER_BYTES / MIB} MiB of ${WRITER_BYTES / MIB} MiB)`,
    );
  });
  if (code !== 0) {
    say(output);
    throw new Error(`the writer failed with ${code}`);
  }
  say(`fio wrote and verified ${WRITER_BYTES / MIB} MiB with crc32c: no error reached it`);
  say(`$ longhorn ls-replica\n${(await stack.command('ls-replica')).trimEnd()}`);
}

async function heal(stack) {
  step('The lost replica is dropped, a new empty one is added and rebuilt');
  await stack.command('rm-replica', stack.replicas.get('replica-2').address);
  const { address, pid } = await stack.startReplica('replica-4');
  say(`replica-4   pid ${pid}   ${address}`);
  const size = String(VOLUME_BYTES);
  const began = Date.now();
  const rebuilding = stack.command('add-replica', '--size', size, '--current-size', size, address);
  await rebuilding;
  say(`rebuilt in ${((Date.now() - began) / 1000).toFixed(1)} s`);
  say(`$ longhorn ls-replica\n${(await stack.command('ls-replica')).trimEnd()}`);
}

async function proveEqual(stack, content) {
  step('Proof: the volume is read back whole, then from each replica alone');
  const path = join(stack.directory, 'readback.img');
  const names = ['replica-1', 'replica-3', 'replica-4'];
  const hashes = new Map([['all three', await readVolume(stack, path)]]);
  for (const name of names) {
    await stack.stopEngine();
    await stack.startEngine([name]);
    hashes.set(name, await readVolume(stack, path));
  }
  for (const [name, hash] of hashes) say(`${name.padEnd(10)} sha256 ${hash}`);
  const imageHash = await sha256OfFile(path, IMAGE_BYTES);
  const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };
  const checked = await run('e2fsck', ['-fn', path], { env });
  rmSync(path);
  const isEqual = new Set(hashes.values()).size === 1 && imageHash === content.imageHash;
  if (!isEqual) throw new Error('MISMATCH: the replicas do not hold the same bytes');
  if (checked.code !== 0) throw new Error(`e2fsck found errors:\n${checked.stdout}`);
  say('all equal, the image is byte for byte what was copied in, e2fsck finds it clean');
  await stack.stopEngine();
  await stack.startEngine(names);
}

function tellNext(stack) {
  const { uri, url } = stack;
  console.log(`
The volume is served with three replicas. In another terminal, from the checkout:

  qemu-img info '${uri}'
  nbdinfo --map '${uri}'
  bin/longhorn --url ${url} info
  bin/longhorn --url ${url} snapshot ls
  bin/longhorn --url ${url} snapshot create my-snapshot
  sudo nbd-client -unix ${stack.socketPath} -N ${VOLUME} /dev/nbd0   # needs the kernel's nbd module

Logs are in ${join(stack.directory, 'logs')}. Ctrl-C ends everything.`);
}

function untilInterrupted() {
  return new Promise((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => resolve(signal));
  });
}

/**
 * @param {{once: boolean, directory: string, missingPrograms: string[]}} options
 * @returns {Promise<number>} exit status: 0, or 1 when anything failed or did not match
 */
export async function tellStory({ once, directory, missingPrograms }) {
  const needed = ['nbdcopy', 'mke2fs', 'fio'].filter((name) => missingPrograms.includes(name));
  if (needed.length > 0) {
    console.error(`The quickstart needs ${needed.join(', ')}: see above what to install.`);
    return 1;
  }
  console.log('\nLonghorn for Node: one volume, three copies, one of them dies.');
  let stack = null;
  const interrupted = untilInterrupted();
  try {
    prepareDirectory(directory);
    stack = new Stack(directory, VOLUME, VOLUME_BYTES);
    const told = tell(stack);
    const first = await Promise.race([told.then(() => 'told'), interrupted]);
    if (first === 'told') {
      console.log('\nDone: nothing was lost.');
      if (!once) {
        tellNext(stack);
        await interrupted;
        console.log('\nStopping.');
      }
      return 0;
    }
    told.catch(() => undefined);
    isInterrupted = true;
    console.log('\nInterrupted; stopping.');
    return 130;
  } catch (error) {
    console.error(`\nFAILED: ${error.message}`);
    if (stack !== null) console.error(`Logs are in ${join(directory, 'logs')}.`);
    return 1;
  } finally {
    await stack?.stop();
    if (existsSync(join(directory, MARKER))) writeFileSync(join(directory, MARKER), '0');
  }
}

async function tell(stack) {
  await buildVolume(stack);
  const content = await fillVolume(stack);
  await loseReplica(stack);
  await heal(stack);
  await proveEqual(stack, content);
}

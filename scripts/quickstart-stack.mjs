// Processes of the quickstart: replicas and engines started the way a user starts them, through
// bin/longhorn, each with its log file. Knows nothing of the story that is told with them.

import { spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { repoRoot } from './source-files.mjs';

const LONGHORN = join(repoRoot, 'bin/longhorn');
const START_TIMEOUT_MS = 20_000;
/** Ports of one replica: control, data, sync agent and ten for file transfers; rounded up. */
const PORTS_PER_REPLICA = 20;
const FIRST_PORT = 21_000;
const LAST_PORT = 29_000;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function isFree(port) {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}

/** Gives out blocks of free ports, never the same one twice. */
export class Ports {
  #next = FIRST_PORT;

  async take() {
    for (; this.#next < LAST_PORT; this.#next += PORTS_PER_REPLICA) {
      const ports = Array.from({ length: PORTS_PER_REPLICA }, (_, i) => this.#next + i);
      const free = await Promise.all(ports.map(isFree));
      if (!free.every(Boolean)) continue;
      this.#next += PORTS_PER_REPLICA;
      return ports[0];
    }
    throw new Error(`no free ports between ${FIRST_PORT} and ${LAST_PORT}`);
  }
}

/** Runs a program to its end. @returns {Promise<{code: number, stdout: string, stderr: string}>} */
export function run(program, args, { inherit = false, env = process.env } = {}) {
  return new Promise((resolve, reject) => {
    const output = inherit ? 'inherit' : 'pipe';
    const child = spawn(program, args, { stdio: ['ignore', output, output], env });
    let stdout = '';
    let stderr = '';
    child.stdout?.on('data', (chunk) => (stdout += chunk));
    child.stderr?.on('data', (chunk) => (stderr += chunk));
    child.once('error', reject);
    child.once('close', (code, signal) => resolve({ code: code ?? signal, stdout, stderr }));
  });
}

/** Runs a longhorn command. @throws with its error text when it fails. */
export async function longhorn(args, options) {
  const result = await run(LONGHORN, args, options);
  if (result.code === 0) return result.stdout;
  throw new Error(`longhorn ${args.join(' ')} failed: ${result.stderr.trim()}`);
}

/** One daemon and its log; ready when the log shows the given event. */
class Daemon {
  constructor(name, args, logFile) {
    this.name = name;
    this.logFile = logFile;
    const log = openSync(logFile, 'w');
    // In a group of its own: Ctrl-C in the terminal reaches the story, which then stops the daemons.
    this.child = spawn(LONGHORN, args, { stdio: ['ignore', log, log], detached: true });
    closeSync(log);
    this.ended = new Promise((resolve) => {
      this.child.once('exit', (code, signal) => resolve(code ?? signal));
      this.child.once('error', (error) => resolve(error.message));
    });
    this.ended.then(() => (this.hasEnded = true));
    this.hasEnded = false;
  }

  async ready(event) {
    const deadline = Date.now() + START_TIMEOUT_MS;
    for (;;) {
      const log = readFileSync(this.logFile, 'utf8');
      if (log.includes(`"event":"${event}"`)) return;
      if (this.hasEnded || Date.now() > deadline) {
        const last = log.trim().split('\n').slice(-3).join('\n');
        throw new Error(`${this.name} did not start; the end of ${this.logFile}:\n${last}`);
      }
      await sleep(20);
    }
  }

  async stop(signal = 'SIGTERM') {
    if (!this.hasEnded) this.child.kill(signal);
    return this.ended;
  }
}

/** The stack of one volume under a directory. */
export class Stack {
  constructor(directory, volume, sizeBytes) {
    this.directory = directory;
    this.volume = volume;
    this.sizeBytes = sizeBytes;
    this.ports = new Ports();
    this.replicas = new Map();
    this.engine = null;
    mkdirSync(join(directory, 'logs'), { recursive: true });
  }

  get url() {
    return `http://127.0.0.1:${this.enginePort}`;
  }

  get socketPath() {
    return join(this.directory, 'volume.sock');
  }

  get uri() {
    return `nbd+unix:///${this.volume}?socket=${this.socketPath}`;
  }

  /** Starts the replica in DIRECTORY/NAME. */
  async startReplica(name) {
    const port = await this.ports.take();
    const args = ['--volume-name', this.volume, 'replica', join(this.directory, name)];
    args.push('--size', String(this.sizeBytes), '--listen', `127.0.0.1:${port}`);
    args.push('--disableRevCounter');
    const daemon = new Daemon(name, args, join(this.directory, 'logs', `${name}.log`));
    const replica = { name, daemon, address: `tcp://127.0.0.1:${port}`, pid: daemon.child.pid };
    this.replicas.set(name, replica);
    await daemon.ready('replica.serving');
    return replica;
  }

  /** Starts an engine over the named replicas. */
  async startEngine(names) {
    this.enginePort = await this.ports.take();
    const size = String(this.sizeBytes);
    const args = ['engine', this.volume, '--size', size, '--current-size', size];
    args.push('--frontend', 'nbd', '--nbd-listen', `unix://${this.socketPath}`);
    args.push('--listen', `127.0.0.1:${this.enginePort}`, '--disableRevCounter');
    for (const name of names) args.push('--replica', this.replicas.get(name).address);
    this.engine = new Daemon('engine', args, join(this.directory, 'logs', 'engine.log'));
    await this.engine.ready('engine.serving');
    return this.engine.child.pid;
  }

  async stopEngine() {
    await this.engine?.stop();
    this.engine = null;
  }

  /** Engine first, so that it closes its replicas; then they. */
  async stop() {
    await this.stopEngine();
    await Promise.all([...this.replicas.values()].map(({ daemon }) => daemon.stop()));
  }

  /** A longhorn command against the engine. */
  command(...args) {
    return longhorn(['--url', this.url, ...args]);
  }
}

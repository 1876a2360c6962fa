// Server processes of the benchmark, each in a process group of its own: Ctrl-C in the terminal
// reaches only the benchmark, which then ends them. None may outlive it, whatever made it end.

import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { readFile } from 'node:fs/promises';

const STOP_TIMEOUT_MS = 10_000;
const LOG_LINES_SHOWN = 5;

/** A process and everything it started. */
export class Child {
  readonly name: string;
  readonly pid: number;
  /** When it was spawned, by performance.now(). */
  readonly spawnedMs: number;
  hasEnded = false;
  private readonly logFile: string;
  private readonly ended: Promise<void>;

  constructor(name: string, program: string, args: readonly string[], logFile: string) {
    this.name = name;
    this.logFile = logFile;
    const log = openSync(logFile, 'a');
    this.spawnedMs = performance.now();
    const child: ChildProcess = spawn(program, args, {
      stdio: ['ignore', log, log],
      detached: true,
    });
    closeSync(log);
    this.ended = new Promise((resolve) => {
      const end = (): void => {
        this.hasEnded = true;
        resolve();
      };
      child.once('exit', end);
      child.once('error', end);
    });
    this.pid = child.pid ?? 0;
  }

  /** Asks it to end, kills it when it does not, and kills what it may have left. */
  async stop(): Promise<void> {
    if (!this.hasEnded) {
      this.signal('SIGTERM');
      const timer = setTimeout(() => this.signal('SIGKILL'), STOP_TIMEOUT_MS);
      await this.ended;
      clearTimeout(timer);
    }
    this.signal('SIGKILL');
  }

  signal(signal: NodeJS.Signals): void {
    if (this.pid === 0) return;
    try {
      process.kill(-this.pid, signal);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
    }
  }

  async lastWords(): Promise<string> {
    const log = await readFile(this.logFile, 'utf8').catch(() => '');
    return log.trim().split('\n').slice(-LOG_LINES_SHOWN).join('\n');
  }
}

/** All server processes of one run. */
export class Children {
  private readonly running = new Set<Child>();

  start(name: string, program: string, args: readonly string[], logFile: string): Child {
    const child = new Child(name, program, args, logFile);
    this.running.add(child);
    return child;
  }

  async stop(child: Child): Promise<void> {
    await child.stop();
    this.running.delete(child);
  }

  async stopAll(): Promise<void> {
    await Promise.all([...this.running].map((child) => this.stop(child)));
  }

  /** For the moment in which nothing can be waited for any more. */
  killAll(): void {
    for (const child of this.running) child.signal('SIGKILL');
  }
}

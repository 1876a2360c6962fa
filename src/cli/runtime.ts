// What every daemon of the data path is made of: logger, clock, I/O memory, sockets, an orderly
// end. Only cli/ builds these; everything below receives them.

import { mkdirSync, readFileSync, readlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { addon } from '../addon/addon.js';
import { realClock } from '../core/clock-real.js';
import type { Clock } from '../core/clock.js';
import { toStorageError } from '../core/errors.js';
import { CONNECTIONS_MAX } from '../core/limits.js';
import { createLogger, type Logger, type LogLevel } from '../core/log.js';
import type { Slab } from '../core/slab.js';
import { MIB } from '../core/units.js';
import { createSlab } from '../disk/native-disk.js';
import { connectionRegionsBytes } from '../transport/connection-memory.js';
import {
  createNativeTransport,
  nativeTransportBytes,
  type NativeTransport,
} from '../transport/native-transport.js';

/** Scratch sectors, zero region and the like, beside the connections' own memory. */
const OTHER_RESERVED_BYTES = 4 * MIB;
/** Time for an orderly end before the process leaves anyway; a supervisor kills after 60 s. */
const STOP_TIMEOUT_MS = 45_000;

export interface Runtime {
  readonly clock: Clock;
  readonly log: Logger;
  readonly slab: Slab;
  readonly transport: NativeTransport;
}

export function createDaemonLogger(level: LogLevel, fields: Record<string, unknown>): Logger {
  return createLogger({
    clock: realClock,
    level,
    write: (line) => void process.stderr.write(`${line}\n`),
    fields,
  });
}

export function createRuntime(log: Logger): Runtime {
  // Address space only: pages cost memory when they are first used. TLS has regions of its own.
  const connectionBytes = nativeTransportBytes() + connectionRegionsBytes(CONNECTIONS_MAX);
  const slab = createSlab(connectionBytes + OTHER_RESERVED_BYTES);
  const transport = createNativeTransport({ slab, clock: realClock });
  return { clock: realClock, log, slab, transport };
}

/** When a daemon that began to serve turns from starting to working. */
const SETTLE_AFTER_MS = 500;
/**
 * bin/longhorn starts V8 without its baseline compiler and slow to optimise: a start runs
 * everything once, and compiled code would only cost memory. The data path runs the same few
 * functions for ever: these are compiled after a few hundred requests (docs/performance.md).
 */
const WORKING_FLAGS = ['--sparkplug', '--interrupt-budget=20000'] as const;

/** Call once the daemon serves: gives start-up memory back and lets V8 compile the data path. */
export function settleSoon(clock: Clock): void {
  const settle = (): void => {
    for (const flag of WORKING_FLAGS) setFlagsFromString(flag);
    addon.trimMemory();
  };
  clock.after(SETTLE_AFTER_MS, settle, { unref: true });
}

/** Runs `stop` once on SIGTERM or SIGINT, then exits: 0, or 1 when it fails or takes too long. */
export function stopOnSignal(log: Logger, stop: () => Promise<void>): void {
  let isStopping = false;
  const begin = (signal: NodeJS.Signals): void => {
    if (isStopping) return;
    isStopping = true;
    log.info('process.stopping', { signal });
    setTimeout(() => {
      log.error('process.stop.timeout', { timeoutMs: STOP_TIMEOUT_MS });
      process.exit(1);
    }, STOP_TIMEOUT_MS).unref();
    stop().then(
      () => {
        log.info('process.stopped');
        process.exit(0);
      },
      (error: unknown) => {
        log.error('process.stop.failed', { error });
        process.exit(1);
      },
    );
  };
  process.on('SIGTERM', begin);
  process.on('SIGINT', begin);
}

/**
 * Equal for processes that run under one kernel and see the same files; '' when unknown. In two
 * containers one path can lead to the sockets of two different replicas.
 */
export function hostBootId(): string {
  try {
    const bootId = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
    return `${bootId} ${readlinkSync('/proc/self/ns/mnt')}`;
  } catch {
    return '';
  }
}

/** Directory of sockets: Longhorn's /var/run as root, else one of the user's own. */
export function defaultRuntimeDirectory(env: NodeJS.ProcessEnv): string {
  if (process.getuid?.() === 0) return '/var/run';
  const own = env['XDG_RUNTIME_DIR'] ?? join(tmpdir(), `longhorn-${process.getuid?.() ?? 0}`);
  mkdirSync(own, { recursive: true, mode: 0o700 });
  return own;
}

/** A daemon that cannot start says why in one line of JSON and exits. */
export function exitOnStartFailure(log: Logger, error: unknown, exitCode: number): never {
  const failure = toStorageError(error);
  log.error('process.start.failed', { error: failure, ...failure.details });
  process.exit(exitCode);
}

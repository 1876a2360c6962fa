// Brings a native disk to one stage of its life and ends there, for lifecycle.test.ts. Runs as a
// process or as a worker thread: disk-lifecycle-main.js STAGE END BACKEND DIRECTORY.

import { openSync } from 'node:fs';
import { join } from 'node:path';
import { parentPort, threadId, workerData } from 'node:worker_threads';

import { silentLogger } from '../../src/core/log.js';
import { MIB, SECTOR_BYTES } from '../../src/core/units.js';
import { DISK_OP, type DiskFile, type DiskRequest } from '../../src/disk/disk.js';
import { createNativeDisk, type NativeDisk } from '../../src/disk/native-disk.js';
import type { Backend } from './native-disk.js';

const EXIT_CODE = 7;

export type Stage =
  | 'loaded'
  | 'created'
  | 'opening'
  | 'open'
  | 'queued'
  | 'inFlight'
  | 'syncing'
  | 'load'
  | 'completing'
  | 'control'
  | 'closing'
  | 'closed'
  | 'shuttingDown'
  | 'shutDown';

/** How it ends: by itself, by process.exit at the stage, or left to be terminated. */
export type End = 'return' | 'exit' | 'wait' | 'throw' | 'fallback';

function requests(
  count: number,
  file: DiskFile,
  complete: (this: DiskRequest) => void,
): DiskRequest[] {
  return Array.from({ length: count }, (_, i) => ({
    op: i % 2 === 0 ? DISK_OP.write : DISK_OP.read,
    file,
    bufferOffset: (i % 2000) * SECTOR_BYTES,
    lengthBytes: SECTOR_BYTES,
    fileOffsetBytes: i * SECTOR_BYTES,
    complete,
  }));
}

async function reach(
  stage: Stage,
  directory: string,
  backend: Backend,
  reached: () => void,
  isEndless: boolean,
): Promise<void> {
  if (stage === 'loaded') return reached();
  const disk = createNativeDisk({ backend, log: silentLogger });
  if (stage === 'created') return reached();
  const path = join(directory, `file-${process.pid}-${threadId}`);
  const opening = disk.open(path, { writable: true, create: true });
  if (stage === 'opening') reached();
  const file = await opening;
  await file.truncate(16 * MIB);
  if (stage === 'open') return reached();
  await reachWithFile(stage, disk, file, reached, isEndless);
}

async function reachWithFile(
  stage: Stage,
  disk: NativeDisk,
  file: DiskFile,
  reached: () => void,
  isEndless: boolean,
): Promise<void> {
  let finished = 0;
  // More than the addon takes at a time.
  const count = 1500;
  const all = requests(count, file, function complete() {
    finished++;
    if (stage === 'completing' && finished === 10) reached();
    if (stage === 'load' && (isEndless || finished < 10_000)) disk.queue.submit(this);
  });
  if (stage === 'syncing') for (const request of all) request.op = DISK_OP.sync;
  for (const request of all) disk.queue.submit(request);
  if (stage === 'queued') reached();
  await disk.queue.handedOver();
  if (stage === 'inFlight' || stage === 'syncing' || stage === 'load') reached();
  if (stage === 'control') {
    const pending = Array.from({ length: 20 }, () => [
      file.sizeBytes(),
      file.extents(0, 16 * MIB, 10_000),
      file.sync(),
    ]);
    reached();
    await Promise.all(pending.flat());
  }
  if (stage === 'closing' || stage === 'closed') {
    const closing = file.close();
    if (stage === 'closing') reached();
    await closing;
    if (stage === 'closed') reached();
  }
  if (stage === 'shuttingDown' || stage === 'shutDown') {
    const shutdown = disk.shutdown();
    if (stage === 'shuttingDown') reached();
    await shutdown;
    if (stage === 'shutDown') reached();
  }
  // The promise of a queued request keeps the process alive: say how many came back.
  process.on('exit', () => {
    if (!isEndless && finished < count) process.exitCode = 3;
  });
}

/** A complete() that throws: the process learns of it, and nothing behind it is lost. */
async function throwInCompletion(directory: string, backend: Backend): Promise<void> {
  let caught = 0;
  let finished = 0;
  process.on('uncaughtException', (error) => {
    if (error.message === 'on purpose') caught++;
  });
  const disk = createNativeDisk({ backend, log: silentLogger });
  const file = await disk.open(join(directory, 'thrown'), { writable: true, create: true });
  const count = 100;
  for (const request of requests(count, file, () => {
    finished++;
    if (finished % 10 === 0) throw new Error('on purpose');
  })) {
    disk.queue.submit(request);
  }
  process.on('exit', () => {
    console.log(JSON.stringify({ caught, finished, pending: disk.queue.pendingCount }));
  });
}

/** Leaves no file descriptor for a ring, then asks for a disk. */
function fallBack(): void {
  try {
    for (;;) openSync('/dev/null', 'r');
  } catch {
    // None is left.
  }
  let refusal = '';
  try {
    createNativeDisk({ backend: 'io_uring', log: silentLogger });
  } catch (error) {
    refusal = String(error);
  }
  const { backend } = createNativeDisk({ backend: 'auto', log: silentLogger });
  console.log(JSON.stringify({ backend, refusal }));
}

const [stage, end, backend, directory] = (workerData ?? process.argv.slice(2)) as [
  Stage,
  End,
  Backend,
  string,
];

if (end === 'throw') {
  await throwInCompletion(directory, backend);
} else if (end === 'fallback') {
  fallBack();
} else {
  const reached = (): void => {
    if (end === 'exit') process.exit(EXIT_CODE);
    if (end === 'wait') {
      parentPort?.postMessage('reached');
      // Alive until terminated, whatever the disk thinks of it.
      setInterval(() => undefined, 1000);
    }
  };
  await reach(stage, directory, backend, reached, end === 'wait');
}

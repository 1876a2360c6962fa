// What does one disk I/O cost through the addon? 4 KiB random reads and writes on one file, both
// backends, queue depths 1, 32 and 128, beside fio with io_uring on the same file, one after the
// other in each round. Prints the best and the median of the rounds.
//
//   node dist/bench/disk-queue.js [--file PATH] [--size 1g] [--seconds 2] [--rounds 3]

import { execFile } from 'node:child_process';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs, promisify } from 'node:util';

import { silentLogger } from '../src/core/log.js';
import { MIB, parseSizeBytes, SECTOR_BYTES } from '../src/core/units.js';
import { DISK_OP, type DiskFile, type DiskOp, type DiskRequest } from '../src/disk/disk.js';
import { createNativeDisk, type NativeDisk } from '../src/disk/native-disk.js';

const DEPTHS = [1, 32, 128] as const;
const BACKENDS = ['io_uring', 'threads'] as const;
const FILL_BYTES = MIB;

interface Outcome {
  readonly iops: number;
  /** Processor time of the whole process, or 0 when not measured. */
  readonly cpuMicrosPerIo: number;
}

interface Job {
  readonly op: DiskOp;
  readonly depth: number;
}

/** Keeps one request in flight, again and again, until told to stop. */
class Loop implements DiskRequest {
  op: DiskOp;
  file: DiskFile;
  bufferOffset: number;
  lengthBytes = SECTOR_BYTES;
  fileOffsetBytes = 0;
  count = 0;
  private readonly load: Load;

  constructor(load: Load, bufferOffset: number) {
    this.load = load;
    this.op = load.op;
    this.file = load.file;
    this.bufferOffset = bufferOffset;
  }

  next(): void {
    this.fileOffsetBytes = Math.floor(Math.random() * this.load.sectors) * SECTOR_BYTES;
    this.load.disk.queue.submit(this);
  }

  complete(result: number): void {
    if (result !== SECTOR_BYTES) throw new Error(`an I/O returned ${result}`);
    this.count++;
    if (this.load.running) this.next();
    else this.load.loopEnded();
  }
}

class Load {
  readonly disk: NativeDisk;
  readonly file: DiskFile;
  readonly op: DiskOp;
  readonly sectors: number;
  running = true;
  private active = 0;
  private ended: () => void = () => undefined;

  constructor(disk: NativeDisk, file: DiskFile, op: DiskOp, sectors: number) {
    this.disk = disk;
    this.file = file;
    this.op = op;
    this.sectors = sectors;
  }

  async run(depth: number, seconds: number): Promise<Outcome> {
    const buffers = Array.from({ length: depth }, () => this.disk.slab.allocate(SECTOR_BYTES));
    const loops = buffers.map((bufferOffset) => new Loop(this, bufferOffset));
    const cpuBefore = process.cpuUsage();
    const startMs = performance.now();
    const finished = new Promise<void>((resolve) => {
      this.ended = resolve;
    });
    this.active = depth;
    for (const loop of loops) loop.next();
    setTimeout(() => {
      this.running = false;
    }, seconds * 1000);
    await finished;
    const elapsedSeconds = (performance.now() - startMs) / 1000;
    const cpu = process.cpuUsage(cpuBefore);
    const count = loops.reduce((sum, loop) => sum + loop.count, 0);
    for (const bufferOffset of buffers) this.disk.slab.release(bufferOffset);
    return { iops: count / elapsedSeconds, cpuMicrosPerIo: (cpu.user + cpu.system) / count };
  }

  loopEnded(): void {
    if (--this.active === 0) this.ended();
  }
}

async function transfer(disk: NativeDisk, request: Omit<DiskRequest, 'complete'>): Promise<void> {
  const result = await new Promise<number>((complete) => {
    disk.queue.submit({ ...request, complete });
  });
  if (result < 0) throw new Error(`filling the file failed: errno ${-result}`);
}

async function fill(path: string, sizeBytes: number): Promise<void> {
  const disk = createNativeDisk({ log: silentLogger });
  const file = await disk.open(path, { writable: true, create: true });
  if ((await file.allocatedBytes()) < sizeBytes) {
    const bufferOffset = disk.slab.allocate(FILL_BYTES);
    crypto.getRandomValues(disk.slab.bytes.subarray(bufferOffset, bufferOffset + 65536));
    for (let offset = 0; offset < sizeBytes; offset += FILL_BYTES) {
      const place = { bufferOffset, lengthBytes: FILL_BYTES, fileOffsetBytes: offset };
      await transfer(disk, { op: DISK_OP.write, file, ...place });
    }
    await file.sync();
  }
  await disk.shutdown();
}

async function runFio(path: string, job: Job, seconds: number): Promise<Outcome> {
  const { stdout } = await promisify(execFile)('timeout', [
    ...[String(seconds + 20), 'fio', '--name=raw', `--filename=${path}`, '--direct=1'],
    ...['--ioengine=io_uring', `--rw=${job.op === DISK_OP.read ? 'randread' : 'randwrite'}`],
    ...['--bs=4k', `--iodepth=${job.depth}`, '--time_based', `--runtime=${seconds}s`],
    ...['--norandommap', '--randrepeat=0', '--output-format=json'],
  ]);
  const report = JSON.parse(stdout) as {
    jobs: [Record<'read' | 'write', { iops: number }> & { usr_cpu: number; sys_cpu: number }];
  };
  const [result] = report.jobs;
  const iops = result[job.op === DISK_OP.read ? 'read' : 'write'].iops;
  return { iops, cpuMicrosPerIo: ((result.usr_cpu + result.sys_cpu) / 100 / iops) * 1e6 };
}

function show(name: string, outcomes: Outcome[], raw: Outcome[]): string {
  const sorted = [...outcomes].sort((a, b) => a.iops - b.iops);
  const best = sorted.at(-1) as Outcome;
  const median = sorted[Math.floor((sorted.length - 1) / 2)] as Outcome;
  // Ratio within a round: the disk itself differs from minute to minute.
  const ratios = outcomes.map((outcome, i) => outcome.iops / (raw[i]?.iops ?? Number.NaN));
  ratios.sort((a, b) => a - b);
  const ratio = ratios[Math.floor((ratios.length - 1) / 2)] as number;
  return [
    name.padEnd(10),
    `best ${best.iops.toFixed(0).padStart(7)} IOPS`,
    `median ${median.iops.toFixed(0).padStart(7)}`,
    `${median.cpuMicrosPerIo.toFixed(1).padStart(6)} us CPU/IO`,
    Number.isNaN(ratio) ? '' : `${ratio.toFixed(2)} of fio`,
  ].join('  ');
}

async function measure(
  path: string,
  job: Job,
  sizeBytes: number,
  options: Settings,
): Promise<void> {
  const results = new Map<string, Outcome[]>();
  const note = (name: string, outcome: Outcome): void => {
    results.set(name, [...(results.get(name) ?? []), outcome]);
  };
  for (let round = 0; round < options.rounds; round++) {
    if (options.hasFio) note('fio', await runFio(path, job, options.seconds));
    for (const backend of BACKENDS) {
      const disk = createNativeDisk({ backend, log: silentLogger });
      const file = await disk.open(path, { writable: true });
      const load = new Load(disk, file, job.op, sizeBytes / SECTOR_BYTES);
      note(backend, await load.run(job.depth, options.seconds));
      await disk.shutdown();
    }
  }
  console.log(`4 KiB random ${job.op === DISK_OP.read ? 'read' : 'write'}, depth ${job.depth}`);
  for (const [name, outcomes] of results) {
    console.log(`  ${show(name, outcomes, results.get('fio') ?? [])}`);
  }
}

interface Settings {
  readonly seconds: number;
  readonly rounds: number;
  readonly hasFio: boolean;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      file: { type: 'string' },
      size: { type: 'string', default: '1g' },
      seconds: { type: 'string', default: '2' },
      rounds: { type: 'string', default: '3' },
    },
  });
  const path = values.file ?? join(tmpdir(), `longhorn-disk-queue-${process.pid}.bin`);
  const sizeBytes = parseSizeBytes(values.size);
  const hasFio = await promisify(execFile)('fio', ['--version']).then(
    () => true,
    () => false,
  );
  if (!hasFio) console.log('fio is not installed: no comparison');
  const settings = { seconds: Number(values.seconds), rounds: Number(values.rounds), hasFio };
  await fill(path, sizeBytes);
  try {
    for (const op of [DISK_OP.read, DISK_OP.write]) {
      for (const depth of DEPTHS) await measure(path, { op, depth }, sizeBytes, settings);
    }
  } finally {
    if (values.file === undefined) await rm(path, { force: true });
  }
}

await main();

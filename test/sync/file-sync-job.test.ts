// In which order files of a rebuild are copied, how many at once, and what a source that fails costs.
// Receivers and transfers are real; the clock stands still, so whoever waits for time never ends.

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { StorageError } from '../../src/core/errors.js';
import { silentLogger } from '../../src/core/log.js';
import { createNativeDisk, createSlab } from '../../src/disk/native-disk.js';
import { type FileSource, syncFiles } from '../../src/sync/file-sync-job.js';
import { ReceiverPool } from '../../src/sync/receiver-pool.js';
import { sendFile } from '../../src/sync/sender.js';
import { ManualClock } from '../support/manual-clock.js';
import { freePorts } from '../support/process-stack.js';
import { sha256Of } from '../support/sync-transfer.js';

const KIB = 1024;
const HOST = '127.0.0.1';
const PORTS = 8;
/** Name → size: the records come first in the list, and the largest file last. */
const FILES: readonly (readonly [string, number])[] = [
  ['volume-snap-a.img.meta', 200],
  ['volume-snap-a.img', 64 * KIB],
  ['volume-snap-b.img.meta', 200],
  ['volume-snap-b.img', 128 * KIB],
  ['volume-snap-c.img.meta', 200],
  ['volume-snap-c.img', 256 * KIB],
];
const base = mkdtempSync(join(tmpdir(), 'file-sync-'));
const disk = createNativeDisk({ slab: createSlab(16 * 1024 * KIB), log: silentLogger });
t.teardown(async () => {
  await disk.shutdown();
  rmSync(base, { recursive: true });
});

class Bed {
  readonly clock = new ManualClock();
  readonly from: string;
  readonly into: string;
  /** Files in the order in which their transfers began, and ended. */
  readonly log: string[] = [];
  inFlightMax = 0;
  private inFlight = 0;

  constructor(name: string) {
    this.from = join(base, `${name}-from`);
    this.into = join(base, `${name}-into`);
    for (const directory of [this.from, this.into]) mkdirSync(directory);
    for (const [file, size] of FILES) writeFileSync(join(this.from, file), Buffer.alloc(size, 7));
  }

  /** @param before what each transfer waits for. */
  good(address: string, before: (name: string) => Promise<void> = async () => {}): FileSource {
    return {
      address,
      send: async ({ fromFileName, port }, signal) => {
        this.log.push(`begin ${fromFileName}`);
        this.inFlightMax = Math.max(this.inFlightMax, ++this.inFlight);
        await before(fromFileName);
        const sourcePath = join(this.from, fromFileName);
        const target = { host: HOST, port, isFastSync: false, signal };
        await sendFile({ disk, clock: this.clock, log: silentLogger, sourcePath, ...target });
        this.inFlight--;
        this.log.push(`end ${fromFileName}`);
      },
    };
  }

  broken(address: string, before: () => Promise<void> = async () => {}): FileSource {
    return {
      address,
      send: async ({ fromFileName }) => {
        await before();
        this.log.push(`fail ${fromFileName}`);
        throw new StorageError('CONNECTION_LOST', 'it is gone');
      },
    };
  }

  async run(sources: readonly FileSource[], filesAtOnce: number): Promise<void> {
    const { clock, into } = this;
    const firstPort = await freePorts(PORTS);
    const ports = { firstPort, count: PORTS };
    const common = { disk, clock, log: silentLogger, directory: into };
    const receivers = new ReceiverPool({ ...common, ports, host: HOST });
    const files = FILES.map(([name, actualSize]) => ({
      fromFileName: name,
      toFileName: name,
      actualSize: name.endsWith('.meta') ? 0 : actualSize,
      ranges: [],
    }));
    try {
      await syncFiles({
        ...common,
        receivers,
        files,
        sources,
        filesAtOnce,
        localSourceDirectory: null,
        signal: new AbortController().signal,
        onProgress: () => undefined,
        onReceived: () => undefined,
      });
    } finally {
      await receivers.close();
    }
  }
}

/** Long enough for whoever could go on to have gone on. */
async function manyTurns(): Promise<void> {
  for (let turn = 0; turn < 300; turn++) await new Promise(setImmediate);
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise(setImmediate);
}

t.test('the largest file first, records only when all data is there', async (t) => {
  const bed = new Bed('order');
  await bed.run([bed.good('a')], 1);
  const began = bed.log.filter((line) => line.startsWith('begin')).map((line) => line.slice(6));
  t.same(began.slice(0, 3), ['volume-snap-c.img', 'volume-snap-b.img', 'volume-snap-a.img']);
  t.ok(began.slice(3).every((name) => name.endsWith('.meta')));
  t.equal(bed.inFlightMax, 1);
});

t.test('several files at once, and still no record before the last of the data', async (t) => {
  const bed = new Bed('lanes');
  const slow = (name: string): Promise<void> =>
    name === 'volume-snap-c.img' ? manyTurns() : Promise.resolve();
  await bed.run([bed.good('a', slow)], 3);
  t.equal(bed.inFlightMax, 3);
  const lastData = bed.log.findLastIndex((line) => /^end .*img$/.test(line));
  const firstRecord = bed.log.findIndex((line) => line.endsWith('.meta'));
  t.ok(lastData < firstRecord, bed.log.join(', '));
});

t.test('what one source cannot send another one does, without waiting', async (t) => {
  const bed = new Bed('broken');
  await bed.run([bed.broken('a'), bed.good('b')], 4);
  const failures = bed.log.filter((line) => line.startsWith('fail'));
  t.ok(failures.length >= 1);
  t.ok(failures.length <= 2, 'the source that failed is left alone');
  for (const [name] of FILES) {
    const [from, into] = [join(bed.from, name), join(bed.into, name)];
    t.equal(await sha256Of(disk, into), await sha256Of(disk, from), name);
  }
});

t.test('a file that comes back when all others are done finds a source', async (t) => {
  const bed = new Bed('late');
  const ended = (): number => bed.log.filter((line) => /^end .*img$/.test(line)).length;
  const late = bed.broken('a', async () => {
    await until(() => ended() === 2);
    await manyTurns();
  });
  await bed.run([late, bed.good('b')], 2);
  t.equal(ended(), 3);
});

t.test('a source gets no file again that another one could still send', async (t) => {
  const bed = new Bed('again');
  let isOpen = false;
  const running = bed.run([bed.broken('a'), bed.good('b', () => until(() => isOpen))], 2);
  for (let i = 0; i < 6; i++) {
    await manyTurns();
    // Longer than any rest; in all less than a receiver waits for its sender.
    bed.clock.advance(30_000);
  }
  isOpen = true;
  await running;
  const failures = bed.log.filter((line) => line.startsWith('fail'));
  t.same(failures, [...new Set(failures)], 'none twice');
  t.ok(failures.length > 1, 'it was asked again after a rest');
});

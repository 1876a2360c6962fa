// Write intents through any history of writes, checkpoints, growth and crashes, against a model.

import fc from 'fast-check';
import t from 'tap';
import { BLOCK_OP, type BlockRequest, submitAndWait } from '../../src/core/block-device.js';
import type { ByteRange } from '../../src/core/byte-ranges.js';
import { realClock } from '../../src/core/clock-real.js';
import { silentLogger } from '../../src/core/log.js';
import { MIB } from '../../src/core/units.js';
import { Replica } from '../../src/replica/replica.js';
import { INTENTS_FILE } from '../../src/replica/write-intents.js';
import { EVERYTHING_SURVIVES, MemoryDisk, NOTHING_SURVIVES } from '../support/memory-disk.js';
import {
  DIRECTORY,
  Next,
  WRITE_BYTES,
  covers,
  newDisk,
  open,
  write,
} from '../support/intents-bed.js';

type Step = { kind: 'write'; region: number } | { kind: 'begin' | 'end' | 'reopen' | 'grow' };

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('write' as const), region: fc.nat(63) }) },
  { weight: 2, arbitrary: fc.constant<Step>({ kind: 'begin' }) },
  { weight: 2, arbitrary: fc.constant<Step>({ kind: 'end' }) },
  { weight: 1, arbitrary: fc.constant<Step>({ kind: 'reopen' }) },
  { weight: 1, arbitrary: fc.constant<Step>({ kind: 'grow' }) },
);

/** Runs steps with a simple model; stops at the first failure (the power cut). */
class Model {
  readonly disk: MemoryDisk;
  readonly next: Next;
  hasOpened = false;
  /** Writes that may not be forgotten. */
  previous: ByteRange[] = [];
  current: ByteRange[] = [];

  constructor(disk: MemoryDisk) {
    this.disk = disk;
    this.next = new Next(60_000 * MIB);
  }

  get wanted(): ByteRange[] {
    return [...this.previous, ...this.current, ...this.next.arrived];
  }

  async run(steps: readonly Step[]): Promise<void> {
    let intents = await open(this.disk, this.next);
    this.hasOpened = true;
    for (const step of steps) {
      if (step.kind === 'write') await write(intents, step.region * 900 * MIB);
      this.current.push(...this.next.arrived.splice(0));
      if (step.kind === 'begin') {
        await intents.begin();
        this.previous.push(...this.current.splice(0));
      } else if (step.kind === 'end') {
        // From its call on, the old set may be forgotten.
        this.previous = [];
        await intents.end();
      } else if (step.kind === 'reopen') {
        await intents.close();
        intents = await open(this.disk, this.next);
        this.previous.push(...this.current.splice(0));
      } else if (step.kind === 'grow') {
        await intents.grow(this.next.sizeBytes * 2);
        this.next.sizeBytes *= 2;
      }
      if (!covers(intents.ranges(), this.wanted)) throw new Error('forgotten while open');
      const none = { isUnknown: intents.ranges() === null };
      if (none.isUnknown) throw new Error('unknown for no reason');
    }
    await intents.close();
  }
}

t.test(
  'a power cut after any disk call: every write that went on is known at the next open',
  async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { minLength: 1, maxLength: 14 }),
        fc.nat(80),
        fc.integer({ min: 0, max: 0xffff }),
        async (steps, cutAfter, survivorBits) => {
          const disk = await newDisk();
          const model = new Model(disk);
          disk.crashAfter(cutAfter);
          await model.run(steps).catch((error: unknown) => {
            if (!disk.isCrashed) throw error;
          });
          disk.restart(
            survivorBits === 0
              ? NOTHING_SURVIVES
              : {
                  page: (_path, index) => ((survivorBits >> ((index + 1) & 15)) & 1) === 1,
                  directoryChanges: (_path, count) => Math.min(count, survivorBits & 3),
                },
          );
          const again = await open(disk, model.next, { isMissingUnknown: true });
          if (!covers(again.ranges(), model.wanted)) throw new Error('a write was forgotten');
          if (model.hasOpened && again.ranges() === null) throw new Error('unknown for no reason');
          await again.close();
        },
      ),
      { numRuns: 150 },
    );
  },
);

t.test('a power cut after each single call of one long history, cache kept or lost', async (t) => {
  const steps: Step[] = [
    { kind: 'write', region: 1 },
    { kind: 'begin' },
    { kind: 'write', region: 2 },
    { kind: 'end' },
    { kind: 'write', region: 3 },
    { kind: 'begin' },
    { kind: 'write', region: 4 },
    { kind: 'begin' },
    { kind: 'write', region: 5 },
    { kind: 'grow' },
    { kind: 'write', region: 6 },
    { kind: 'reopen' },
    { kind: 'write', region: 7 },
    { kind: 'begin' },
    { kind: 'end' },
    { kind: 'write', region: 8 },
  ];
  for (const survivors of [NOTHING_SURVIVES, EVERYTHING_SURVIVES]) {
    for (let cut = 0; ; cut++) {
      const disk = await newDisk();
      const model = new Model(disk);
      disk.crashAfter(cut);
      await model.run(steps).catch(() => undefined);
      if (!disk.isCrashed) break;
      disk.restart(survivors);
      const again = await open(disk, model.next, { isMissingUnknown: true });
      t.ok(covers(again.ranges(), model.wanted), `after ${cut} calls`);
      await again.close();
    }
  }
});

t.test(
  'a replica knows its writes after a crash, except those of an engine without checkpoints',
  async (t) => {
    const disk = new MemoryDisk();
    const replica = await Replica.at({
      hostBootId: 'boot-1',
      newId: () => 'replica-one',
      disk,
      directory: DIRECTORY,
      clock: realClock,
      log: silentLogger,
      revisionCounter: false,
      encrypted: false,
      unmapMarkDiskChainRemoved: false,
      snapshotMaxCount: 250,
      snapshotMaxBytes: 0,
    });
    const openBy = (engineGeneration: number): Promise<void> =>
      replica.open({ isUpgrade: false, expectedBytes: 0, engineGeneration });
    const bufferOffset = disk.slab.allocate(WRITE_BYTES);
    const writeAt = (offsetBytes: number): Promise<BlockRequest> =>
      submitAndWait(replica, {
        op: BLOCK_OP.write,
        offsetBytes,
        lengthBytes: WRITE_BYTES,
        bufferOffset,
      });
    await replica.create(16 * MIB);
    await openBy(5);
    await writeAt(3 * MIB);
    await replica.abandon();
    await t.rejects(replica.beginCheckpoint(), { code: 'NOT_OPEN' });
    await openBy(6);
    t.same(await replica.writeIntents(), [{ beginOffset: 3 * MIB, endOffset: 4 * MIB }]);
    await replica.expand(32 * MIB);
    await writeAt(20 * MIB);
    await replica.beginCheckpoint();
    await replica.endCheckpoint();
    t.same(await replica.writeIntents(), []);
    await replica.close();
    await openBy(0);
    await writeAt(0);
    await replica.close();
    await openBy(7);
    t.equal(await replica.writeIntents(), null);
    await replica.delete();
    t.notOk((await disk.list(DIRECTORY)).includes(INTENTS_FILE));
  },
);

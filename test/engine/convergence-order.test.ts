// Convergence under clients, with the replicas' answers in any order: many seeds.

import t from 'tap';
import { StorageError } from '../../src/core/errors.js';
import { KIB, MIB, SECTOR_BYTES } from '../../src/core/units.js';
import { settle } from '../support/engine-bed.js';
import type { MemoryReplica } from '../support/memory-replica.js';
import {
  differing,
  memberOf,
  range,
  read,
  slabIsWhole,
  write,
} from '../support/convergence-bed.js';

/** Numbers in [0, limit) that are the same in each run of a seed. */
function randomOf(seed: number): (limit: number) => number {
  let state = seed * 2654435761 + 1;
  return (limit) => {
    state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9) | 0;
    return (state >>> 8) % limit;
  };
}

/** Clients at work in any order of answers, and perhaps a member lost on the way. */
async function convergeUnderLoad(seed: number): Promise<string | null> {
  const random = randomOf(seed);
  const bed = differing(3, MIB);
  for (const { device } of bed.replicas) device.isHolding = true;
  const sectors = 48;
  /** Answered values of a sector, as far as they are known; −1: any. */
  const expected = new Array<number>(sectors).fill(-1);
  const submitted = new Array<number>(sectors).fill(0);
  /** What a read found where nobody had written; the same again, while the reference stays. */
  const found = new Map<number, number>();
  const at = (sector: number): number => sector * 16 * KIB;
  const begin = random(2) === 0 ? null : [range(0, 300 * KIB), range(500 * KIB, 600 * KIB)];
  bed.convergence.add(begin, memberOf(bed, random(3)));
  const isListed = (sector: number): boolean =>
    begin === null || begin.some((r) => r.beginOffset <= at(sector) && at(sector) < r.endOffset);
  let wrong: string | null = null;
  const pending: Promise<unknown>[] = [];
  const losesAt = random(4) === 0 ? 20 + random(40) : -1;
  for (let step = 0; step < 120; step++) {
    const sector = random(sectors);
    const kind = random(8);
    if (kind < 2 && step < 100) {
      const value = 10 + step;
      submitted[sector] = value;
      pending.push(
        write(bed, at(sector), SECTOR_BYTES, value).then(() => {
          expected[sector] = value;
        }),
      );
    } else if (kind === 2) {
      const before = expected[sector] as number;
      pending.push(
        read(bed, at(sector), SECTOR_BYTES).then((value) => {
          const first = value < 10 && isListed(sector) ? found.get(sector) : undefined;
          if (value < 10) found.set(sector, value);
          if (losesAt < 0 && first !== undefined && first !== value) {
            wrong = `read ${value} after ${first}, both unwritten`;
          }
          if (value < 10 && before >= 10) wrong = `read ${value} after ${before} was answered`;
          if (value >= 10 && value < before) wrong = `read ${value} after ${before}`;
        }),
      );
    } else if (kind === 3 && random(6) === 0) {
      pending.push(bed.volume.withBarrier(() => Promise.resolve()));
    }
    if (step === losesAt) {
      const index = random(3);
      const error = new StorageError('CONNECTION_LOST', 'EOF');
      bed.membership.fail(memberOf(bed, index), error);
      (bed.replicas[index] as MemoryReplica).lose(error);
    }
    for (const { device } of bed.replicas) {
      if (device.held.length > 0 && random(3) > 0) device.release(random(device.held.length));
    }
    await settle();
  }
  for (const { device } of bed.replicas) device.isHolding = false;
  for (const { device } of bed.replicas) device.release();
  await Promise.all(pending);
  await bed.convergence.whenDone();
  const left = bed.membership.readable.map((m) => bed.replicas.find((r) => r === m.port)?.device);
  const first = left[0]?.content as Uint8Array;
  for (const [sector, value] of submitted.entries()) {
    if (value > 0 && first[at(sector)] !== value) wrong = `sector ${sector} lost ${value}`;
  }
  for (const { beginOffset, endOffset } of begin ?? [range(0, MIB)]) {
    const wanted = Buffer.from(first.subarray(beginOffset, endOffset));
    for (const device of left) {
      const copy = device?.content.subarray(beginOffset, endOffset) ?? new Uint8Array();
      if (!wanted.equals(copy)) wrong = 'members differ at the end';
    }
  }
  return slabIsWhole(bed) ? wrong : 'a buffer is not given back';
}

t.test('under any order of answers no write is lost and members end alike', async (t) => {
  const wrong: string[] = [];
  for (let seed = 1; seed <= 30; seed++) {
    const found = await convergeUnderLoad(seed);
    if (found !== null) wrong.push(`seed ${seed}: ${found}`);
  }
  t.same(wrong, []);
});

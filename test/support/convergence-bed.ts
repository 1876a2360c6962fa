// A volume and its convergence over replicas in memory, whose answers and failures the test controls.

import { BLOCK_OP, submitAndWait } from '../../src/core/block-device.js';
import type { ByteRange } from '../../src/core/byte-ranges.js';
import type { StorageError } from '../../src/core/errors.js';
import { silentLogger } from '../../src/core/log.js';
import { Slab, SLAB_BYTES } from '../../src/core/slab.js';
import { MIB } from '../../src/core/units.js';
import { Convergence, PIECE_BYTES_MAX } from '../../src/engine/convergence.js';
import { type Member, Membership } from '../../src/engine/membership.js';
import { Volume } from '../../src/engine/volume.js';
import { ManualClock } from './manual-clock.js';
import { MemoryReplica } from './memory-replica.js';

export const PIECE = PIECE_BYTES_MAX;

/** A volume over replicas that are filled with 1, 2, 3…, as if nothing of them agreed. */
export function differing(count: number, sizeBytes = MIB) {
  const slab = new Slab(new ArrayBuffer(SLAB_BYTES));
  const clock = new ManualClock();
  const membership = new Membership();
  const replicas: MemoryReplica[] = [];
  for (let i = 0; i < count; i++) {
    const replica = new MemoryReplica(`tcp://r${i}:9502`, slab, sizeBytes);
    replica.device.content.fill(i + 1);
    replica.device.allocated.fill(1);
    replicas.push(replica);
    membership.add(replica.address, 'RW', replica);
  }
  const failMember = (member: Member, error: StorageError): void => {
    membership.fail(member, error);
  };
  const gate = { isSettled: true, wait: () => undefined };
  const volume = new Volume({ membership, clock, gate, failMember });
  volume.resize(sizeBytes);
  const bed = { slab, clock, membership, replicas, volume, doneCount: 0 };
  const log = silentLogger;
  const done = (): void => {
    bed.doneCount++;
  };
  const convergence = new Convergence({ membership, volume, slab, clock, log, failMember, done });
  volume.diverged = (range) => convergence.add([range]);
  return { ...bed, convergence, counts: bed };
}

export type Bed = ReturnType<typeof differing>;

export function deviceOf(bed: Bed, index: number): MemoryReplica['device'] {
  return (bed.replicas[index] as MemoryReplica).device;
}

export function memberOf(bed: Bed, index: number): Member {
  return bed.membership.all[index] as Member;
}

export function modes(bed: Bed): string[] {
  return bed.membership.all.map(({ mode }) => mode);
}

export async function write(
  bed: Bed,
  offsetBytes: number,
  lengthBytes: number,
  fill: number,
): Promise<void> {
  const bufferOffset = bed.slab.allocate(lengthBytes);
  bed.slab.bytes.fill(fill, bufferOffset, bufferOffset + lengthBytes);
  try {
    const op = BLOCK_OP.write;
    await submitAndWait(bed.volume, { op, offsetBytes, lengthBytes, bufferOffset });
  } finally {
    bed.slab.release(bufferOffset);
  }
}

/** The byte that all of the range has, or -1. */
export async function read(bed: Bed, offsetBytes: number, lengthBytes: number): Promise<number> {
  const bufferOffset = bed.slab.allocate(lengthBytes);
  try {
    const op = BLOCK_OP.read;
    await submitAndWait(bed.volume, { op, offsetBytes, lengthBytes, bufferOffset });
    const bytes = bed.slab.bytes.subarray(bufferOffset, bufferOffset + lengthBytes);
    const first = bytes[0] as number;
    return bytes.every((byte) => byte === first) ? first : -1;
  } finally {
    bed.slab.release(bufferOffset);
  }
}

export function range(beginOffset: number, endOffset: number): ByteRange {
  return { beginOffset, endOffset };
}

/** What is sent to a replica from now on: [op, offset, length]. */
export function watch(bed: Bed, index: number): [number, number, number][] {
  const seen: [number, number, number][] = [];
  deviceOf(bed, index).failWith = ({ op, offsetBytes, lengthBytes }) => {
    seen.push([op, offsetBytes, lengthBytes]);
    return null;
  };
  return seen;
}

export function writesOf(seen: readonly [number, number, number][]): [number, number][] {
  return seen.flatMap(([op, at, length]) => (op === BLOCK_OP.write ? [[at, length]] : []));
}

export function slabIsWhole(bed: Bed): boolean {
  return bed.slab.freeCounts().every(({ freeCount, count }) => freeCount === count);
}

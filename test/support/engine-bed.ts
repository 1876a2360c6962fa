// An engine over replicas in memory, and a client's few operations on its volume.

import { randomUUID } from 'node:crypto';
import { BLOCK_OP, submitAndWait } from '../../src/core/block-device.js';
import { silentLogger } from '../../src/core/log.js';
import { Slab, SLAB_BYTES } from '../../src/core/slab.js';
import { MIB } from '../../src/core/units.js';
import { Engine } from '../../src/engine/engine.js';
import { defaultSettings } from '../../src/engine/settings.js';
import { ManualClock } from './manual-clock.js';
import { memoryConnector, MemoryReplica } from './memory-replica.js';

export const VOLUME_BYTES = MIB;

export interface Bed {
  readonly clock: ManualClock;
  readonly engine: Engine;
  readonly slab: Slab;
  readonly replicas: MemoryReplica[];
}

export async function startEngine(replicaCount: number, spare = 0): Promise<Bed> {
  const slab = new Slab(new ArrayBuffer(SLAB_BYTES + MIB));
  const addresses = Array.from({ length: replicaCount + spare }, (_, i) => `tcp://r${i}:9502`);
  const replicas = addresses.map((address) => new MemoryReplica(address, slab, VOLUME_BYTES));
  const clock = new ManualClock();
  const engine = new Engine({
    settings: { ...defaultSettings('vol'), revisionCounterDisabled: true },
    connector: memoryConnector(replicas),
    slab,
    clock,
    log: silentLogger,
    newId: randomUUID,
    random: () => 0.5,
  });
  await engine.start({
    addresses: addresses.slice(0, replicaCount),
    sizeBytes: VOLUME_BYTES,
    currentSizeBytes: VOLUME_BYTES,
  });
  return { clock, engine, slab, replicas };
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
    await submitAndWait(bed.engine.volume, { op, offsetBytes, lengthBytes, bufferOffset });
  } finally {
    bed.slab.release(bufferOffset);
  }
}

export async function read(bed: Bed, offsetBytes: number, lengthBytes: number): Promise<Buffer> {
  const bufferOffset = bed.slab.allocate(lengthBytes);
  try {
    const op = BLOCK_OP.read;
    await submitAndWait(bed.engine.volume, { op, offsetBytes, lengthBytes, bufferOffset });
    return Buffer.from(bed.slab.bytes.subarray(bufferOffset, bufferOffset + lengthBytes));
  } finally {
    bed.slab.release(bufferOffset);
  }
}

export function replicaOf(bed: Bed, index: number): MemoryReplica {
  return bed.replicas[index] as MemoryReplica;
}

export function contentOf(replica: MemoryReplica, beginOffset: number, endOffset: number): Buffer {
  return Buffer.from(replica.device.content.subarray(beginOffset, endOffset));
}

export function modes(bed: Bed): string[] {
  return bed.engine.replicas.map((member) => member.mode);
}

/** Lets promises that are ready run. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 300; i++) await Promise.resolve();
}

// Slab memory of simulated processes. Slabs are large but hardly touched, so their memory is kept
// for the next process; what a buffer held before is scrambled when it is handed out.

import { Slab, SLAB_BYTES } from '../../src/core/slab.js';
import { KIB, MIB } from '../../src/core/units.js';
import { connectionRegionsBytes } from '../../src/transport/connection-memory.js';

/** Connections of one process, those that are about to end included. */
export const CONNECTIONS_PER_PROCESS_MAX = 48;
const MEMORY_BYTES =
  SLAB_BYTES + connectionRegionsBytes(CONNECTIONS_PER_PROCESS_MAX) + 4 * MIB + 64 * KIB;
const SCRAMBLED_BYTES_MAX = 64 * KIB;
const GARBAGE = 0xe7;

const free: ArrayBuffer[] = [];

export class SimSlab extends Slab {
  static take(): SimSlab {
    return new SimSlab(free.pop() ?? new ArrayBuffer(MEMORY_BYTES));
  }

  /** Nobody uses it any more. */
  give(): void {
    free.push(this.memory);
  }

  override allocate(lengthBytes: number): number {
    const offset = super.allocate(lengthBytes);
    if (offset >= 0) {
      this.bytes.fill(GARBAGE, offset, offset + Math.min(lengthBytes, SCRAMBLED_BYTES_MAX));
    }
    return offset;
  }

  override reserve(lengthBytes: number): number {
    const offset = super.reserve(lengthBytes);
    // Regions of zeros rely on fresh memory; those of connections are cleared where it matters.
    if (lengthBytes <= SCRAMBLED_BYTES_MAX * 2) this.bytes.fill(0, offset, offset + lengthBytes);
    return offset;
  }
}

// The jobs that every target is measured with: 4 KiB at random in three depths, 1 MiB in order.

import { KIB, MIB } from '../src/core/units.js';
import type { FioJob } from './fio.js';

export interface Cell {
  readonly name: string;
  readonly job: FioJob;
}

function random(rw: FioJob['rw'], depth: number): Cell {
  return { name: `${rw}-qd${depth}`, job: { rw, blockBytes: 4 * KIB, depth } };
}

function sequential(rw: FioJob['rw']): Cell {
  return { name: `${rw}-1m-qd4`, job: { rw, blockBytes: MIB, depth: 4 } };
}

export const CELLS: readonly Cell[] = [
  random('randread', 1),
  random('randread', 32),
  random('randread', 128),
  random('randwrite', 1),
  random('randwrite', 32),
  random('randwrite', 128),
  sequential('read'),
  sequential('write'),
];

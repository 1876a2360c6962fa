// Reads a replica's directory without its help, as a second opinion: which value each cell has, seen
// by a process or as it would be after losing power now. It shares no code with the image chain.

import { SECTOR_BYTES } from '../../src/core/units.js';
import { decodeSlot } from '../../src/replica/roster-record.js';
import { ROSTER_FILE, ROSTER_SLOT_BYTES } from '../../src/replica/roster-store.js';
import type { PeekedFile, SimDisk } from './disk.js';
import { CELL_BYTES } from './model.js';

/** More than a roster takes here. */
const ROSTER_READ_BYTES = 16 * 1024;
const CELLS_PER_SECTOR = SECTOR_BYTES / CELL_BYTES;

/** A cell whose bytes are no value anybody wrote. */
export const MIXED = -1;

export class ChainPeek {
  private readonly disk: SimDisk;
  private readonly directory: string;

  constructor(disk: SimDisk, directory: string) {
    this.disk = disk;
    this.directory = directory;
  }

  /** Layers from the top down. @param top disk name; default: the head. @throws when it is broken. */
  layers(isDurable: boolean, top?: string): PeekedFile[] {
    const meta = this.json('volume.meta', isDurable);
    const layers: PeekedFile[] = [];
    for (let name = top ?? String(meta['Head']); name !== ''; ) {
      const file = this.disk.peek(`${this.directory}/${name}`, isDurable);
      if (file === null) throw new Error(`${name} is missing`);
      layers.push(file);
      if (layers.length > 300) throw new Error('the chain has a cycle');
      name = String(this.json(`${name}.meta`, isDurable)['Parent'] ?? '');
    }
    return layers;
  }

  /** Members of the newest roster that is on stable storage; null without one. */
  rosterMembers(): readonly string[] | null {
    const file = this.disk.peek(`${this.directory}/${ROSTER_FILE}`, true);
    if (file === null) return null;
    const slots = [0, ROSTER_SLOT_BYTES].map((at) => decodeSlot(pagesAt(file, at)));
    const [first = null, second = null] = slots;
    const newest = (first?.sequence ?? -1) > (second?.sequence ?? -1) ? first : second;
    return newest?.record.roster?.members ?? null;
  }

  /** Disk names of snapshots that are there and not removed. */
  snapshotDisks(): string[] {
    return (
      this.disk
        .names(this.directory)
        .filter((name) => /^volume-snap-.*\.img$/.test(name))
        // A crash may leave an image whose record is gone, until it is cleared away.
        .filter((name) => this.disk.peek(`${this.directory}/${name}.meta`, false) !== null)
        .filter((name) => this.json(`${name}.meta`, false)['Removed'] !== true)
    );
  }

  cells(layers: readonly PeekedFile[], firstCell: number, count: number): number[] {
    const values: number[] = [];
    for (let cell = firstCell; cell < firstCell + count; cell++) {
      values.push(valueAt(layers, cell));
    }
    return values;
  }

  private json(name: string, isDurable: boolean): Record<string, unknown> {
    const file = this.disk.peek(`${this.directory}/${name}`, isDurable);
    if (file === null) throw new Error(`${name} is missing`);
    return JSON.parse(file.text()) as Record<string, unknown>;
  }
}

function pagesAt(file: PeekedFile, offset: number): Buffer {
  const bytes = Buffer.alloc(ROSTER_READ_BYTES);
  for (let at = 0; at < bytes.length; at += SECTOR_BYTES) {
    const page = file.page((offset + at) / SECTOR_BYTES);
    if (page instanceof Uint8Array) bytes.set(page, at);
  }
  return bytes;
}

function valueAt(layers: readonly PeekedFile[], cell: number): number {
  const sector = Math.floor(cell / CELLS_PER_SECTOR);
  for (const layer of layers) {
    const page = layer.page(sector);
    if (page === undefined) continue;
    if (page === null) return 0;
    return cellValue(page, (cell % CELLS_PER_SECTOR) * CELL_BYTES);
  }
  return 0;
}

/** Every word of a cell is its value. */
export function cellValue(bytes: Uint8Array, at: number): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, CELL_BYTES);
  const value = view.getUint32(0, true);
  for (const word of [1, 31, 63, 64, 100, 127]) {
    if (view.getUint32(word * 4, true) !== value) return MIXED;
  }
  return value;
}

export function fillCells(
  bytes: Uint8Array,
  offset: number,
  lengthBytes: number,
  value: number,
): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset + offset, lengthBytes);
  for (let at = 0; at < lengthBytes; at += 4) view.setUint32(at, value, true);
}

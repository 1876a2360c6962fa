// The open layers of a chain, from the root (or backing file) to the head, and the index that says
// which of them owns a sector. It knows files, not metadata. Ids in the index are stable: a new
// head takes a new id, and a merged layer's ids are passed on, so most changes touch no sector.

import { assert } from '../core/assert.js';
import { alignUp, SECTOR_BYTES } from '../core/units.js';
import type { Disk, DiskFile } from '../disk/disk.js';
import { OWNER_MAX, OwnerIndex, type ExtentSource } from './owner-index.js';

/** Extents asked for at a time. */
const EXTENT_BATCH = 1024;
/** Layers asked side by side for their extents; what they answer is kept until all have. */
const SCAN_LAYERS = 8;

export interface Layer {
  /** Disk name, or the path of a backing file. */
  diskName: string;
  file: DiskFile;
  /** Apparent size of the file; what lies beyond reads zero. */
  imageBytes: number;
  readonly isBackingFile: boolean;
  /** False for a backing file on a file system without extents: nothing is below, all is data. */
  readonly listsExtents: boolean;
}

export type RangeVisitor = (beginOffset: number, endOffset: number) => void;

/**
 * Visits the data of a layer's file within a range. Any extent counts, unwritten ones too: they
 * were put there to hide older layers (facts: on-disk §4).
 */
export async function visitExtents(
  layer: Layer,
  beginOffset: number,
  endOffset: number,
  visit: RangeVisitor,
): Promise<void> {
  const end = Math.min(endOffset, alignUp(layer.imageBytes, SECTOR_BYTES));
  if (!layer.listsExtents && beginOffset < end) {
    visit(beginOffset, end);
    return;
  }
  for (let begin = beginOffset; begin < end; ) {
    const extents = await layer.file.extents(begin, end, EXTENT_BATCH);
    for (const extent of extents) visit(extent.beginOffset, extent.endOffset);
    if (extents.length < EXTENT_BATCH) return;
    begin = (extents.at(-1) as { endOffset: number }).endOffset;
  }
}

/** The data of a layer within a range: begin, end, begin, end … */
async function rangesOf(layer: Layer, beginOffset: number, endOffset: number): Promise<number[]> {
  const edges: number[] = [];
  await visitExtents(layer, beginOffset, endOffset, (begin, end) => edges.push(begin, end));
  return edges;
}

export class LayerStack implements ExtentSource {
  readonly disk: Disk;
  readonly index: OwnerIndex;
  /** Root (or backing file) first, head last. */
  private layers: Layer[];
  private byId: (Layer | null)[] = [];
  private currentHeadId = 0;

  /** @param layers root first, head last; never empty. */
  constructor(disk: Disk, layers: Layer[], sizeBytes: number) {
    assert(layers.length > 0, 'a chain has a head');
    this.disk = disk;
    this.layers = layers;
    this.index = new OwnerIndex(sizeBytes, this);
    this.numberLayers();
  }

  get head(): Layer {
    return this.layers[this.layers.length - 1] as Layer;
  }

  /** Index id of the head. */
  get headId(): number {
    return this.currentHeadId;
  }

  get count(): number {
    return this.layers.length;
  }

  /** Root first, head last. */
  all(): readonly Layer[] {
    return this.layers;
  }

  find(diskName: string): Layer | undefined {
    return this.layers.find((layer) => layer.diskName === diskName);
  }

  /** @param id an owner from the index, not OWNER_NONE. */
  layerOf(id: number): Layer {
    const layer = this.byId[id];
    assert(layer !== null && layer !== undefined, 'every owner in the index is a layer');
    return layer;
  }

  /** True when no layer lies below this one, so that a hole in it reads zero. */
  isLowest(layer: Layer): boolean {
    return this.layers[0] === layer;
  }

  /** A new empty head above the present one, which is frozen from now on. */
  pushHead(head: Layer): void {
    let id = this.byId.indexOf(null, 1);
    if (id < 0) {
      this.compactIds();
      id = this.byId.indexOf(null, 1);
    }
    assert(id > 0, 'a chain has fewer layers than ids');
    this.layers.push(head);
    this.byId[id] = head;
    this.currentHeadId = id;
  }

  /** The child's file now holds the parent's data too: what the parent owned is the child's. */
  mergeInto(parent: Layer, child: Layer): void {
    for (let id = 1; id <= OWNER_MAX; id++) if (this.byId[id] === parent) this.byId[id] = child;
    this.layers = this.layers.filter((layer) => layer !== parent);
  }

  /** The files of a parent and its child have swapped their names. They share no data. */
  exchange(parent: Layer, child: Layer): void {
    const at = this.layers.indexOf(parent);
    assert(this.layers[at + 1] === child, 'a child lies right above its parent');
    const { diskName } = parent;
    parent.diskName = child.diskName;
    child.diskName = diskName;
    parent.imageBytes = Math.max(parent.imageBytes, child.imageBytes);
    this.layers[at] = child;
    this.layers[at + 1] = parent;
  }

  /** A layer is gone with its data; what it owned falls to older layers. */
  drop(layer: Layer): void {
    this.layers = this.layers.filter((other) => other !== layer);
    this.index.reset();
    this.numberLayers();
  }

  async scan(
    beginOffset: number,
    endOffset: number,
    found: (owner: number, beginOffset: number, endOffset: number) => void,
  ): Promise<void> {
    const { layers } = this;
    for (let first = 0; first < layers.length; first += SCAN_LAYERS) {
      const some = layers.slice(first, first + SCAN_LAYERS);
      const ranges = await Promise.all(some.map((l) => rangesOf(l, beginOffset, endOffset)));
      some.forEach((layer, i) => {
        const id = layer === this.head ? this.currentHeadId : this.byId.indexOf(layer);
        const edges = ranges[i] as number[];
        for (let edge = 0; edge < edges.length; edge += 2) {
          found(id, edges[edge] as number, edges[edge + 1] as number);
        }
      });
    }
  }

  async closeFiles(): Promise<void> {
    await Promise.all(this.layers.map((layer) => layer.file.close()));
  }

  private numberLayers(): void {
    this.byId = [null, ...this.layers];
    while (this.byId.length <= OWNER_MAX) this.byId.push(null);
    this.currentHeadId = this.layers.length;
  }

  /** Gives the layers the ids 1, 2, 3 … and renames them in the index. */
  private compactIds(): void {
    const renamed = new Uint8Array(OWNER_MAX + 1);
    for (let id = 1; id <= OWNER_MAX; id++) {
      const layer = this.byId[id];
      if (layer !== null && layer !== undefined) renamed[id] = this.layers.indexOf(layer) + 1;
    }
    this.index.rename(renamed);
    this.numberLayers();
  }
}

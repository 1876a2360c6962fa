// Marking disks as removed, and what must then be done to get rid of them. A mark only hides a
// snapshot; its data goes when the actions planned here are carried out, or when a trim reclaims it.

import { StorageError } from '../core/errors.js';
import type { RemoveAction } from './chain.js';
import type { ChainState } from './chain-state.js';
import type { Layer } from './layer-stack.js';
import type { DiskRecord } from './metadata.js';
import type { RemovedAncestors } from './trim-operation.js';

/** Unknown names give no actions. @throws INVALID_STATE for the head and unmarked disks. */
export function planRemoval(state: ChainState, name: string): RemoveAction[] {
  const { table, meta } = state;
  const record = table.find(name);
  if (record === undefined) return [];
  const source = record.name;
  if (source === meta.head) {
    throw new StorageError('INVALID_STATE', 'cannot delete the active differencing disk', { name });
  }
  if (!record.removed) {
    throw new StorageError('INVALID_STATE', `disk ${source} hasn't been marked as removed`, {
      name,
    });
  }
  const children = table.children(source);
  const target = children[0];
  // Removing, pruning or merging would change what an absent replica is compared with.
  const isPinned = state.pinnedDisks.has(source) || state.pinnedDisks.has(target ?? '');
  if (isPinned) return [];
  if (target === undefined) return [{ action: 'remove', source, target: '' }];
  // A branch point stays until only one branch is left.
  if (children.length > 1) return [];
  if (target === meta.head) return [{ action: 'prune', source, target }];
  return [
    { action: 'coalesce', source, target },
    { action: 'replace', source, target },
  ];
}

export class RemovalMarks implements RemovedAncestors {
  private readonly state: ChainState;
  private marking: Promise<void> | null = null;

  constructor(state: ChainState) {
    this.state = state;
  }

  /** Unknown names succeed. @throws INVALID_STATE for the head; NOT_FOUND without an image. */
  async markRemoved(name: string): Promise<void> {
    const { table, meta, store } = this.state;
    const record = table.find(name);
    if (record === undefined) return;
    if (record.name === meta.head) {
      const text = 'cannot mark the active differencing disk as removed';
      throw new StorageError('INVALID_STATE', text, { name });
    }
    await store.disk.stat(store.path(record.name));
    await this.mark(record);
  }

  /** Called while the caller holds a range, so that the chain stands still. */
  async belowHead(mark: boolean): Promise<Layer[]> {
    if (mark) await this.markAncestors();
    const layers: Layer[] = [];
    for (const record of this.ancestorsWithOneChild()) {
      const layer = this.state.io.stack.find(record.name);
      if (!record.removed || layer === undefined) break;
      layers.push(layer);
    }
    return layers;
  }

  private async mark(record: DiskRecord): Promise<void> {
    if (record.removed) return;
    const removed = { ...record, removed: true };
    await this.state.store.writeDisk(removed);
    this.state.table.put(removed);
  }

  private async markAncestors(): Promise<void> {
    while (this.marking !== null) await this.marking;
    const unmarked = this.ancestorsWithOneChild().filter((record) => !record.removed);
    if (unmarked.length === 0) return;
    this.marking = (async (): Promise<void> => {
      for (const record of unmarked) await this.mark(record);
    })();
    try {
      await this.marking;
    } finally {
      this.marking = null;
    }
  }

  /** From the head's parent up to the first disk that another branch depends on. */
  private ancestorsWithOneChild(): DiskRecord[] {
    const { table, meta } = this.state;
    const records: DiskRecord[] = [];
    for (const name of table.chainFrom(meta.head).slice(1)) {
      const record = table.get(name);
      if (record === undefined || table.children(name).length > 1) break;
      records.push(record);
    }
    return records;
  }
}

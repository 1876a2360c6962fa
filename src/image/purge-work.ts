// The long steps of a purge on an open chain: they check what may be done, keep the disks concerned
// from being removed meanwhile, and run next to I/O and to other changes.

import { StorageError } from '../core/errors.js';
import type { WorkOptions } from './chain-info.js';
import { checkNotBusy, checkNotPinned, checkWritable, type ChainState } from './chain-state.js';
import { Coalescer, pruneBehind } from './coalesce.js';
import type { Layer } from './layer-stack.js';
import { CHECKSUM_SUFFIX } from './names.js';
import { openLayer } from './opening.js';

export class PurgeWork {
  private readonly state: ChainState;
  private readonly running = new Set<Promise<void>>();

  constructor(state: ChainState) {
    this.state = state;
  }

  /** Makes one file, of the name of a removed snapshot (source), of its data and its only child's (target). */
  async coalesce(source: string, target: string, options: WorkOptions): Promise<void> {
    checkWritable(this.state);
    const { table, meta } = this.state;
    const parent = table.find(source);
    const child = table.find(target);
    const isPair =
      parent !== undefined &&
      child !== undefined &&
      parent.removed &&
      child.parent === parent.name &&
      child.name !== meta.head &&
      table.children(parent.name).length === 1;
    if (!isPair) {
      const text = `cannot coalesce ${target} into ${source}: not a removed parent and its only child`;
      throw new StorageError('INVALID_STATE', text, { source, target });
    }
    const isLowest = parent.parent === '' && meta.backingFilePath === '';
    await this.whileBusy([parent.name, child.name], () =>
      this.withLayer(parent.name, (parentLayer) =>
        this.withLayer(child.name, (childLayer) =>
          new Coalescer(this.state.io, parentLayer, childLayer, isLowest, options).run(() =>
            this.exchangeNames(parent.name, child.name),
          ),
        ),
      ),
    );
  }

  /**
   * The files of a parent and its child swap their names: what was the parent's file is the upper
   * one from now on. They have no data at the same place, so nobody sees a difference.
   */
  private async exchangeNames(parentName: string, childName: string): Promise<boolean> {
    const { store, io, log } = this.state;
    await store.removeIfPresent(parentName + CHECKSUM_SUFFIX);
    await store.removeIfPresent(childName + CHECKSUM_SUFFIX);
    const held = await io.quiesce();
    try {
      await store.disk.exchange(store.path(parentName), store.path(childName));
      const parent = io.stack.find(parentName);
      const child = io.stack.find(childName);
      if (parent !== undefined && child !== undefined) io.stack.exchange(parent, child);
    } catch (error) {
      if (error instanceof StorageError && error.code === 'UNSUPPORTED') return false;
      throw error;
    } finally {
      held.release();
    }
    // Data may go down only into a file that is below for good.
    await store.syncDirectory();
    log.info('image.disks.exchanged', { parentName, childName });
    return true;
  }

  /** Punches out of the removed snapshot behind the head what the head hides. */
  async prune(source: string, options: WorkOptions): Promise<void> {
    checkWritable(this.state);
    const { table, meta, io } = this.state;
    const record = table.find(source);
    const isBehindHead =
      record?.removed === true &&
      meta.parent === record.name &&
      table.children(record.name).length === 1;
    if (!isBehindHead) {
      const text = `cannot prune ${source}: not a removed snapshot right behind the head`;
      throw new StorageError('INVALID_STATE', text, { source });
    }
    await this.whileBusy([record.name], async () => {
      // A snapshot taken meanwhile freezes this layer; it hides the same data then.
      const { head } = io.stack;
      await this.withLayer(record.name, (layer) => pruneBehind(io, layer, head, options));
    });
  }

  /** After the chain refuses requests: the work stops at its next step. */
  async whenIdle(): Promise<void> {
    await Promise.allSettled(this.running);
  }

  private async withLayer(diskName: string, use: (layer: Layer) => Promise<void>): Promise<void> {
    const layer = await openLayer(this.state.store, diskName, true);
    try {
      await use(layer);
    } finally {
      await layer.file.close();
    }
  }

  private async whileBusy(names: readonly string[], work: () => Promise<void>): Promise<void> {
    const { busyDisks } = this.state;
    checkNotBusy(this.state, ...names);
    checkNotPinned(this.state, ...names);
    for (const name of names) busyDisks.add(name);
    const running = work().finally(() => {
      for (const name of names) busyDisks.delete(name);
      this.running.delete(running);
    });
    this.running.add(running);
    await running;
  }
}

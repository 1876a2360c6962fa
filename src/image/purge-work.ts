// The long steps of a purge on an open chain: they check what may be done, keep the disks concerned
// from being removed meanwhile, and run next to I/O and to other changes.

import { StorageError } from '../core/errors.js';
import type { DiskFile } from '../disk/disk.js';
import type { WorkOptions } from './chain.js';
import { checkNotBusy, checkNotPinned, checkWritable, type ChainState } from './chain-state.js';
import { Coalescer, pruneBehind } from './coalesce.js';
import { openLayer } from './opening.js';

export class PurgeWork {
  private readonly state: ChainState;
  private readonly running = new Set<Promise<void>>();

  constructor(state: ChainState) {
    this.state = state;
  }

  /** Copies the only child (target) of a removed snapshot (source) down into the snapshot's file. */
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
    await this.whileBusy([parent.name, child.name], async () => {
      const childLayer = await openLayer(this.state.store, child.name, false);
      try {
        const isLowest = parent.parent === '' && meta.backingFilePath === '';
        await this.withFile(parent.name, (file) =>
          new Coalescer(this.state.io, file, childLayer, isLowest, options).run(),
        );
      } finally {
        await childLayer.file.close();
      }
    });
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
      await this.withFile(record.name, (file) => pruneBehind(io, file, head, options));
    });
  }

  /** After the chain refuses requests: the work stops at its next step. */
  async whenIdle(): Promise<void> {
    await Promise.allSettled(this.running);
  }

  private async withFile(diskName: string, use: (file: DiskFile) => Promise<void>): Promise<void> {
    const { store } = this.state;
    const file = await store.disk.open(store.path(diskName), { writable: true });
    try {
      await use(file);
    } finally {
      await file.close();
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

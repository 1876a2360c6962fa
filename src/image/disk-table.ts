// The disk records of a replica directory in memory: the tree of snapshots and the head. It only
// answers questions and takes note of changes; the files are other modules' work.

import { StorageError } from '../core/errors.js';
import { CHAIN_LAYERS_MAX } from '../core/limits.js';
import type { DiskRecord } from './metadata.js';
import { snapshotDiskName } from './names.js';

export class DiskTable {
  private readonly records = new Map<string, DiskRecord>();

  constructor(records: Iterable<DiskRecord>) {
    for (const record of records) this.records.set(record.name, record);
  }

  get size(): number {
    return this.records.size;
  }

  all(): DiskRecord[] {
    return [...this.records.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  get(diskName: string): DiskRecord | undefined {
    return this.records.get(diskName);
  }

  /** By disk name or by snapshot name, as Longhorn's callers use either. */
  find(name: string): DiskRecord | undefined {
    return this.records.get(name) ?? this.records.get(snapshotDiskName(name));
  }

  put(record: DiskRecord): void {
    this.records.set(record.name, record);
  }

  delete(diskName: string): void {
    this.records.delete(diskName);
  }

  /** Names of the disks whose parent this is, sorted. */
  children(diskName: string): string[] {
    const names: string[] = [];
    for (const record of this.records.values()) {
      if (record.parent === diskName) names.push(record.name);
    }
    return names.sort();
  }

  /**
   * Disk names from this one to the root.
   * @throws CHAIN_BROKEN for a missing record or a cycle; CHAIN_TOO_LONG above 250.
   */
  chainFrom(diskName: string): string[] {
    const chain: string[] = [];
    const seen = new Set<string>();
    for (let name = diskName; name !== ''; ) {
      const record = this.records.get(name);
      if (record === undefined) {
        throw new StorageError('CHAIN_BROKEN', `failed to find metadata for ${name}`, { name });
      }
      if (seen.has(name)) {
        throw new StorageError('CHAIN_BROKEN', `${name} is its own ancestor`, { name });
      }
      seen.add(name);
      chain.push(name);
      name = record.parent;
    }
    if (chain.length > CHAIN_LAYERS_MAX) {
      throw new StorageError('CHAIN_TOO_LONG', `live chain is too long: ${chain.length}`, {
        layers: chain.length,
      });
    }
    return chain;
  }
}

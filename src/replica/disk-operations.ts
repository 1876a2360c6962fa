// Control operations on an open chain, with Longhorn's refusals: the chain itself takes either form of a
// disk's name, its peers' rules are here (facts: on-disk §8). Nothing here keeps state.

import { StorageError } from '../core/errors.js';
import { isSectorAligned, SECTOR_BYTES } from '../core/units.js';
import type { DiskInfo, ImageChain, RemoveAction } from '../image/chain.js';

/** @param diskName of the snapshot, not its own name. @throws NOT_FOUND, INVALID_STATE. */
export async function revertTo(
  chain: ImageChain,
  directory: string,
  diskName: string,
  created: string,
): Promise<void> {
  const target = await diskOf(chain, diskName);
  if (target === undefined) {
    const path = `${directory}/${diskName}`;
    throw new StorageError('NOT_FOUND', `stat ${path}: no such file or directory`);
  }
  if (target.removed) {
    const text = `cannot revert to disk file ${diskName} since it's already marked as removed`;
    throw new StorageError('INVALID_STATE', text);
  }
  await chain.revert(diskName, created);
}

/** @throws NOT_ALIGNED, INVALID_ARGUMENT. */
export function checkExpansion(chain: ImageChain, sizeBytes: number): void {
  if (!isSectorAligned(sizeBytes)) {
    const text = `failed to expend volume replica size ${sizeBytes}, because it is not multiple of volume sector size ${SECTOR_BYTES}`;
    throw new StorageError('NOT_ALIGNED', text);
  }
  if (sizeBytes < chain.sizeBytes) {
    const text = `cannot expand replica to a smaller size ${sizeBytes}`;
    throw new StorageError('INVALID_ARGUMENT', text);
  }
}

/** Unknown names succeed. @throws INVALID_STATE for the head. */
export async function markRemoved(chain: ImageChain, name: string): Promise<void> {
  if (name === chain.info().head) throw headRefused('mark the active differencing disk as removed');
  await chain.markRemoved(name);
}

/** Unknown names give no actions. @throws INVALID_STATE for the head and unmarked disks. */
export function prepareRemove(chain: ImageChain, name: string): RemoveAction[] {
  if (name === chain.info().head) throw headRefused('delete the active differencing disk');
  return chain.prepareRemove(name);
}

/** @param diskName of a snapshot, not its own name. @throws NOT_FOUND, INVALID_STATE. */
export async function removeDisk(
  chain: ImageChain,
  diskName: string,
  force: boolean,
): Promise<void> {
  if (diskName === chain.info().head) throw headRefused('delete the active differencing disk');
  if ((await diskOf(chain, diskName)) === undefined) {
    throw new StorageError('NOT_FOUND', `cannot find disk ${diskName}`);
  }
  await chain.removeDisk(diskName, force);
}

/** @throws NOT_FOUND for an unknown source or target (Longhorn's replica loses the source then). */
export async function replaceDisk(
  chain: ImageChain,
  target: string,
  source: string,
): Promise<void> {
  if (target === chain.info().head) throw headRefused('replace the active differencing disk');
  if ((await diskOf(chain, source)) === undefined) {
    throw new StorageError('NOT_FOUND', `cannot find source of replacing: ${source}`);
  }
  if ((await diskOf(chain, target)) === undefined) {
    throw new StorageError('NOT_FOUND', `cannot find target of replacing: ${target}`);
  }
  await chain.replaceDisk(target, source);
}

async function diskOf(chain: ImageChain, diskName: string): Promise<DiskInfo | undefined> {
  return (await chain.disks()).find((disk) => disk.name === diskName);
}

function headRefused(what: string): StorageError {
  return new StorageError('INVALID_STATE', `cannot ${what}`);
}

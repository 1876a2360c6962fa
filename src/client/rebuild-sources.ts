// Which replicas a rebuild copies from. Files of one replica fit together; those of two only when their
// chains are the same and nothing is left of a purge, which merges files on each replica for itself.
// Pure.

import type { Replica as ReplicaInfo } from '../api/generated/replica.js';

export interface SourceCandidate {
  readonly address: string;
  /** Null when it could not be asked. */
  readonly info: ReplicaInfo | null;
}

/**
 * @param readable never empty.
 * @param fileNames of the list of files, records (`.meta`) included.
 * @param sourceAddress whose list it is; '' when the engine does not say.
 */
export function chooseSources(
  readable: readonly SourceCandidate[],
  fileNames: readonly string[],
  sourceAddress: string,
): string[] {
  const wanted = fileNames
    .filter((name) => name.endsWith('.img.meta'))
    .map((name) => name.slice(0, -'.meta'.length));
  const named = readable.find(({ address }) => address === sourceAddress);
  const source =
    named ?? readable.find(({ info }) => info !== null && hasExactly(info, wanted)) ?? readable[0];
  if (source === undefined) return [];
  if (source.info === null || isBeingPurged(source.info)) return [source.address];
  const chain = chainOf(source.info);
  const others = readable.filter(
    ({ info, address }) => address !== source.address && info !== null && chainOf(info) === chain,
  );
  return [source, ...others].map(({ address }) => address);
}

function snapshotNames(info: ReplicaInfo): string[] {
  return Object.keys(info.disks)
    .filter((name) => name !== info.head && name !== info.backingFile)
    .sort();
}

function hasExactly(info: ReplicaInfo, wanted: readonly string[]): boolean {
  const names = snapshotNames(info);
  return names.length === wanted.length && wanted.every((name) => names.includes(name));
}

/** What stands on what, and what is removed. */
function chainOf(info: ReplicaInfo): string {
  return JSON.stringify(
    snapshotNames(info).map((name) => [name, info.disks[name]?.parent, info.disks[name]?.removed]),
  );
}

function isBeingPurged(info: ReplicaInfo): boolean {
  return snapshotNames(info).some((name) => info.disks[name]?.removed === true);
}

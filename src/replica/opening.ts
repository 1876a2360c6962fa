// Opens a replica's chain for one engine: the image chain, and the write intents if that engine makes
// checkpoints. When anything fails nothing stays open.

import { MIB } from '../core/units.js';
import { ImageChain } from '../image/chain.js';
import type { OpenRequest, ReplicaOptions } from './replica-shapes.js';
import type { RosterRecord } from './roster-record.js';
import { WriteIntents } from './write-intents.js';

/** Space that the header of an encrypted volume takes from its size. */
const LUKS_HEADER_BYTES = 16 * MIB;

/** Longhorn's own unwritten extents are in snapshots, never in a head. */
const ANYWHERE = [{ beginOffset: 0, endOffset: Number.MAX_SAFE_INTEGER }];

/** What can be changed while a replica runs, and outlives an open chain. */
export interface ChainSettings {
  unmapMarkDiskChainRemoved: boolean;
  snapshotMaxCount: number;
  /** 0: no limit. */
  snapshotMaxBytes: number;
}

export interface OpeningParts {
  readonly options: ReplicaOptions;
  readonly settings: ChainSettings;
  readonly standing: RosterRecord;
  /** volume.meta said that the last close was none. */
  readonly wasDirty: boolean;
}

export async function openForEngine(
  parts: OpeningParts,
  pinnedDisks: ReadonlySet<string>,
  request: OpenRequest,
): Promise<{ chain: ImageChain; intents: WriteIntents | null }> {
  const { disk, directory, clock, log, revisionCounter, backingFilePath } = parts.options;
  // Another program may have put unwritten extents there on purpose, as Longhorn's restore does.
  const isOurs = parts.wasDirty && !parts.standing.isVoid;
  const unfinishedRanges = isOurs ? ((await WriteIntents.stored(disk, directory)) ?? ANYWHERE) : [];
  const chain = await ImageChain.open(disk, directory, {
    unfinishedRanges,
    clock,
    log,
    revisionCounter,
    ...parts.settings,
    pinnedDisks,
    ...(backingFilePath === undefined ? {} : { backingFilePath }),
  });
  await makeRoomForHeader(chain, parts.options, request);
  try {
    return { chain, intents: await openIntents(chain, parts, request.engineGeneration) };
  } catch (error) {
    await chain.abandon();
    throw error;
  }
}

async function openIntents(
  chain: ImageChain,
  { options, standing, wasDirty }: OpeningParts,
  engineGeneration: number,
): Promise<WriteIntents | null> {
  const { disk, directory } = options;
  if (engineGeneration === 0) {
    await WriteIntents.invalidate(disk, directory);
    return null;
  }
  const isStale = standing.isVoid;
  return WriteIntents.open({
    disk,
    directory,
    next: chain,
    isMissingUnknown: wasDirty,
    isStale,
  });
}

/** The engine of an encrypted volume made before its header had room of its own asks for more. */
async function makeRoomForHeader(
  chain: ImageChain,
  options: ReplicaOptions,
  request: OpenRequest,
): Promise<void> {
  const isEncrypted = options.encrypted || chain.info().encrypted;
  const isDue = request.expectedBytes === chain.sizeBytes + LUKS_HEADER_BYTES;
  if (!isEncrypted || request.isUpgrade || !isDue) return;
  try {
    await chain.expand(request.expectedBytes);
  } catch (error) {
    await chain.close();
    throw error;
  }
}

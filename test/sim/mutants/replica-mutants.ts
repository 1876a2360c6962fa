// Mistakes in the replica and its image chain: what it syncs, whom it serves, where it punches.

import { FrameSession } from '../../../src/frame-server/session.js';
import { FlushOperation } from '../../../src/image/flush-operation.js';
import { LayerStack, type Layer } from '../../../src/image/layer-stack.js';
import { MetadataStore } from '../../../src/image/metadata-store.js';
import { TrimOperation } from '../../../src/image/trim-operation.js';
import { Replica } from '../../../src/replica/replica.js';
import { RosterStore } from '../../../src/replica/roster-store.js';
import { WriteIntents } from '../../../src/replica/write-intents.js';
import type { BlockRequest } from '../../../src/core/block-device.js';
import { type Mutant, partOf, replaceMethod } from './mutant.js';

const skippedSync: Mutant = {
  name: 'skipped-sync',
  mistake: 'a flush is answered without fdatasync',
  plant: () =>
    replaceMethod(FlushOperation, 'start', () => (self, request) => {
      (self as unknown as { request: unknown }).request = request as BlockRequest;
      partOf<() => void>(self, 'finish').call(self);
    }),
};

const lostRename: Mutant = {
  name: 'lost-rename',
  mistake: 'a new record is renamed into place, but its directory is not synced',
  plant: () => replaceMethod(MetadataStore, 'syncDirectory', () => () => Promise.resolve()),
};

const olderAccepted: Mutant = {
  name: 'older-engine-accepted',
  mistake: 'a connection of an older engine is served after a newer one opened the replica',
  plant: () => {
    const refusal = replaceMethod(FrameSession, 'refusal', () => () => null);
    const superseded = replaceMethod(FrameSession, 'endIfSuperseded', () => () => undefined);
    const caller = replaceMethod(Replica, 'checkCaller', () => () => undefined);
    return () => {
      refusal();
      superseded();
      caller();
    };
  },
};

const wrongLayerAfterMerge: Mutant = {
  name: 'wrong-layer-after-merge',
  mistake: 'after a coalesce, reads of what the merged layer held go to another layer',
  plant: () =>
    replaceMethod(LayerStack, 'mergeInto', (real) => (self, parent, child) => {
      const stack = self as LayerStack;
      const byId = partOf<(Layer | null)[]>(stack, 'byId');
      const owned = byId.flatMap((layer, id) => (layer === parent ? [id] : []));
      real(self, parent, child);
      for (const id of owned) byId[id] = stack.head;
    }),
};

const wrongLayerPunched: Mutant = {
  name: 'wrong-layer-punched',
  mistake: 'a trim punches the layer that hides older data, not the removed one',
  plant: () =>
    replaceMethod(TrimOperation, 'hide', () => async (self) => {
      const { beginOffset, endOffset } = self as unknown as Record<string, number>;
      const punch = partOf<(ranges: unknown) => Promise<void>>(self, 'punchHead');
      await punch.call(self, [{ beginOffset, endOffset }]);
    }),
};

const unsyncedRoster: Mutant = {
  name: 'unsynced-roster',
  mistake: 'a roster counts as stored before it is on the disk',
  plant: () =>
    replaceMethod(RosterStore, 'update', (real) => (self, change) => {
      const store = self as unknown as { current: object };
      const fields = (change as (record: object) => object | null)(store.current);
      void (real(self, change) as Promise<void>).catch(() => undefined);
      if (fields !== null) store.current = { ...store.current, ...fields };
      return Promise.resolve();
    }),
};

const unsyncedIntents: Mutant = {
  name: 'unsynced-intents',
  mistake: 'writes go ahead of the intents that announce them',
  plant: () => replaceMethod(WriteIntents, 'writeSlot', () => () => Promise.resolve()),
};

export const REPLICA_MUTANTS: readonly Mutant[] = [
  skippedSync,
  lostRename,
  olderAccepted,
  wrongLayerAfterMerge,
  wrongLayerPunched,
  unsyncedRoster,
  unsyncedIntents,
];

// What a replica process says of itself, and what its files hold, for tests with real processes.

import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ReplicaServiceDefinition } from '../../src/api/generated/replica.js';
import { realClock } from '../../src/core/clock-real.js';
import { createChannel, createClient } from '../../src/rpc/client.js';
import type { ReplicaSlot } from './process-stack.js';

const POLL_MS = 20;

export async function replicaState(slot: ReplicaSlot): Promise<{ state: string; dirty: boolean }> {
  const channel = createChannel({ host: '127.0.0.1', port: slot.port }, { clock: realClock });
  try {
    const { replica } = await createClient(ReplicaServiceDefinition, channel).replicaGet({});
    if (replica === undefined) throw new Error('an answer without a replica');
    return { state: replica.state, dirty: replica.dirty };
  } finally {
    channel.close();
  }
}

export async function waitUntil(what: string, condition: () => Promise<boolean>): Promise<void> {
  for (let waitedMs = 0; !(await condition()); waitedMs += POLL_MS) {
    if (waitedMs > 60_000) throw new Error(`waited in vain until ${what}`);
    await sleep(POLL_MS);
  }
}

function headPath(slot: ReplicaSlot): string {
  return join(slot.directory, 'volume-head-000.img');
}

/** Waits until at least so many bytes of the replica's images are on disk. */
export function allocatedAtLeast(slot: ReplicaSlot, bytes: number): Promise<void> {
  return waitUntil(`${bytes} bytes of ${slot.directory} are written`, async () => {
    let blocks = 0;
    for (const name of await readdir(slot.directory)) {
      if (!name.endsWith('.img')) continue;
      // A head may get another name meanwhile.
      blocks += await stat(join(slot.directory, name)).then(
        (found) => found.blocks,
        () => 0,
      );
    }
    return blocks * 512 >= bytes;
  });
}

/** Content of a replica without snapshots: its first head, holes read as zeros. */
export async function headSha256(slot: ReplicaSlot): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(headPath(slot))) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

// The engine's end of the data protocol fed with answers that are cut anywhere, changed at random
// or against the protocol. Each request is finished once, at most that one replica is lost, and all
// memory comes back.

import assert from 'node:assert/strict';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { BLOCK_OP, BlockRequest } from '../../src/core/block-device.js';
import type { StorageError } from '../../src/core/errors.js';
import { KIB, MIB } from '../../src/core/units.js';
import { DataClient } from '../../src/replica-client/data-client.js';
import { type FrameFields, frame, TYPE } from '../support/frame-client.js';
import { ManualClock } from '../support/manual-clock.js';
import { createTestSlab, MemoryConnection } from '../support/memory-connection.js';
import {
  freeBuffers,
  mutate,
  mutationsOf,
  pieces,
  pushInPieces,
} from '../support/stream-mutation.js';

const U32_MAX = 0xffff_ffff;
const DEVICE_BYTES = 20 * MIB;
const slab = createTestSlab(4);
const zeroRegion = { offset: slab.allocate(64 * KIB), lengthBytes: 64 * KIB };
const ALL_FREE = freeBuffers(slab);

interface ClientRig {
  readonly connection: MemoryConnection;
  readonly client: DataClient;
  readonly requests: BlockRequest[];
  readonly outcomes: (StorageError | null | undefined)[];
  readonly failures: StorageError[];
}

/** A client with one request of each kind in flight: sequence numbers 1 to 6. */
function clientRig(): ClientRig {
  const connection = new MemoryConnection(slab);
  const failures: StorageError[] = [];
  const client = new DataClient({
    connection,
    address: 'tcp://replica:1',
    sizeBytes: DEVICE_BYTES,
    capabilities: ['flush', 'write-fua', 'write-zeroes', 'extents'],
    clock: new ManualClock(),
    zeroRegion,
    engineGeneration: 0,
    silenceMaxMs: () => 8000,
    failed: (error) => failures.push(error),
  });
  const outcomes: ClientRig['outcomes'] = [];
  const requests = Object.values(BLOCK_OP).map((op, index) => {
    const request = new BlockRequest();
    Object.assign(request, { op, offsetBytes: 0, lengthBytes: 4096 });
    request.bufferOffset = slab.allocate(64 * KIB);
    request.owner = {
      blockRequestDone: (_request, error) => {
        if (outcomes[index] !== undefined) t.fail(`request ${index} was finished twice`);
        outcomes[index] = error;
        slab.release(request.bufferOffset);
      },
    };
    client.submit(request);
    return request;
  });
  connection.take();
  return { connection, client, requests, outcomes, failures };
}

const ANSWERS: FrameFields[] = [
  { seq: 2, type: TYPE.response, size: 4096 },
  { seq: 0, type: TYPE.response },
  { seq: 1, type: TYPE.response, data: Buffer.alloc(4096, 3) },
  { seq: 99, type: TYPE.response, data: Buffer.from('for nobody') },
  { seq: 4, type: TYPE.error, data: Buffer.from('write x: no space left on device') },
  { seq: 3, type: 77, data: Buffer.from('an unknown type is skipped') },
  { seq: 3, type: TYPE.response },
  { seq: 6, type: TYPE.response, data: Buffer.alloc(16, 1) },
  { seq: 5, type: TYPE.response, size: 4096 },
];
const ANSWER_STREAM = Buffer.concat(ANSWERS.map(frame));

t.test('answers cut at any byte finish the same requests', async (t) => {
  for (let cut = 1; cut < ANSWER_STREAM.byteLength; cut += cut > 200 && cut < 4000 ? 37 : 1) {
    const { connection, client, outcomes, requests } = clientRig();
    connection.push(ANSWER_STREAM.subarray(0, cut));
    connection.push(ANSWER_STREAM.subarray(cut));
    const codes = outcomes.map((error) => error?.code ?? null);
    if (codes.join() !== [null, null, null, 'NO_SPACE', null, null].join()) {
      t.fail(`cut at ${cut}: ${codes.join()}`);
    }
    const buffer = (requests[0] as BlockRequest).bufferOffset;
    if (slab.bytes[buffer] !== 3 || slab.bytes[buffer + 4095] !== 3) t.fail(`cut at ${cut}: data`);
    client.disconnect();
  }
  t.equal(freeBuffers(slab), ALL_FREE);
});

t.test('changed answers finish each request once, and at most lose that replica', async () => {
  fc.assert(
    fc.property(mutationsOf(ANSWER_STREAM), pieces, (changes, sizes) => {
      const { connection, outcomes, requests, failures } = clientRig();
      pushInPieces(connection, mutate(ANSWER_STREAM, changes), sizes);
      connection.vanish();
      assert.equal(outcomes.filter((outcome) => outcome !== undefined).length, requests.length);
      assert.equal(failures.length, 1, 'the owner is told once');
      assert.equal(freeBuffers(slab), ALL_FREE);
    }),
    { numRuns: 500 },
  );
});

function lostBy(t: Test, fields: FrameFields, code: string): void {
  const { connection, outcomes, failures } = clientRig();
  connection.push(frame(fields));
  t.match(failures, [{ code }]);
  t.equal(outcomes.filter((error) => error?.code === code).length, 6, 'all in flight fail with it');
  t.equal(freeBuffers(slab), ALL_FREE);
}

t.test('what breaks the protocol loses the replica', async (t) => {
  lostBy(t, { seq: 1, type: TYPE.response, data: Buffer.alloc(4095) }, 'BAD_FRAME');
  lostBy(t, { seq: 1, type: TYPE.response, data: Buffer.alloc(4097) }, 'BAD_FRAME');
  lostBy(t, { seq: 1, type: TYPE.response }, 'BAD_FRAME');
  lostBy(t, { seq: 6, type: TYPE.response, data: Buffer.alloc(64 * KIB + 8) }, 'BAD_FRAME');
  lostBy(t, { seq: 1, type: TYPE.error, dataBytes: 16 * KIB + 1 }, 'FRAME_TOO_LARGE');
  lostBy(t, { seq: 1, type: TYPE.response, dataBytes: U32_MAX }, 'FRAME_TOO_LARGE');
  lostBy(t, { seq: 0, type: TYPE.close }, 'CONNECTION_LOST');
  lostBy(t, { seq: 0, type: TYPE.close, magic: 0 }, 'BAD_MAGIC');
  lostBy(t, { seq: 0, type: TYPE.error, data: Buffer.from('ping failure: closed') }, 'PEER_ERROR');
});

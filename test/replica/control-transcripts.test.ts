// Calls recorded from Longhorn's own replica, replayed against ours over gRPC: same status, same text,
// same answer. Masked are times and, in texts, the directory's path. Where Longhorn crashes, poisons
// its directory or loses data, the exceptions below say what ours answers instead and why.

import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as grpc from '@grpc/grpc-js';
import t, { type Test } from 'tap';
import { ReplicaServiceDefinition } from '../../src/api/generated/replica.js';
import { BLOCK_OP, submitAndWait } from '../../src/core/block-device.js';
import { realClock } from '../../src/core/clock-real.js';
import { silentLogger } from '../../src/core/log.js';

import { createNativeDisk, createSlab, type NativeDisk } from '../../src/disk/native-disk.js';
import { MIB } from '../../src/core/units.js';
import { replicaHandlers } from '../../src/replica/control-service.js';
import { Replica } from '../../src/replica/replica.js';
import type { ReplicaOptions } from '../../src/replica/replica-shapes.js';
import { statusUnknown } from '../../src/rpc/error-map.js';
import { createRpcServer } from '../../src/rpc/server.js';
import { FIXTURES_MISSING, fixturesDir } from '../support/fixtures.js';

interface Step {
  readonly method: string;
  readonly requestHex: string;
  readonly code: number;
  readonly message: string;
  readonly responseHex?: string;
  readonly metadata?: Record<string, string>;
  readonly note?: string;
}

interface Transcript {
  readonly steps: readonly Step[];
}

interface Answer {
  readonly code: number;
  readonly message: string;
  readonly response: Buffer | null;
}

/** What a step answers instead of what was recorded. */
interface Exception {
  readonly code: number;
  readonly message: string;
  /** Why Longhorn's answer is not copied. */
  readonly why: string;
}

const IDENTITY = { volumeName: 'fxgr-given', instanceName: 'fxgr-given-r-1' };
const RECORDED_DIRECTORY = '/var/lib/recording/vol/fxgr-given/r1';
const UNKNOWN = grpc.status.UNKNOWN;

const fixtures = fixturesDir();
const skip = fixtures === null && FIXTURES_MISSING;

function loadTranscript(name: string): Transcript {
  return JSON.parse(readFileSync(join(fixtures ?? '', 'grpc', `${name}.json`), 'utf8'));
}

/** A served replica in a new directory, and a way to call it with recorded bytes. */
class Rig {
  readonly directory: string;
  readonly disk: NativeDisk;
  readonly replica: Replica;
  private readonly client: grpc.Client;

  private constructor(directory: string, disk: NativeDisk, replica: Replica, port: number) {
    this.directory = directory;
    this.disk = disk;
    this.replica = replica;
    this.client = new grpc.Client(`127.0.0.1:${port}`, grpc.credentials.createInsecure());
  }

  static async start(t: Test, options: Partial<ReplicaOptions> = {}): Promise<Rig> {
    const parent = await mkdtemp(join(tmpdir(), 'replica-'));
    const directory = join(parent, 'r1');
    const disk = createNativeDisk({ slab: createSlab(MIB), log: silentLogger });
    const replica = await Replica.at({
      newId: randomUUID,
      hostBootId: 'boot-1',
      disk,
      directory,
      clock: realClock,
      log: silentLogger,
      revisionCounter: true,
      encrypted: false,
      unmapMarkDiskChainRemoved: false,
      snapshotMaxCount: 250,
      snapshotMaxBytes: 0,
      ...options,
    });
    const server = createRpcServer({
      clock: realClock,
      log: silentLogger,
      identity: { ...IDENTITY, what: 'replica' },
    }).addService(
      ReplicaServiceDefinition,
      replicaHandlers(replica, { hostBootId: '', localDataPath: '' }),
      {
        statusOf: statusUnknown,
      },
    );
    const rig = new Rig(directory, disk, replica, await server.listen('127.0.0.1', 0));
    t.teardown(async () => {
      rig.client.close();
      await server.close(0);
      await replica.close();
      await disk.shutdown();
      await rm(parent, { recursive: true });
    });
    return rig;
  }

  call(step: Step): Promise<Answer> {
    const metadata = new grpc.Metadata();
    for (const [name, value] of Object.entries(step.metadata ?? {})) metadata.set(name, value);
    const asIs = (bytes: Buffer): Buffer => bytes;
    const request = Buffer.from(step.requestHex, 'hex');
    return new Promise((resolve) => {
      this.client.makeUnaryRequest(step.method, asIs, asIs, request, metadata, (error, response) =>
        resolve({
          code: error?.code ?? 0,
          message: error?.details.replaceAll(this.directory, RECORDED_DIRECTORY) ?? '',
          response: response ?? null,
        }),
      );
    });
  }

  async write(lengthBytes: number): Promise<void> {
    const bufferOffset = this.disk.slab.allocate(lengthBytes);
    const op = BLOCK_OP.write;
    await submitAndWait(this.replica, { op, offsetBytes: 0, lengthBytes, bufferOffset });
    this.disk.slab.release(bufferOffset);
  }
}

function definitionOf(step: Step) {
  const name = step.method.split('/').at(-1);
  const method = Object.values(ReplicaServiceDefinition.methods).find((m) => m.name === name);
  if (method === undefined) throw new Error(`no method ${name}`);
  return method;
}

const RFC3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/;

/** Replaces what differs from run to run. The times a client chose itself are compared. */
function masked(value: unknown, key = ''): unknown {
  if (key === 'capabilities') return undefined;
  if (key === 'lastModifyTime') return value === '0' ? '0' : 'a time';
  if (key === 'created' && RFC3339.test(String(value))) {
    return String(value).startsWith('2026-01-01') ? value : 'a time';
  }
  if (Array.isArray(value)) return value.map((item) => masked(item));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, masked(v, k)]));
}

async function replay(t: Test, rig: Rig, step: Step, exception?: Exception): Promise<void> {
  const label = `${step.method.split('/').at(-1)} ${step.note ?? ''}`;
  const answer = await rig.call(step);
  const { code, message } = exception ?? step;
  t.same({ code: answer.code, message: answer.message }, { code, message }, label);
  if (code !== 0 || answer.response === null) return;
  const { responseType } = definitionOf(step);
  const recorded = responseType.decode(Buffer.from(step.responseHex ?? '', 'hex'));
  t.same(masked(responseType.decode(answer.response)), masked(recorded), `${label}: answer`);
}

t.test('replica: every recorded call answers the same', { skip }, async (t) => {
  const transcript = loadTranscript('replica');
  const rig = await Rig.start(t);
  // The recording wrote through the data port before these steps: the answers show the sizes.
  const writesBefore = new Map([
    [21, 32_768],
    [23, 4096],
    [24, 4096],
  ]);
  for (const [index, step] of transcript.steps.entries()) {
    const lengthBytes = writesBefore.get(index);
    if (lengthBytes !== undefined) await rig.write(lengthBytes);
    if (step.method.startsWith('/ptypes.')) await replay(t, rig, step);
  }
  t.same(await readdir(rig.directory), [], 'nothing is left after ReplicaDelete');
});

t.test('replica-disk-errors: bad disk names are refused, not fatal', { skip }, async (t) => {
  const transcript = loadTranscript('replica-disk-errors');
  const notFound = (disk: string): Exception => ({
    code: UNKNOWN,
    message: `cannot find disk ${disk}`,
    why: 'Longhorn dereferences nil and its process ends',
  });
  const exceptions = new Map<number, Exception>([
    [0, notFound('volume-snap-nosuch.img')],
    [1, notFound('volume-snap-nosuch.img')],
    [4, notFound('t2')],
    [
      9,
      {
        code: UNKNOWN,
        message: 'cannot find target of replacing: volume-snap-nosuch.img',
        why: 'Longhorn drops the source from the chain: its data is lost',
      },
    ],
  ]);
  // What a step sees of the refused one before it is the untouched replica.
  const skipped = new Map([[10, 'looks at the replica after the data loss of step 9']]);
  let rig: Rig | null = null;
  for (const [index, step] of transcript.steps.entries()) {
    if (skipped.has(index)) continue;
    if (step.note?.includes('fresh replica') === true) {
      rig = await Rig.start(t, { revisionCounter: false });
      await prepareThreeSnapshots(rig);
    }
    if (rig === null) throw new Error('the transcript starts with a fresh replica');
    await replay(t, rig, step, exceptions.get(index));
  }
});

t.test(
  'replica-open-before-create: a failed open leaves the directory usable',
  { skip },
  async (t) => {
    const transcript = loadTranscript('replica-open-before-create');
    const rig = await Rig.start(t);
    const [before, open] = transcript.steps;
    await replay(t, rig, before as Step);
    await replay(t, rig, open as Step);
    // From here on Longhorn's directory is poisoned for ever; ours is as before.
    await replay(t, rig, before as Step);
    await rig.replica.create(16_777_216);
    await rig.replica.open({ isUpgrade: false, expectedBytes: 0, engineGeneration: 0 });
    t.equal((await rig.replica.status()).state, 'open');
  },
);

async function prepareThreeSnapshots(rig: Rig): Promise<void> {
  const { replica } = rig;
  await replica.create(16_777_216);
  await replica.open({ isUpgrade: false, expectedBytes: 0, engineGeneration: 0 });
  for (const number of [1, 2, 3]) {
    await replica.snapshot({
      name: `t${number}`,
      userCreated: true,
      created: `2026-01-01T00:00:0${number}Z`,
      labels: {},
    });
  }
}

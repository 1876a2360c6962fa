// A real replica in a temporary directory behind the real data server on a unix socket.

import { randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BLOCK_OP, submitAndWait } from '../../src/core/block-device.js';
import { realClock } from '../../src/core/clock-real.js';
import { REQUEST_BYTES_MAX } from '../../src/core/limits.js';
import { silentLogger } from '../../src/core/log.js';
import type { Slab } from '../../src/core/slab.js';
import { MIB } from '../../src/core/units.js';
import { createNativeDisk, createSlab, type NativeDisk } from '../../src/disk/native-disk.js';
import type { FrameServer } from '../../src/frame-server/server.js';
import { startDataServer } from '../../src/replica/data-server.js';
import { Replica } from '../../src/replica/replica.js';
import {
  createNativeTransport,
  type NativeTransport,
  nativeTransportBytes,
} from '../../src/transport/native-transport.js';

export class ServedReplica {
  readonly directory: string;
  readonly socketPath: string;
  readonly slab: Slab;
  readonly disk: NativeDisk;
  readonly transport: NativeTransport;
  readonly replica: Replica;
  readonly server: FrameServer;
  private readonly parent: string;

  private constructor(
    parent: string,
    parts: Pick<ServedReplica, 'slab' | 'disk' | 'transport' | 'replica' | 'server'>,
  ) {
    this.parent = parent;
    this.directory = join(parent, 'r1');
    this.socketPath = join(parent, 'data.sock');
    this.slab = parts.slab;
    this.disk = parts.disk;
    this.transport = parts.transport;
    this.replica = parts.replica;
    this.server = parts.server;
  }

  /** Created and open, without a revision counter. Pass end() to t.teardown(). */
  static async start(sizeBytes: number): Promise<ServedReplica> {
    const parent = await mkdtemp(join(tmpdir(), 'longhorn-replica-'));
    const slab = createSlab(nativeTransportBytes() + 4 * MIB);
    const transport = createNativeTransport({ slab, clock: realClock });
    const disk = createNativeDisk({ slab, log: silentLogger });
    const replica = await Replica.at({
      hostBootId: 'boot-1',
      newId: randomUUID,
      disk,
      directory: join(parent, 'r1'),
      clock: realClock,
      log: silentLogger,
      revisionCounter: false,
      encrypted: false,
      unmapMarkDiskChainRemoved: false,
      snapshotMaxCount: 250,
      snapshotMaxBytes: 0,
    });
    await replica.create(sizeBytes);
    await replica.open({ isUpgrade: false, expectedBytes: 0, engineGeneration: 0 });
    const endpoint = { kind: 'unix', path: join(parent, 'data.sock') } as const;
    const server = await startDataServer({
      transport,
      endpoint,
      replica,
      clock: realClock,
      log: silentLogger,
    });
    return new ServedReplica(parent, { slab, disk, transport, replica, server });
  }

  /** Writes past the data server. */
  async fill(offsetBytes: number, data: Uint8Array): Promise<void> {
    const buffer = this.slab.allocate(REQUEST_BYTES_MAX);
    for (let at = 0; at < data.byteLength; at += REQUEST_BYTES_MAX) {
      const part = data.subarray(at, at + REQUEST_BYTES_MAX);
      this.slab.bytes.set(part, buffer);
      await submitAndWait(this.replica, {
        op: BLOCK_OP.write,
        offsetBytes: offsetBytes + at,
        lengthBytes: part.byteLength,
        bufferOffset: buffer,
      });
    }
    this.slab.release(buffer);
  }

  async end(): Promise<void> {
    await this.server.close();
    await this.replica.close();
    await this.transport.shutdown();
    await this.disk.shutdown();
    await rm(this.parent, { recursive: true });
  }
}

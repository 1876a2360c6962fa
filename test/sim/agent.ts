// The sync agent of a simulated node. Purging is the real job; files are copied by a small stand-in
// for ssync, chunk by chunk over the simulated network and disk, so that everything else can happen
// in between. Like the real one it stages metadata files and writes images in place.

import type { SyncFileInfo } from '../../src/api/generated/common.js';
import { ReplicaServiceDefinition } from '../../src/api/generated/replica.js';
import {
  type FilesSyncRequest,
  SyncAgentServiceDefinition,
} from '../../src/api/generated/syncagent.js';
import { StorageError } from '../../src/core/errors.js';
import { silentLogger } from '../../src/core/log.js';
import { SECTOR_BYTES } from '../../src/core/units.js';
import { DISK_OP, type DiskFile } from '../../src/disk/disk.js';
import type { ServiceHandlers } from '../../src/rpc/server.js';
import { storageErrorOfRpc } from '../../src/rpc/error-map.js';
import { purgeSnapshots } from '../../src/sync/purge-job.js';
import type { SimDisk } from './disk.js';
import type { SimNetwork } from './network.js';
import type { SimRpc } from './rpc.js';
import type { SimProcess } from './scheduler.js';

/** Sectors that travel together. */
const CHUNK_SECTORS = 16;
const COPY_ATTEMPTS_MAX = 3;
const COPY_TIMEOUT_US = 60_000_000;

export interface SimAgentOptions {
  readonly process: SimProcess;
  readonly disk: SimDisk;
  readonly directory: string;
  readonly network: SimNetwork;
  readonly rpc: SimRpc;
  readonly controlPort: number;
  /** The agent of another node, while its process lives. */
  readonly agentOf: (host: string) => SimAgent | null;
}

/** A page, a hole, or an extent without content. */
type CopiedPage = Uint8Array | null | undefined;

export class SimAgent {
  readonly process: SimProcess;
  isPurging = false;
  isRebuilding = false;
  copiedSectors = 0;
  private purgeError = '';
  private readonly options: SimAgentOptions;
  private readonly receivers = new Map<number, string>();
  private nextPort = 1;

  constructor(options: SimAgentOptions) {
    this.options = options;
    this.process = options.process;
    const { rpc, process, controlPort } = options;
    rpc.serve(process, controlPort + 2, SyncAgentServiceDefinition, this.handlers());
  }

  private handlers(): ServiceHandlers<typeof SyncAgentServiceDefinition> {
    return {
      receiverLaunch: ({ toFileName }) => {
        const port = this.nextPort++;
        this.receivers.set(port, toFileName);
        return { port };
      },
      fileSend: async ({ fromFileName, host, port }) => {
        if (this.isPurging) throw new StorageError('BUSY', 'replica is purging snapshots');
        await this.sendSmallFile(fromFileName, host, port);
        return {};
      },
      filesSync: async (request) => {
        await this.sync(request);
        return {};
      },
      replicaRebuildStatus: () => ({
        error: '',
        isRebuilding: this.isRebuilding,
        progress: 0,
        state: '',
        fromReplicaAddress: '',
        receivedBytes: 0,
        fromReplicaAddressList: [],
      }),
      snapshotHashCancel: () => ({}),
      snapshotPurge: () => {
        this.checkIdle();
        this.isPurging = true;
        this.purgeError = '';
        void this.purge();
        return {};
      },
      snapshotPurgeStatus: () => ({
        error: this.purgeError,
        isPurging: this.isPurging,
        progress: 0,
        state: '',
      }),
    };
  }

  private checkIdle(): void {
    if (this.isPurging) throw new StorageError('BUSY', 'replica is purging snapshots');
    if (this.isRebuilding) throw new StorageError('BUSY', 'replica is rebuilding');
  }

  private async purge(): Promise<void> {
    const { rpc, process, controlPort } = this.options;
    const replica = rpc.client(process, process.host, controlPort, ReplicaServiceDefinition);
    try {
      await purgeSnapshots({
        log: silentLogger,
        replica,
        signal: new AbortController().signal,
        onProgress: () => undefined,
      });
    } catch (error) {
      this.purgeError = storageErrorOfRpc(error).message;
    }
    this.isPurging = false;
  }

  private async sendSmallFile(name: string, host: string, port: number): Promise<void> {
    const { disk, directory } = this.options;
    const content = await disk.readFile(`${directory}/${name}`, 1024 * 1024);
    await this.ask(host, async (agent) => {
      const toName = agent.receivers.get(port);
      if (toName === undefined) throw new StorageError('CONNECTION_REFUSED', 'no receiver');
      agent.receivers.delete(port);
      await agent.replaceSmallFile(toName, content);
    });
  }

  private async replaceSmallFile(name: string, content: Uint8Array): Promise<void> {
    const { disk, directory } = this.options;
    const path = `${directory}/${name}`;
    await disk.writeFile(`${path}.tmp`, content);
    await disk.rename(`${path}.tmp`, path);
    await disk.syncDirectory(directory);
  }

  private async sync(request: FilesSyncRequest): Promise<void> {
    this.checkIdle();
    this.isRebuilding = true;
    try {
      const sources = Object.keys(request.fromAddressMap);
      let turn = 0;
      for (const file of request.syncFileInfoList) {
        await this.copyFromAny(file, sources, turn++);
      }
    } finally {
      this.isRebuilding = false;
    }
  }

  /** Like the real job: what one source cannot give, another one may. */
  private async copyFromAny(
    file: SyncFileInfo,
    sources: readonly string[],
    turn: number,
  ): Promise<void> {
    for (let attempt = 0; ; attempt++) {
      const source = sources[(turn + attempt) % sources.length] as string;
      try {
        return await this.copyFile(new URL(source).hostname, file);
      } catch (error) {
        if (attempt + 1 >= COPY_ATTEMPTS_MAX) throw error;
      }
    }
  }

  private async copyFile(host: string, info: SyncFileInfo): Promise<void> {
    const { disk, directory } = this.options;
    const { fromFileName, toFileName } = info;
    if (fromFileName.endsWith('.meta')) {
      const content = await this.ask(host, (agent) => agent.readSmallFile(fromFileName));
      await this.replaceSmallFile(toFileName, content);
      return;
    }
    const sizeBytes = await this.ask(host, (agent) => agent.sizeOf(fromFileName));
    const file = await disk.open(`${directory}/${toFileName}`, { writable: true, create: true });
    try {
      await file.truncate(sizeBytes);
      for (const [first, last] of chunksOf(info, sizeBytes)) {
        const pages = await this.ask(host, (agent) => agent.readPages(fromFileName, first, last));
        await this.storePages(file, first, pages);
      }
      await file.sync();
      await disk.syncDirectory(directory);
    } finally {
      await file.close();
    }
  }

  private async readSmallFile(name: string): Promise<Buffer> {
    return this.options.disk.readFile(`${this.options.directory}/${name}`, 1024 * 1024);
  }

  private async sizeOf(name: string): Promise<number> {
    return (await this.options.disk.stat(`${this.options.directory}/${name}`)).sizeBytes;
  }

  private async readPages(name: string, first: number, last: number): Promise<CopiedPage[]> {
    if (this.isPurging) throw new StorageError('BUSY', 'replica is purging snapshots');
    const { disk, directory } = this.options;
    await disk.pause();
    const file = disk.peek(`${directory}/${name}`, false);
    if (file === null) throw new StorageError('NOT_FOUND', `open ${name}: no such file`);
    const pages: CopiedPage[] = [];
    for (let index = first; index < last; index++) {
      const page = file.page(index);
      pages.push(page instanceof Uint8Array ? page.slice() : page);
    }
    return pages;
  }

  private async storePages(file: DiskFile, first: number, pages: CopiedPage[]): Promise<void> {
    await Promise.all(
      pages.map((page, i) => this.storePage(file, (first + i) * SECTOR_BYTES, page)),
    );
    this.copiedSectors += pages.length;
  }

  private async storePage(
    file: DiskFile,
    fileOffsetBytes: number,
    page: CopiedPage,
  ): Promise<void> {
    const { disk } = this.options;
    const { slab } = disk;
    const bufferOffset = slab.allocate(SECTOR_BYTES);
    if (page instanceof Uint8Array) slab.bytes.set(page, bufferOffset);
    // An extent without content travels as zeros.
    else slab.bytes.fill(0, bufferOffset, bufferOffset + SECTOR_BYTES);
    const op = page === undefined ? DISK_OP.punchHole : DISK_OP.write;
    const result = await new Promise<number>((complete) => {
      const lengthBytes = SECTOR_BYTES;
      disk.queue.submit({ op, file, bufferOffset, lengthBytes, fileOffsetBytes, complete });
    });
    slab.release(bufferOffset);
    if (result < 0) throw new StorageError('IO_ERROR', `writing a copied page failed: ${result}`);
  }

  /** Runs something at another node's agent, over the network both ways. */
  private ask<T>(host: string, action: (agent: SimAgent) => Promise<T>): Promise<T> {
    const { network, process, agentOf } = this.options;
    const there = network.pipe(process.host, host);
    const back = network.pipe(host, process.host);
    return new Promise((resolve, reject) => {
      let isOver = false;
      const finish = (end: () => void): void => {
        if (isOver || !process.isAlive) return;
        isOver = true;
        timer.cancel();
        network.forget(there);
        network.forget(back);
        end();
      };
      const lost = (): void =>
        finish(() => reject(new StorageError('CONNECTION_LOST', `lost ${host}`)));
      const timer = process.after(COPY_TIMEOUT_US, lost);
      there.push(() => {
        const agent = agentOf(host);
        if (agent === null) return back.push(lost);
        agent.process.whenEnded(() => back.push(lost));
        action(agent).then(
          (value) => agent.process.isAlive && back.push(() => finish(() => resolve(value))),
          (error: unknown) =>
            agent.process.isAlive && back.push(() => finish(() => reject(error as Error))),
        );
      });
    });
  }
}

/** Sector ranges to copy, a few sectors each. */
function* chunksOf(info: SyncFileInfo, sizeBytes: number): Generator<[number, number]> {
  const all = [{ beginOffset: 0, endOffset: sizeBytes }];
  const ranges = info.ranges.length > 0 ? info.ranges : all;
  for (const { beginOffset, endOffset } of ranges) {
    const last = Math.ceil(Math.min(endOffset, sizeBytes) / SECTOR_BYTES);
    for (let at = Math.floor(beginOffset / SECTOR_BYTES); at < last; at += CHUNK_SECTORS) {
      yield [at, Math.min(at + CHUNK_SECTORS, last)];
    }
  }
}

// Image chains for tests: open ones on either disk, patterns to write, content to read back.

import { createHash } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { BLOCK_OP, submitAndWait, type BlockOp } from '../../src/core/block-device.js';
import { realClock } from '../../src/core/clock-real.js';
import { silentLogger } from '../../src/core/log.js';
import { NO_BUFFER, Slab, SLAB_BYTES } from '../../src/core/slab.js';
import { MIB, SECTOR_BYTES } from '../../src/core/units.js';
import type { Disk } from '../../src/disk/disk.js';
import { createNativeDisk, createSlab, type NativeDisk } from '../../src/disk/native-disk.js';
import { ImageChain, type OpenChainOptions } from '../../src/image/chain.js';
import { MemoryDisk } from './memory-disk.js';

/** One slab for all memory disks of a test process: it is large. */
export const testSlab = new Slab(new ArrayBuffer(SLAB_BYTES + 4 * MIB));

export const chainDefaults = { clock: realClock, log: silentLogger };

export const CREATED = '2026-08-21T10:11:12Z';

export function memoryDisk(): MemoryDisk {
  return new MemoryDisk({ slab: testSlab });
}

/** A new chain of so many sectors in /volume of a new memory disk. */
export async function memoryChain(
  sectors: number,
  options: Partial<OpenChainOptions> = {},
): Promise<{ disk: MemoryDisk; chain: ImageChain }> {
  const disk = memoryDisk();
  const sizeBytes = sectors * SECTOR_BYTES;
  await ImageChain.create(disk, '/volume', { sizeBytes, ...chainDefaults });
  return { disk, chain: await openChain(disk, '/volume', options) };
}

export function openChain(
  disk: Disk,
  directory: string,
  options: Partial<OpenChainOptions> = {},
): Promise<ImageChain> {
  return ImageChain.open(disk, directory, { ...chainDefaults, ...options });
}

export interface NativeFixture {
  readonly disk: NativeDisk;
  readonly directory: string;
  end(): Promise<void>;
}

/** A native disk with room for scratch buffers, and a temporary directory on it. */
export async function nativeFixture(): Promise<NativeFixture> {
  const directory = await mkdtemp(join(tmpdir(), 'longhorn-image-'));
  const disk = createNativeDisk({ slab: createSlab(MIB), log: silentLogger });
  return {
    disk,
    directory,
    end: async () => {
      await disk.shutdown();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

/** A buffer, aligned for whole sectors; at the same distance to a sector as the offset otherwise. */
async function withBuffer<T>(
  disk: Disk,
  lengthBytes: number,
  use: (bufferOffset: number) => Promise<T>,
): Promise<T> {
  const bufferOffset = disk.slab.allocate(lengthBytes);
  if (bufferOffset === NO_BUFFER) throw new Error('the test uses too many buffers');
  try {
    return await use(bufferOffset);
  } finally {
    disk.slab.release(bufferOffset);
  }
}

export function writeBytes(
  disk: Disk,
  chain: ImageChain,
  offsetBytes: number,
  content: Uint8Array,
  fua = false,
): Promise<void> {
  return withBuffer(disk, content.length, async (bufferOffset) => {
    disk.slab.bytes.set(content, bufferOffset);
    const lengthBytes = content.length;
    await submitAndWait(chain, { op: BLOCK_OP.write, offsetBytes, lengthBytes, bufferOffset, fua });
  });
}

export function readBytes(
  disk: Disk,
  chain: ImageChain,
  offsetBytes: number,
  lengthBytes: number,
): Promise<Buffer> {
  return withBuffer(disk, lengthBytes, async (bufferOffset) => {
    // What is not overwritten by the read shows up as wrong content.
    disk.slab.bytes.fill(0xee, bufferOffset, bufferOffset + lengthBytes);
    await submitAndWait(chain, { op: BLOCK_OP.read, offsetBytes, lengthBytes, bufferOffset });
    return Buffer.from(disk.slab.bytes.slice(bufferOffset, bufferOffset + lengthBytes));
  });
}

/** unmap, writeZeroes or flush; the answer is resultBytes. */
export async function control(
  chain: ImageChain,
  op: BlockOp,
  offsetBytes = 0,
  lengthBytes = 0,
): Promise<number> {
  return (await submitAndWait(chain, { op, offsetBytes, lengthBytes })).resultBytes;
}

export async function readAll(disk: Disk, chain: ImageChain): Promise<Buffer> {
  const parts: Buffer[] = [];
  for (let offset = 0; offset < chain.sizeBytes; offset += MIB) {
    parts.push(await readBytes(disk, chain, offset, Math.min(MIB, chain.sizeBytes - offset)));
  }
  return Buffer.concat(parts);
}

export async function contentSha256(disk: Disk, chain: ImageChain): Promise<string> {
  const hash = createHash('sha256');
  for (let offset = 0; offset < chain.sizeBytes; offset += MIB) {
    hash.update(await readBytes(disk, chain, offset, Math.min(MIB, chain.sizeBytes - offset)));
  }
  return hash.digest('hex');
}

/** So many sectors, each full of the byte. */
export function sectorsOf(byte: number, count = 1): Buffer {
  return Buffer.alloc(count * SECTOR_BYTES, byte);
}

/** First byte of each sector: enough to tell filled sectors apart. */
export async function sectorBytes(disk: Disk, chain: ImageChain): Promise<number[]> {
  const content = await readAll(disk, chain);
  const bytes: number[] = [];
  for (let i = 0; i < content.length; i += SECTOR_BYTES) bytes.push(content[i] as number);
  return bytes;
}

export function snapshot(chain: ImageChain, name: string): Promise<void> {
  return chain.snapshot({ name, userCreated: true, created: CREATED });
}

/** What a purge does to one snapshot. */
export async function purge(chain: ImageChain, name: string): Promise<void> {
  await chain.markRemoved(name);
  for (const { action, source, target } of chain.prepareRemove(name)) {
    if (action === 'coalesce') await chain.coalesce(source, target);
    else if (action === 'replace') await chain.replaceDisk(target, source);
    else if (action === 'prune') await chain.prune(source);
    else await chain.removeDisk(source, false);
  }
}

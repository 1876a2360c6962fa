// A native disk in a temporary directory for tests, and queued requests as promises.

import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmdirSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import type { Logger } from '../../src/core/log.js';
import { silentLogger } from '../../src/core/log.js';
import type { Disk, DiskFile, DiskOp } from '../../src/disk/disk.js';
import { createNativeDisk, type NativeDisk } from '../../src/disk/native-disk.js';

export const BACKENDS = ['io_uring', 'threads'] as const;
export type Backend = (typeof BACKENDS)[number];

/** Why this machine cannot run the backend, for `skip`; false when it can. */
export function refusal(backend: Backend): string | false {
  try {
    void createNativeDisk({ backend, log: silentLogger }).shutdown();
    return false;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

export interface DiskFixture {
  readonly disk: NativeDisk;
  readonly directory: string;
  path(name: string): string;
  /** Shuts the disk down and removes the directory. */
  end(): Promise<void>;
}

export async function diskFixture(
  backend: Backend | 'auto' = 'auto',
  log: Logger = silentLogger,
): Promise<DiskFixture> {
  const directory = await mkdtemp(join(tmpdir(), 'longhorn-disk-'));
  const disk = createNativeDisk({ backend, log });
  return {
    disk,
    directory,
    path: (name) => join(directory, name),
    end: async () => {
      await disk.shutdown();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

/** Submits one request. The promise is the result: a byte count or a negative errno. */
export function submit(
  disk: Disk,
  file: DiskFile,
  op: DiskOp,
  fields: { bufferOffset?: number; lengthBytes?: number; fileOffsetBytes?: number } = {},
): Promise<number> {
  return new Promise((complete) => {
    disk.queue.submit({
      op,
      file,
      bufferOffset: fields.bufferOffset ?? 0,
      lengthBytes: fields.lengthBytes ?? 0,
      fileOffsetBytes: fields.fileOffsetBytes ?? 0,
      complete,
    });
  });
}

/** Mounts a file system of 2 MiB on an empty directory. */
export function mountSmall(directory: string): void {
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', directory], { stdio: 'ignore' });
}

/** Why mountSmall() cannot work for this user, for `skip`; false when it can. */
export function mountRefusal(): string | false {
  const directory = mkdtempSync(join(tmpdir(), 'longhorn-mount-'));
  try {
    mountSmall(directory);
    execFileSync('umount', [directory]);
    return false;
  } catch {
    return 'this user may not mount a small tmpfs';
  } finally {
    rmdirSync(directory);
  }
}

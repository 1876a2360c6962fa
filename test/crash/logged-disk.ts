// A small ext4 whose device remembers every write and every flush in order: ext4 on a loop device
// on a file that qemu-storage-daemon serves through FUSE, over a driver that appends all requests to
// a log (blklogwrites; the format is that of the kernel's dm-log-writes). A prefix of the log is what
// a disk had received when the power failed; what followed its last flush may or may not have
// reached the platter. Pulling the disk ends the daemon: from then on the device answers with EIO.

import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, statSync } from 'node:fs';
import { copyFile, mkdir, readFile, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { waitUntil } from '../support/replica-state.js';

const run = promisify(execFile);
/** Also where root's programs are when the tests' PATH lacks them. */
const DAEMON = 'qemu-storage-daemon';
const LOG_SECTOR_BYTES = 512;
const LOG_MAGIC = 0x6a736677736872n;
const FLAG_FLUSH = 1;
const FLAG_FUA = 2;
const FLAG_DISCARD = 4;

/** Why this machine cannot log a disk, for `skip`; false when it can. */
export function loggedDiskRefusal(): string | false {
  if (process.getuid?.() !== 0) return 'loop devices and mounts need root';
  if (!existsSync('/dev/fuse')) return 'there is no /dev/fuse';
  if (!existsSync('/dev/loop-control')) return 'there are no loop devices';
  try {
    const help = execFileSync(DAEMON, ['--help'], { encoding: 'utf8' });
    if (!/\bfuse\b/.test(help)) return `${DAEMON} cannot export through FUSE`;
    execFileSync('mkfs.ext4', ['-V'], { stdio: 'ignore' });
    return false;
  } catch {
    return `${DAEMON} (Debian: qemu-system-common) or mkfs.ext4 is not installed`;
  }
}

export class LoggedDisk {
  /** Where the file system is mounted. */
  readonly mount: string;
  readonly logPath: string;
  /** The device before anything was mounted. */
  readonly emptyImage: string;
  private readonly daemon: ChildProcess;
  private readonly loop: string;
  private isPulled = false;

  private constructor(directory: string, daemon: ChildProcess, loop: string) {
    this.mount = join(directory, 'mounted');
    this.logPath = join(directory, 'log');
    this.emptyImage = join(directory, 'empty.img');
    this.daemon = daemon;
    this.loop = loop;
  }

  /** @param directory exists and is empty. Pass end() to t.teardown(). */
  static async create(directory: string, sizeMib: number): Promise<LoggedDisk> {
    const at = (name: string): string => join(directory, name);
    for (const name of ['base.img', 'log', 'fuse']) await writeFile(at(name), '');
    await mkdir(at('mounted'));
    await truncate(at('base.img'), sizeMib * 1024 * 1024);
    await run('mkfs.ext4', ['-q', '-F', '-b', '4096', at('base.img')]);
    await copyFile(at('base.img'), at('empty.img'));
    const daemon = startDaemon(at);
    await waitUntil('the FUSE export is there', async () => {
      if (daemon.exitCode !== null) throw new Error(`${DAEMON} ended with ${daemon.exitCode}`);
      return (await stat(at('fuse'))).size > 0;
    });
    const loop = (await run('losetup', ['-f', '--show', at('fuse')])).stdout.trim();
    await run('mount', [loop, at('mounted')]);
    return new LoggedDisk(directory, daemon, loop);
  }

  /** Bytes of the log: all that the disk has been sent by now. */
  position(): number {
    return statSync(this.logPath).size;
  }

  /** From now on every request that reaches the device fails. */
  async pull(): Promise<void> {
    this.isPulled = true;
    const ended = once(this.daemon, 'exit');
    this.daemon.kill('SIGKILL');
    await ended;
  }

  /** Unmounts; the log is complete afterwards. No process may use the mount any more. */
  async end(): Promise<void> {
    // A sync agent notices the end of its replica a moment later, and has the directory until then.
    await waitUntil('nobody uses the disk', () =>
      run('umount', this.isPulled ? ['-l', this.mount] : [this.mount]).then(
        () => true,
        () => false,
      ),
    );
    await run('losetup', ['-d', this.loop]);
    if (this.isPulled) {
      await run('umount', ['-l', join(this.mount, '..', 'fuse')]).catch(() => undefined);
    }
    if (this.daemon.exitCode !== null || this.isPulled) return;
    const ended = once(this.daemon, 'exit');
    this.daemon.kill('SIGTERM');
    await ended;
  }
}

function startDaemon(at: (name: string) => string): ChildProcess {
  const blockdev = (text: string): string[] => ['--blockdev', text];
  return spawn(
    DAEMON,
    [
      ...blockdev(`driver=file,node-name=base,filename=${at('base.img')}`),
      ...blockdev('driver=raw,node-name=raw,file=base,discard=unmap'),
      ...blockdev(`driver=file,node-name=logfile,filename=${at('log')}`),
      ...blockdev('driver=raw,node-name=rawlog,file=logfile'),
      ...blockdev(
        `driver=blklogwrites,node-name=top,file=raw,log=rawlog,log-sector-size=${LOG_SECTOR_BYTES}`,
      ),
      '--export',
      `type=fuse,id=export,node-name=top,mountpoint=${at('fuse')},writable=on,allow-other=off`,
    ],
    { stdio: ['ignore', 'ignore', 'inherit'] },
  );
}

export interface LogEntry {
  /** Where its data is in the log, and how long. */
  readonly dataOffset: number;
  readonly lengthBytes: number;
  /** Where the device received it. */
  readonly deviceOffset: number;
  /** Position of the log once this entry is in it. */
  readonly endPosition: number;
  readonly isFlush: boolean;
  readonly isFua: boolean;
  readonly isDiscard: boolean;
}

export function parseLog(log: Buffer): LogEntry[] {
  if (log.readBigUInt64LE(0) !== LOG_MAGIC) throw new Error('this is no log of writes');
  const entries: LogEntry[] = [];
  let at = LOG_SECTOR_BYTES;
  while (at + LOG_SECTOR_BYTES <= log.length) {
    const flags = Number(log.readBigUInt64LE(at + 16));
    const lengthBytes = Number(log.readBigUInt64LE(at + 8)) * LOG_SECTOR_BYTES;
    const isDiscard = (flags & FLAG_DISCARD) !== 0;
    if (lengthBytes === 0 && flags === 0) break;
    const dataOffset = at + LOG_SECTOR_BYTES;
    const endPosition = dataOffset + (isDiscard ? 0 : lengthBytes);
    if (endPosition > log.length) break;
    entries.push({
      dataOffset,
      lengthBytes,
      deviceOffset: Number(log.readBigUInt64LE(at)) * LOG_SECTOR_BYTES,
      endPosition,
      isFlush: (flags & FLAG_FLUSH) !== 0,
      isFua: (flags & FLAG_FUA) !== 0,
      isDiscard,
    });
    at = endPosition;
  }
  return entries;
}

/** What is on the disk after a power failure; crash points must be asked for in ascending order. */
export class Replay {
  readonly entries: readonly LogEntry[];
  private readonly log: Buffer;
  private readonly durable: Buffer;
  private durableCount = 0;

  private constructor(empty: Buffer, log: Buffer) {
    this.durable = empty;
    this.log = log;
    this.entries = parseLog(log);
  }

  static async load(disk: LoggedDisk): Promise<Replay> {
    return new Replay(await readFile(disk.emptyImage), await readFile(disk.logPath));
  }

  /**
   * The device when the power fails after so many entries: everything up to the last flush among
   * them, and of what came later each request or not, as chance has it.
   */
  imageAfter(count: number, random: () => number): Buffer {
    let flushed = count;
    while (flushed > 0 && !this.entries[flushed - 1]?.isFlush) flushed--;
    while (this.durableCount < flushed) this.apply(this.durableCount++, this.durable);
    const image = Buffer.from(this.durable);
    for (let index = flushed; index < count; index++) {
      if (this.entries[index]?.isFua === true || random() < 0.5) this.apply(index, image);
    }
    return image;
  }

  private apply(index: number, image: Buffer): void {
    const entry = this.entries[index] as LogEntry;
    const { deviceOffset, lengthBytes, dataOffset } = entry;
    if (entry.isDiscard) image.fill(0, deviceOffset, deviceOffset + lengthBytes);
    else this.log.copy(image, deviceOffset, dataOffset, dataOffset + lengthBytes);
  }
}

/** Mounts an image while `use` runs; its errors are the caller's. */
export async function withMounted<T>(
  image: Buffer,
  directory: string,
  use: (mount: string) => Promise<T>,
): Promise<T> {
  const path = join(directory, 'replayed.img');
  const mount = join(directory, 'replayed');
  await writeFile(path, image);
  await mkdir(mount, { recursive: true });
  await run('mount', ['-o', 'loop', path, mount]);
  try {
    return await use(mount);
  } finally {
    await run('umount', [mount]);
  }
}

// The content of volume.roster: what a replica knows of itself and of who is in step. Pure codec of one
// slot; roster-store.ts has the file. A slot begins with a 32-byte header (magic, version, length,
// sequence, checksum), JSON follows. Longhorn ignores the file: its name does not end in .meta.

import { crc32 } from 'node:zlib';
import type { Roster } from '../core/roster.js';

/** A disk as it was when a fork was recorded. */
export interface DiskAtFork {
  /** Its file's change time, nanoseconds as decimal text. */
  readonly changedNs: string;
  readonly parent: string;
}

export interface RosterRecord {
  readonly replicaId: string;
  /** Newest engine generation served; 0 when there was none. */
  readonly engineGeneration: number;
  readonly roster: Roster | null;
  /** True when the directory was used by an engine that keeps no rosters since there was one. */
  readonly isVoid: boolean;
  /** Fork disk → the disks there were, the fork included. */
  readonly forks: Readonly<Record<string, Readonly<Record<string, DiskAtFork>>>>;
  /** Kernel it was last open on; '' when it never was, or the kernel has no id. */
  readonly bootId: string;
  /**
   * True when that kernel ended while it was open: what was acknowledged to the client but not flushed
   * may be missing here, until a checkpoint says that all replicas are alike.
   */
  readonly lacksUnflushed: boolean;
  /** Inode and change time of volume.meta after a clean close; null while open or after a crash. */
  readonly closedMeta: string | null;
}

const MAGIC = 'LHROSTER';
const VERSION = 1;
export const SLOT_HEADER_BYTES = 32;

/** One slot's bytes, without padding. */
export function encodeSlot(record: RosterRecord, sequence: number): Uint8Array {
  const body = Buffer.from(JSON.stringify(record), 'utf8');
  const slot = Buffer.alloc(SLOT_HEADER_BYTES + body.length);
  slot.write(MAGIC, 0, 'latin1');
  slot.writeUInt32LE(VERSION, 8);
  slot.writeUInt32LE(body.length, 12);
  slot.writeBigUInt64LE(BigInt(sequence), 16);
  body.copy(slot, SLOT_HEADER_BYTES);
  slot.writeUInt32LE(checksumOf(slot), 24);
  return slot;
}

/** Null for a slot that was never written, is torn or is of another version. */
export function decodeSlot(slot: Buffer): { record: RosterRecord; sequence: number } | null {
  if (slot.length < SLOT_HEADER_BYTES || slot.toString('latin1', 0, 8) !== MAGIC) return null;
  if (slot.readUInt32LE(8) !== VERSION) return null;
  const end = SLOT_HEADER_BYTES + slot.readUInt32LE(12);
  if (end > slot.length) return null;
  const used = slot.subarray(0, end);
  // The rest of the header is not used, and not written by anything of this version.
  if (used.readUInt32LE(24) !== checksumOf(used) || used.readUInt32LE(28) !== 0) return null;
  const record = JSON.parse(used.toString('utf8', SLOT_HEADER_BYTES)) as RosterRecord;
  return { record, sequence: Number(slot.readBigUInt64LE(16)) };
}

/** Of everything but the checksum itself. */
function checksumOf(slot: Buffer): number {
  return crc32(slot.subarray(SLOT_HEADER_BYTES), crc32(slot.subarray(0, 24)));
}

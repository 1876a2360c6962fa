// The replicas of one volume and their modes. Plain state with named transitions; it performs no
// I/O. The data path reads the two derived lists, which are rebuilt only when something changes.

import { StorageError } from '../core/errors.js';
import { REPLICAS_MAX } from '../core/limits.js';
import type { ReplicaPort } from './ports.js';
import { assertTransition, type ReplicaMode } from './replica-mode.js';

export class Member {
  readonly address: string;
  mode: ReplicaMode;
  /** Null for a replica that never could be connected, or no longer is. */
  port: ReplicaPort | null;
  /** Why it is ERR. */
  failure: StorageError | null = null;

  constructor(address: string, mode: ReplicaMode, port: ReplicaPort | null) {
    this.address = address;
    this.mode = mode;
    this.port = port;
  }
}

export class Membership {
  private members: Member[] = [];
  /** RW and WO: receive writes. Replaced, never changed, so that a fan-out can hold on to it. */
  live: readonly Member[] = [];
  /** RW: may be read. Replaced, never changed. */
  readable: readonly Member[] = [];

  get all(): readonly Member[] {
    return this.members;
  }

  get hasWriteOnly(): boolean {
    return this.live.length > this.readable.length;
  }

  find(address: string): Member | undefined {
    return this.members.find((member) => member.address === address);
  }

  /** @throws LIMIT_EXCEEDED, ALREADY_EXISTS. */
  add(address: string, mode: ReplicaMode, port: ReplicaPort | null): Member {
    if (this.members.length >= REPLICAS_MAX) {
      throw new StorageError('LIMIT_EXCEEDED', `a volume has at most ${REPLICAS_MAX} replicas`);
    }
    if (this.find(address) !== undefined) {
      throw new StorageError('ALREADY_EXISTS', `replica ${address} already exists`);
    }
    const member = new Member(address, mode, port);
    this.members.push(member);
    this.derive();
    return member;
  }

  /** RW or WO → ERR. Returns false when it already was ERR. */
  fail(member: Member, failure: StorageError): boolean {
    if (member.mode === 'ERR') return false;
    assertTransition(member.mode, 'ERR');
    member.mode = 'ERR';
    member.failure = failure;
    this.derive();
    return true;
  }

  /** WO → RW. */
  promote(member: Member): void {
    assertTransition(member.mode, 'RW');
    member.mode = 'RW';
    this.derive();
  }

  remove(member: Member): void {
    this.members = this.members.filter((other) => other !== member);
    this.derive();
  }

  clear(): void {
    this.members = [];
    this.derive();
  }

  private derive(): void {
    this.live = this.members.filter((member) => member.mode !== 'ERR' && member.port !== null);
    this.readable = this.live.filter((member) => member.mode === 'RW');
  }
}

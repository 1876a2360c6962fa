// The replicas of the running volume as the control operations see them: connect, fail, close, and
// the same operation on all of them with Longhorn's rule for failures: who fails becomes ERR, and
// the operation fails only when no readable replica is left.

import { BLOCK_OP, submitAndWait } from '../core/block-device.js';
import type { Clock } from '../core/clock.js';
import { StorageError, toStorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import { type Member, Membership } from './membership.js';
import type { ConnectOptions, ReplicaConnector, ReplicaInfo, ReplicaPort } from './ports.js';
import type { ReplicaMode } from './replica-mode.js';

export interface GroupOptions {
  readonly connector: ReplicaConnector;
  readonly clock: Clock;
  readonly log: Logger;
  readonly replicaTimeoutMs: number;
  /** A member failed and has just left the membership; its port still says who it was. */
  readonly memberFailed: (member: Member, port: ReplicaPort, error: StorageError) => void;
  /** A member was taken out on purpose. */
  readonly memberRemoved: (member: Member, port: ReplicaPort) => void;
  /** A replica that was no member has left. */
  readonly joinerLeft: (member: Member) => void;
}

export interface MemberResult {
  readonly member: Member;
  readonly error: StorageError | null;
}

export class ReplicaGroup {
  readonly membership = new Membership();
  private readonly options: GroupOptions;
  private readonly closing = new Set<Promise<void>>();

  constructor(options: GroupOptions) {
    this.options = options;
  }

  /** What a replica says of itself, unopened; null when it does not answer. */
  async probe(address: string): Promise<ReplicaInfo | null> {
    return this.options.connector.probe(address).catch(() => null);
  }

  connect(
    address: string,
    options: Pick<
      ConnectOptions,
      'isUpgrade' | 'expectedSizeBytes' | 'engineGeneration' | 'mayTakeOver'
    >,
  ): Promise<ReplicaPort> {
    return this.options.connector.connect(address, {
      ...options,
      silenceMaxMs: () => this.silenceMaxMs(),
      onFailure: (port, error) => this.lost(port, error),
    });
  }

  add(address: string, mode: ReplicaMode, port: ReplicaPort | null): Member {
    const member = this.membership.add(address, mode, port);
    if (port !== null) port.zeroesAsData = mode === 'WO';
    this.options.log.info('replica.added', { replica: address, mode });
    return member;
  }

  promote(member: Member): void {
    this.membership.promote(member);
    if (member.port !== null) member.port.zeroesAsData = false;
    this.options.log.info('replica.mode.changed', {
      replica: member.address,
      from: 'WO',
      to: 'RW',
    });
  }

  /** Moves a replica to ERR at once and lets go of it; its process is told to close if it can be. */
  fail(member: Member, error: StorageError): void {
    const from = member.mode;
    if (!this.membership.fail(member, error)) return;
    const { address, port } = member;
    this.options.log.warn('replica.mode.changed', { replica: address, from, to: 'ERR', error });
    if (from === 'RW' && port !== null) this.options.memberFailed(member, port, error);
    else this.options.joinerLeft(member);
    this.release(member);
  }

  remove(member: Member): void {
    const { mode, port } = member;
    this.membership.remove(member);
    if (mode === 'RW' && port !== null) this.options.memberRemoved(member, port);
    else this.options.joinerLeft(member);
    this.options.log.info('replica.removed', { replica: member.address, mode: member.mode });
    this.release(member);
  }

  /** Closes a connected replica in the background. */
  closePort(port: ReplicaPort): void {
    const closed = port.close().catch((error: unknown) => {
      const { address } = port;
      this.options.log.debug('replica.close.failed', { replica: address, error });
    });
    this.closing.add(closed);
    void closed.finally(() => this.closing.delete(closed));
  }

  /** Forgets all replicas and waits until those that can be closed are. */
  async closeAll(): Promise<void> {
    const members = this.membership.all;
    this.membership.clear();
    for (const member of members) this.release(member);
    await Promise.all(this.closing);
  }

  /** Runs `action` on every live replica in parallel. Failures are reported, not acted upon. */
  async onLive(action: (port: ReplicaPort) => Promise<void>): Promise<MemberResult[]> {
    return Promise.all(this.membership.live.map((member) => runOn(member, action)));
  }

  /**
   * Runs `action` on every live replica; those that fail become ERR. When no readable one has done
   * it, those that it left as they were stay, for they are still equal, and a WO replica that did
   * it leaves. @throws the first failure when no readable replica has done it, or none is left.
   */
  async onLiveOrFail(action: (port: ReplicaPort) => Promise<void>): Promise<void> {
    this.settle(await this.onLive(action));
  }

  /** Judges the results of onLive as onLiveOrFail does. @throws as it does. */
  settle(results: readonly MemberResult[]): void {
    const readable = results.filter(({ member }) => member.mode === 'RW');
    const nobodyDid = readable.length > 0 && readable.every(({ error }) => error !== null);
    for (const { member, error } of results) {
      const isAsTheOthers = nobodyDid
        ? error !== null && leftReplicaAsItWas(error)
        : error === null;
      if (!isAsTheOthers) this.fail(member, error ?? didAlone(member));
    }
    const first = [...readable, ...results].find(({ error }) => error !== null)?.error ?? null;
    const isLost = results.length > 0 && this.membership.readable.length === 0;
    if (!nobodyDid && !isLost) return;
    throw first ?? new StorageError('NO_BACKEND', 'no backend available');
  }

  /** Everything answered so far is durable on the replica. @throws what its flush fails with. */
  async flush(port: ReplicaPort): Promise<void> {
    await submitAndWait(port, { op: BLOCK_OP.flush });
  }

  /** What the live replicas say of themselves; the unreachable ones are left out. */
  async infos(): Promise<{ member: Member; info: ReplicaInfo }[]> {
    const answers = await Promise.all(
      this.membership.live.map(async (member) => {
        const info = await member.port?.control.get().catch(() => null);
        return info === null || info === undefined ? null : { member, info };
      }),
    );
    return answers.filter((answer) => answer !== null);
  }

  private lost(port: ReplicaPort, error: StorageError): void {
    const member = this.membership.all.find((candidate) => candidate.port === port);
    if (member !== undefined) this.fail(member, error);
  }

  private release(member: Member): void {
    const { port } = member;
    member.port = null;
    if (port !== null) this.closePort(port);
  }

  /** The last readable replica gets twice the time: giving it up means giving up the volume. */
  silenceMaxMs(): number {
    const { replicaTimeoutMs } = this.options;
    return this.membership.readable.length > 1 ? replicaTimeoutMs : 2 * replicaTimeoutMs;
  }
}

/**
 * A replica refuses a senseless or excluded request before it changes anything, and takes a change
 * back for which it has no space; where it could not, it refuses every further request itself.
 */
export function leftReplicaAsItWas({ kind, code }: StorageError): boolean {
  return kind === 'request' || kind === 'resource' || code === 'BUSY';
}

function didAlone({ address }: Member): StorageError {
  return new StorageError('INVALID_STATE', `${address} did what every readable replica refused`);
}

async function runOn(
  member: Member,
  action: (port: ReplicaPort) => Promise<void>,
): Promise<MemberResult> {
  try {
    if (member.port === null) throw new StorageError('CONNECTION_LOST', `${member.address}: EOF`);
    await action(member.port);
    return { member, error: null };
  } catch (error) {
    return { member, error: toStorageError(error) };
  }
}

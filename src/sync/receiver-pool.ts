// The receivers of one sync agent and their port range. A file has at most one receiver: a newer
// one first ends the older and waits for its I/O, so that a sender left over from a broken attempt
// cannot write into a file that is being received again.

import type { Clock } from '../core/clock.js';
import { StorageError } from '../core/errors.js';
import type { Logger } from '../core/log.js';
import type { Disk } from '../disk/disk.js';
import { isHeadName } from '../image/names.js';
import { checkFileName } from './query.js';
import { Receiver } from './receiver.js';

export interface PortRange {
  readonly firstPort: number;
  readonly count: number;
}

export interface ReceiverPoolOptions {
  readonly disk: Disk;
  readonly clock: Clock;
  readonly log: Logger;
  readonly directory: string;
  readonly ports: PortRange;
  /** Address that receivers listen on; all by default. */
  readonly host?: string;
}

/** Who wants to hear of a receiver's data. */
export interface ReceiverListener {
  /** Bytes that arrived, or were found to be there already. */
  readonly onProgress?: (bytes: number) => void;
  /** Bytes that arrived. */
  readonly onReceived?: (bytes: number) => void;
}

export class ReceiverPool {
  private readonly options: ReceiverPoolOptions;
  private readonly receivers = new Map<string, Receiver>();
  private readonly usedPorts = new Set<number>();
  private nextIndex = 0;
  /** Launches run one after the other: the port and the file must not be taken twice. */
  private launching: Promise<unknown> = Promise.resolve();
  private isClosed = false;

  constructor(options: ReceiverPoolOptions) {
    this.options = options;
  }

  /** @throws INVALID_NAME, INVALID_ARGUMENT for the live head, LIMIT_EXCEEDED "out of ports". */
  launch(fileName: string, listener: ReceiverListener = {}): Promise<Receiver> {
    const launched = this.launching.then(() => this.launchNow(fileName, listener));
    this.launching = launched.catch(() => undefined);
    return launched;
  }

  get size(): number {
    return this.receivers.size;
  }

  async close(): Promise<void> {
    this.isClosed = true;
    await this.launching;
    await Promise.all([...this.receivers.values()].map((receiver) => receiver.cancel()));
  }

  private async launchNow(fileName: string, listener: ReceiverListener): Promise<Receiver> {
    if (this.isClosed) throw new StorageError('CLOSED', 'the sync agent is stopping');
    checkFileName(fileName);
    if (isHeadName(fileName)) {
      throw new StorageError('INVALID_ARGUMENT', `${fileName} is written by the replica only`);
    }
    await this.receivers.get(fileName)?.cancel();
    for (let tried = 0; tried < this.options.ports.count; tried++) {
      const port = this.takePort();
      if (port === null) break;
      const receiver = await this.tryPort(port, fileName, listener);
      if (receiver !== null) return receiver;
    }
    throw new StorageError('LIMIT_EXCEEDED', 'out of ports');
  }

  /** Null when another program has the port. */
  private async tryPort(
    port: number,
    fileName: string,
    listener: ReceiverListener,
  ): Promise<Receiver | null> {
    const { ports: _ports, ...common } = this.options;
    let receiver: Receiver;
    try {
      receiver = await Receiver.launch({ ...common, fileName, port, ...listener });
    } catch (error) {
      this.usedPorts.delete(port);
      if (error instanceof StorageError && error.code === 'ADDRESS_IN_USE') return null;
      throw error;
    }
    this.receivers.set(fileName, receiver);
    void receiver.done.then(() => {
      this.usedPorts.delete(port);
      if (this.receivers.get(fileName) === receiver) this.receivers.delete(fileName);
    });
    return receiver;
  }

  /** The next free port in turn, so that one just left is not reused at once. */
  private takePort(): number | null {
    const { firstPort, count } = this.options.ports;
    for (let step = 0; step < count; step++) {
      const index = (this.nextIndex + step) % count;
      if (this.usedPorts.has(firstPort + index)) continue;
      this.nextIndex = (index + 1) % count;
      this.usedPorts.add(firstPort + index);
      return firstPort + index;
    }
    return null;
  }
}

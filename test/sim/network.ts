// The simulated network: hosts, links that delay, hold or lose, and ordered pipes over them. A pipe
// keeps its order like TCP; different pipes overtake each other. Between partitioned hosts nothing
// arrives until the partition heals, then everything that was not given up does, however old.

import type { Rng } from './rng.js';
import type { Scheduler, SimProcess } from './scheduler.js';

export interface LinkQuality {
  readonly latencyUs: number;
  readonly jitterUs: number;
}

interface Parcel {
  readonly deliver: () => void;
  isDropped: boolean;
}

/** One direction of one connection. */
export class Pipe {
  readonly from: string;
  readonly to: string;
  private readonly network: SimNetwork;
  private lastUs = 0;
  private held: Parcel[] = [];
  private onTheWay: Parcel[] = [];

  constructor(network: SimNetwork, from: string, to: string) {
    this.network = network;
    this.from = from;
    this.to = to;
  }

  /** Delivers after everything pushed before. */
  push(deliver: () => void): void {
    const parcel: Parcel = { deliver, isDropped: false };
    if (this.held.length > 0 || this.network.isCut(this.from, this.to)) this.held.push(parcel);
    else this.dispatch(parcel);
  }

  /** What is on its way never arrives. */
  drop(): void {
    for (const parcel of this.onTheWay) parcel.isDropped = true;
    this.onTheWay = [];
    this.held = [];
  }

  healed(): void {
    const waiting = this.held;
    this.held = [];
    for (const parcel of waiting) this.dispatch(parcel);
  }

  private dispatch(parcel: Parcel): void {
    const { scheduler } = this.network;
    const atUs = Math.max(this.lastUs, scheduler.nowUs + this.network.delayUs(this.from, this.to));
    this.lastUs = atUs + 1;
    this.onTheWay.push(parcel);
    scheduler.after(atUs - scheduler.nowUs, () => {
      if (parcel.isDropped) return;
      this.onTheWay.splice(this.onTheWay.indexOf(parcel), 1);
      // A partition that began meanwhile stops it too.
      if (this.network.isCut(this.from, this.to)) this.held.push(parcel);
      else if (!this.network.isDown(this.to)) parcel.deliver();
    });
  }
}

export class SimNetwork {
  readonly scheduler: Scheduler;
  readonly rng: Rng;
  private readonly cuts = new Set<string>();
  private readonly down = new Set<string>();
  private readonly pipes = new Set<Pipe>();
  private readonly quality = new Map<string, LinkQuality>();
  private readonly defaultQuality: LinkQuality;

  constructor(scheduler: Scheduler, rng: Rng, defaultQuality: LinkQuality) {
    this.scheduler = scheduler;
    this.rng = rng;
    this.defaultQuality = defaultQuality;
  }

  pipe(from: string, to: string): Pipe {
    const pipe = new Pipe(this, from, to);
    this.pipes.add(pipe);
    return pipe;
  }

  forget(pipe: Pipe): void {
    this.pipes.delete(pipe);
  }

  setQuality(host: string, quality: LinkQuality | null): void {
    if (quality === null) this.quality.delete(host);
    else this.quality.set(host, quality);
  }

  delayUs(from: string, to: string): number {
    if (from === to) return 5 + this.rng.below(20);
    const { latencyUs, jitterUs } =
      this.quality.get(from) ?? this.quality.get(to) ?? this.defaultQuality;
    return latencyUs + this.rng.below(jitterUs + 1);
  }

  isCut(from: string, to: string): boolean {
    return this.cuts.size > 0 && from !== to && this.cuts.has(linkOf(from, to));
  }

  get cutCount(): number {
    return this.cuts.size;
  }

  isDown(host: string): boolean {
    return this.down.has(host);
  }

  setDown(host: string, isDown: boolean): void {
    if (isDown) this.down.add(host);
    else this.down.delete(host);
  }

  partition(a: string, b: string): void {
    this.cuts.add(linkOf(a, b));
  }

  heal(a: string, b: string): void {
    if (!this.cuts.delete(linkOf(a, b))) return;
    for (const pipe of this.pipes) if (!this.isCut(pipe.from, pipe.to)) pipe.healed();
  }

  healAll(): void {
    this.cuts.clear();
    for (const pipe of this.pipes) pipe.healed();
  }
}

function linkOf(a: string, b: string): string {
  return a < b ? `${a}|${b}` : `${b}|${a}`;
}

/** What listens where; addresses are `host:port`. */
export class Ports<T> {
  private readonly listeners = new Map<string, { process: SimProcess; what: T }>();

  listen(process: SimProcess, port: number, what: T): () => void {
    const key = `${process.host}:${port}`;
    const entry = { process, what };
    this.listeners.set(key, entry);
    const close = (): void => {
      if (this.listeners.get(key) === entry) this.listeners.delete(key);
    };
    process.whenEnded(close);
    return close;
  }

  at(host: string, port: number): { process: SimProcess; what: T } | undefined {
    return this.listeners.get(`${host}:${port}`);
  }
}

// How the engine switches its frontend without knowing any protocol; cli/ wires the real ones.

export interface FrontendPort {
  /** Name it was last started with; '' when there never was one. */
  readonly name: string;
  readonly state: '' | 'up' | 'down';
  /** Where clients attach: an NBD URI, a socket path; '' when down. */
  readonly endpoint: string;
  /** Starts the named frontend, again if it is the same one. @throws INVALID_ARGUMENT unknown name. */
  start(name: string): Promise<void>;
  /** Idempotent; answers what is in flight first. */
  shutdown(): Promise<void>;
  /** Tells attached clients of the new size where their protocol can. */
  resized(sizeBytes: number): Promise<void>;
}

/** For an engine without any frontend. */
export const noFrontend: FrontendPort = {
  name: '',
  state: '',
  endpoint: '',
  start: () => Promise.resolve(),
  shutdown: () => Promise.resolve(),
  resized: () => Promise.resolve(),
};

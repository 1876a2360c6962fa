// The state of a long operation as the sync agent's status calls report it. The three words are
// part of Longhorn's API; the empty one means that it never ran. Source: control-api §3.

export type OperationState = '' | 'in_progress' | 'complete' | 'error';

export interface OperationStatus {
  readonly state: OperationState;
  readonly error: string;
  /** Percent, whole. */
  readonly progress: number;
}

export const NEVER_RAN: OperationStatus = { state: '', error: '', progress: 0 };

/** Whole percent, below 100 until the work is complete. */
export function percent(done: number, total: number): number {
  return Math.min(99, Math.floor((100 * done) / Math.max(total, 1)));
}

export function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

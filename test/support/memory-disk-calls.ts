// The calls of the memory disk, as fault hooks and its log see them.

import { DISK_OP } from '../../src/disk/disk.js';

/** What a call is about to do; passed to the fault hook and listed in the call log. */
export interface DiskCall {
  readonly kind:
    | 'open'
    | 'read'
    | 'write'
    | 'sync'
    | 'punchHole'
    | 'zeroRange'
    | 'truncate'
    | 'extents'
    | 'readFile'
    | 'writeFile'
    | 'rename'
    | 'exchange'
    | 'link'
    | 'unlink'
    | 'makeDirectory'
    | 'removeDirectory'
    | 'list'
    | 'stat'
    | 'syncDirectory';
  readonly path: string;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

export const QUESTIONS: ReadonlySet<DiskCall['kind']> = new Set([
  'open',
  'read',
  'extents',
  'readFile',
  'list',
  'stat',
]);

export const KIND_OF_OP = {
  [DISK_OP.read]: 'read',
  [DISK_OP.write]: 'write',
  [DISK_OP.sync]: 'sync',
  [DISK_OP.punchHole]: 'punchHole',
  [DISK_OP.zeroRange]: 'zeroRange',
} as const satisfies Record<number, DiskCall['kind']>;

// What an NBD server offers by name: a block device and how it is announced.

import type { BlockDevice } from '../../core/block-device.js';
import { NBD_TRANSMISSION_FLAG } from '../../wire/nbd/constants.js';

export interface NbdExport {
  readonly device: BlockDevice;
  /** For people, shown by `nbdinfo --list`. */
  readonly description: string;
  readonly readOnly: boolean;
  /**
   * True when the device zeroes whole sectors faster than a client could write zeroes. Then
   * NBD_CMD_FLAG_FAST_ZERO succeeds for aligned ranges; otherwise it is refused with ENOTSUP.
   */
  readonly zeroesFast?: boolean;
}

/** Exports by name. The name '' is the default export; a single export is that by itself. */
export type NbdExports = ReadonlyMap<string, NbdExport>;

export interface NamedExport extends NbdExport {
  readonly name: string;
}

export function findExport(exports: NbdExports, name: string): NamedExport | null {
  const found = exports.get(name);
  if (found !== undefined) return { ...found, name };
  if (name !== '' || exports.size !== 1) return null;
  for (const [onlyName, only] of exports) return { ...only, name: onlyName };
  return null;
}

/**
 * Every connection talks to the one device behind them, whose flush covers all completed writes,
 * so several connections may be used together (CAN_MULTI_CONN).
 */
export function transmissionFlagsOf(exported: NbdExport, structuredReplies: boolean): number {
  const flag = NBD_TRANSMISSION_FLAG;
  let flags = flag.hasFlags | flag.sendFlush | flag.sendFua | flag.canMultiConn | flag.sendCache;
  flags |= exported.readOnly
    ? flag.readOnly
    : flag.sendTrim | flag.sendWriteZeroes | flag.sendFastZero;
  if (structuredReplies) flags |= flag.sendDf;
  return flags;
}

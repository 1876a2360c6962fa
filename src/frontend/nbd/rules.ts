// What the protocol allows in a request: which flags go with which command, which ranges, which
// lengths. Pure; each rule names the error that proto.md asks for when it is broken.

import { NBD_PAYLOAD_BYTES_MAX, REQUEST_BYTES_MAX } from '../../core/limits.js';
import { isSectorAligned, u64FromHalves } from '../../core/units.js';
import {
  NBD_COMMAND,
  NBD_COMMAND_FLAG,
  NBD_ERROR,
  type NbdError,
} from '../../wire/nbd/constants.js';
import type { NbdRequestHeader } from '../../wire/nbd/decoder.js';
import { altersData, nbdRangeErrorOf } from './error-map.js';
import type { Agreement } from './negotiation.js';

/**
 * Flags allowed by command, besides FUA, which every command must accept (section "Command
 * flags"). The index is the command.
 */
const FLAGS_OF_COMMAND = [
  NBD_COMMAND_FLAG.dontFragment, // read
  0, // write
  0, // disconnect
  0, // flush
  0, // trim
  0, // cache
  NBD_COMMAND_FLAG.noHole | NBD_COMMAND_FLAG.fastZero, // writeZeroes
  NBD_COMMAND_FLAG.requestOne, // blockStatus
] as const;

const SAFE_HIGH_MAX = 0x1f_ffff;

/** Offset of a request in bytes; beyond every device when it does not fit an exact number. */
export function requestOffset(header: NbdRequestHeader): number {
  if (header.offsetHigh > SAFE_HIGH_MAX) return Number.MAX_SAFE_INTEGER;
  return u64FromHalves(header.offsetHigh, header.offsetLow, 'offset');
}

/** NBD_ERROR.none when the request may run. DISC and oversized writes are not asked about. */
export function checkRequest(header: NbdRequestHeader, agreement: Agreement): NbdError {
  const { command, lengthBytes } = header;
  const flagsError = checkFlags(header, agreement);
  if (flagsError !== NBD_ERROR.none) return flagsError;
  if (command === NBD_COMMAND.flush) {
    // Section "Request types": offset and length are reserved and MUST be zero.
    const isPlain = (header.offsetHigh | header.offsetLow | lengthBytes) === 0;
    return isPlain ? NBD_ERROR.none : NBD_ERROR.EINVAL;
  }
  const { exported } = agreement;
  if (exported.readOnly && altersData(command)) return NBD_ERROR.EPERM;
  if (lengthBytes === 0) return NBD_ERROR.EINVAL;
  if (requestOffset(header) + lengthBytes > exported.device.sizeBytes) {
    return nbdRangeErrorOf(command);
  }
  if (command === NBD_COMMAND.read) return checkRead(header);
  if (command === NBD_COMMAND.writeZeroes) return checkWriteZeroes(header, agreement);
  if (command === NBD_COMMAND.blockStatus && !agreement.blockStatus) return NBD_ERROR.EINVAL;
  return NBD_ERROR.none;
}

function checkFlags({ command, flags }: NbdRequestHeader, agreement: Agreement): NbdError {
  const allowed = FLAGS_OF_COMMAND[command];
  if (allowed === undefined) return NBD_ERROR.EINVAL; // no such command
  if ((flags & ~(allowed | NBD_COMMAND_FLAG.fua)) !== 0) return NBD_ERROR.EINVAL;
  const wantsWhole = (flags & NBD_COMMAND_FLAG.dontFragment) !== 0;
  return wantsWhole && !agreement.structuredReplies ? NBD_ERROR.EINVAL : NBD_ERROR.none;
}

function checkRead({ flags, lengthBytes }: NbdRequestHeader): NbdError {
  if (lengthBytes > NBD_PAYLOAD_BYTES_MAX) return NBD_ERROR.EINVAL;
  const wantsWhole = (flags & NBD_COMMAND_FLAG.dontFragment) !== 0;
  return wantsWhole && lengthBytes > REQUEST_BYTES_MAX ? NBD_ERROR.EOVERFLOW : NBD_ERROR.none;
}

function checkWriteZeroes(header: NbdRequestHeader, { exported }: Agreement): NbdError {
  if ((header.flags & NBD_COMMAND_FLAG.fastZero) === 0) return NBD_ERROR.none;
  const isFast =
    exported.zeroesFast === true &&
    (header.flags & NBD_COMMAND_FLAG.noHole) === 0 &&
    isSectorAligned(header.offsetLow) &&
    isSectorAligned(header.lengthBytes);
  return isFast ? NBD_ERROR.none : NBD_ERROR.ENOTSUP;
}

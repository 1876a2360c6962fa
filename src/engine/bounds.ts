// Whether a request lies within the volume; the refusals are Longhorn's (facts: engine-semantics §3). Pure.

import { BLOCK_OP, type BlockRequest } from '../core/block-device.js';
import { StorageError } from '../core/errors.js';

/** By BLOCK_OP. */
const VERB = ['Read', 'Write', 'Flush', 'unmap', 'Write', 'Read'] as const;

/** Null when it does; a flush always does. */
export function checkBounds(request: BlockRequest, sizeBytes: number): StorageError | null {
  if (request.op === BLOCK_OP.flush) return null;
  const { offsetBytes, lengthBytes } = request;
  if (offsetBytes >= 0 && offsetBytes + lengthBytes <= sizeBytes) return null;
  const verb = VERB[request.op];
  const text = `EOF: ${verb} of ${lengthBytes} bytes at offset ${offsetBytes} is beyond volume size ${sizeBytes}`;
  return new StorageError('OUT_OF_RANGE', text, { offsetBytes, lengthBytes });
}

// Errors cross the data protocol as text. This is the one place that reads such text: peers agree
// on a phrase (facts of the protocol: a full disk is recognised by it); fencing has one of our own.

import { StorageError } from '../../core/errors.js';
import { FRAME_TYPE, NO_SPACE_TEXT, SUPERSEDED_TEXT } from './constants.js';

/** What an error frame of this type and text means. */
export function errorFromText(text: string, type: number): StorageError {
  if (type === FRAME_TYPE.noSpace || text.includes(NO_SPACE_TEXT)) {
    return new StorageError('NO_SPACE', text === '' ? NO_SPACE_TEXT : text);
  }
  if (text.includes(SUPERSEDED_TEXT)) return new StorageError('FENCED', text);
  return new StorageError('PEER_ERROR', text === '' ? 'the peer gave no reason' : text);
}

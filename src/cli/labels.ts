// Labels of a snapshot as `--label key=value`. Keys are Kubernetes' qualified names, because
// Longhorn puts them on custom resources: PREFIX/NAME, the prefix being a DNS name.

import { StorageError } from '../core/errors.js';

const NAME = /^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$/;
const DNS_NAME = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const NAME_LENGTH_MAX = 63;
const PREFIX_LENGTH_MAX = 253;

function refusal(why: string): StorageError {
  return new StorageError('INVALID_ARGUMENT', `cannot parse labels: ${why}`);
}

function checkKey(key: string): void {
  const parts = key.split('/');
  const name = parts.at(-1) ?? '';
  const prefix = parts.length > 1 ? parts[0] : undefined;
  if (parts.length > 2) throw refusal(`invalid key ${key} for label: more than one slash`);
  if (prefix !== undefined && (prefix.length > PREFIX_LENGTH_MAX || !DNS_NAME.test(prefix))) {
    throw refusal(`invalid key ${key} for label: prefix part must be a DNS name`);
  }
  if (name.length <= NAME_LENGTH_MAX && NAME.test(name)) return;
  throw refusal(
    `invalid key ${key} for label: name part must consist of alphanumeric characters, '-', '_' or ` +
      `'.', and must start and end with an alphanumeric character, at most ${NAME_LENGTH_MAX} of them`,
  );
}

/** The last value of a key counts. @throws INVALID_ARGUMENT. */
export function parseLabels(texts: readonly string[]): Record<string, string> {
  const labels: Record<string, string> = {};
  for (const text of texts) {
    const at = text.indexOf('=');
    if (at < 0) throw refusal(`invalid label not in <key>=<value> format ${text}`);
    const key = text.slice(0, at);
    const value = text.slice(at + 1);
    checkKey(key);
    if (value === '') throw refusal(`invalid empty value for label with key ${key}`);
    labels[key] = value;
  }
  return labels;
}

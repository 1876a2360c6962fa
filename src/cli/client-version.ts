// Versions of this program in Longhorn's form; loads nothing else, so that it answers at once.

import { OWN_VERSION, type VersionDetail } from '../core/version.js';
import { jsonText, print } from './output.js';

export function printVersions(serverVersion: VersionDetail | null): void {
  print(jsonText({ clientVersion: OWN_VERSION, serverVersion }));
}

export function printClientVersion(): void {
  printVersions(null);
}

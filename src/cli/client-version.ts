// Versions of this program in Longhorn's form; loads nothing else, so that it answers at once.

import {
  CLI_API_MIN_VERSION,
  CLI_API_VERSION,
  CONTROLLER_API_MIN_VERSION,
  CONTROLLER_API_VERSION,
  DATA_FORMAT_MIN_VERSION,
  DATA_FORMAT_VERSION,
  VERSION,
} from '../core/version.js';
import { jsonText, print } from './output.js';

/** Keys in Longhorn's order. */
export interface VersionText {
  readonly version: string;
  readonly gitCommit: string;
  readonly buildDate: string;
  readonly cliAPIVersion: number;
  readonly cliAPIMinVersion: number;
  readonly controllerAPIVersion: number;
  readonly controllerAPIMinVersion: number;
  readonly dataFormatVersion: number;
  readonly dataFormatMinVersion: number;
}

const CLIENT_VERSION: VersionText = {
  version: VERSION,
  gitCommit: '',
  buildDate: '',
  cliAPIVersion: CLI_API_VERSION,
  cliAPIMinVersion: CLI_API_MIN_VERSION,
  controllerAPIVersion: CONTROLLER_API_VERSION,
  controllerAPIMinVersion: CONTROLLER_API_MIN_VERSION,
  dataFormatVersion: DATA_FORMAT_VERSION,
  dataFormatMinVersion: DATA_FORMAT_MIN_VERSION,
};

export function printVersions(serverVersion: VersionText | null): void {
  print(jsonText({ clientVersion: CLIENT_VERSION, serverVersion }));
}

export function printClientVersion(): void {
  printVersions(null);
}

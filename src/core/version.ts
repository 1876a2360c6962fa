// Versions that peers and the control plane compare (facts: Longhorn's pkg/meta/version.go).

/** As Longhorn's version command and VersionDetailGet give them; keys in Longhorn's order. */
export interface VersionDetail {
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

/** Of this program, whichever process answers. */
export const OWN_VERSION: VersionDetail = {
  version: '0.1.0',
  gitCommit: '',
  buildDate: '',
  cliAPIVersion: 12,
  cliAPIMinVersion: 8,
  controllerAPIVersion: 6,
  controllerAPIMinVersion: 4,
  dataFormatVersion: 1,
  dataFormatMinVersion: 1,
};

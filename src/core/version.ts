// Versions that peers and the control plane compare (facts: Longhorn's pkg/meta/version.go).

export const VERSION = '0.1.0';
export const CLI_API_VERSION = 12;
export const CLI_API_MIN_VERSION = 8;
export const CONTROLLER_API_VERSION = 6;
export const CONTROLLER_API_MIN_VERSION = 4;
export const DATA_FORMAT_VERSION = 1;
export const DATA_FORMAT_MIN_VERSION = 1;

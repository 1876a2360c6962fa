// Where the unix data socket of a volume is (facts: on-disk §11, data-protocol §3): only with
// --data-server-protocol unix, for one replica beside its engine.

import { isAbsolute, normalize } from 'node:path';

const CONTROL_PATH_DEFAULT = '/var/lib/longhorn';
const HOST_PREFIX = '/host';

/** LONGHORN_CONTROL_PATH when it is a sensible absolute path, else the default. */
export function controlPath(env: NodeJS.ProcessEnv): string {
  const wanted = env['LONGHORN_CONTROL_PATH'] ?? '';
  if (!isAbsolute(wanted)) return CONTROL_PATH_DEFAULT;
  const path = normalize(wanted).replace(/\/+$/, '');
  return path === '' || path === '/dev' || path.startsWith('/dev/') ? CONTROL_PATH_DEFAULT : path;
}

export function unixDataSocketPath(env: NodeJS.ProcessEnv, volumeName: string): string {
  return `${HOST_PREFIX}${controlPath(env)}/unix-domain-socket/${volumeName}.sock`;
}

// NBD URIs as libnbd and qemu read them (NetworkBlockDevice/nbd, doc/uri.md).

import type { Endpoint } from '../../transport/connection.js';

/** `nbd://HOST:PORT/NAME` or `nbd+unix:///NAME?socket=PATH`; `nbds…` when TLS is required. */
export function nbdUri(endpoint: Endpoint, exportName: string, tls = false): string {
  const scheme = tls ? 'nbds' : 'nbd';
  const name = encodeURIComponent(exportName);
  if (endpoint.kind === 'unix') {
    return `${scheme}+unix:///${name}?socket=${encodePath(endpoint.path)}`;
  }
  const host = endpoint.host.includes(':') ? `[${endpoint.host}]` : endpoint.host;
  return `${scheme}://${host}:${endpoint.port}/${name}`;
}

/** Slashes stay readable: they need no encoding in a query. */
function encodePath(path: string): string {
  return path.split('/').map(encodeURIComponent).join('/');
}

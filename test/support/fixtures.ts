// Where tests find the project's own files and the golden data recorded from Longhorn itself.
// Golden data is optional: a test that needs it says so and skips, it never passes silently.

import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Root of the checkout; this file runs as dist/test/support/fixtures.js. */
export const repoRoot = fileURLToPath(new URL('../../../', import.meta.url));

/** The small selection of golden data that is committed, so that a clone alone checks compatibility. */
export const committedFixturesDir = join(repoRoot, 'test/fixtures');

/** Say this when a test skips itself for want of golden data. */
export const FIXTURES_MISSING = 'no golden data: set LONGHORN_FIXTURES to its directory';

/**
 * Directory of the full golden data (replica-dirs/, wire/, grpc/, cli/): $LONGHORN_FIXTURES, else
 * ../shared/fixtures/given beside the checkout. Null when neither exists.
 * @throws when LONGHORN_FIXTURES is set to what is no directory: a typing error must not skip tests.
 */
export function fixturesDir(): string | null {
  const named = process.env['LONGHORN_FIXTURES'];
  if (named !== undefined && named !== '') {
    if (!existsSync(named)) throw new Error(`LONGHORN_FIXTURES names no directory: ${named}`);
    return resolve(named);
  }
  const beside = resolve(repoRoot, '../shared/fixtures/given');
  return existsSync(beside) ? beside : null;
}

// The quick checks: layers, house style, documents, lint. `npm run check` adds the type check;
// ./scripts/test runs them before the tests, which also prove that they can fail.

import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { checkDocs } from './check-docs.mjs';
import { checkLayers } from './check-layers.mjs';
import { checkStyle } from './check-style.mjs';
import { closingLine } from './closing-line.mjs';
import { repoRoot } from './source-files.mjs';

const BIOME = join(repoRoot, 'tools/node_modules/.bin/biome');

/** @returns biome's findings, or null when it is not installed. */
function lint(root) {
  if (!existsSync(BIOME)) return null;
  return new Promise((resolvePromise) => {
    const args = ['check', '--colors=off', '--max-diagnostics=50', '--error-on-warnings', '.'];
    execFile(BIOME, args, { cwd: root, maxBuffer: 16 * 1024 * 1024 }, (error, stdout, stderr) =>
      resolvePromise(error === null ? [] : [`${stdout}${stderr}`.trimEnd()]),
    );
  });
}

/** Runs every check and prints a line each, with its problems. @returns { passed, failed, skipped }. */
export async function runChecks(root = repoRoot) {
  const counts = { passed: 0, failed: 0, skipped: 0 };
  const checks = { layers: checkLayers, style: checkStyle, docs: checkDocs, lint };
  for (const [name, check] of Object.entries(checks)) {
    const problems = await check(root);
    if (problems === null) {
      counts.skipped++;
      console.log(`skip   ${name}: npm install --prefix tools brings the linter`);
    } else if (problems.length === 0) {
      counts.passed++;
      console.log(`ok     ${name}`);
    } else {
      counts.failed++;
      console.log(`not ok ${name}\n${problems.map((problem) => `    ${problem}`).join('\n')}`);
    }
  }
  return counts;
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const counts = await runChecks();
  console.log(closingLine(counts));
  process.exitCode = counts.failed === 0 ? 0 : 1;
}

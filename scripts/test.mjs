// The default suite: set-up (which type-checks), the quick checks, then every compiled test. Ends
// with `N passed, N failed`, where each check counts as one; exits non-zero when anything failed.

import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { runChecks } from './check.mjs';
import { closingLine, parseClosingLine } from './closing-line.mjs';
import { reportSetupError, setup } from './setup.mjs';
import { listFiles, repoRoot } from './source-files.mjs';

const USAGE = `usage: ./scripts/test [--no-apt] [PATTERN...]
  PATTERN    run only test files whose path contains it: ./scripts/test image wire/nbd
  --no-apt   never install Debian packages`;

/** Compiled test files whose source path contains one of the patterns (all of them for none). */
function selectTests(patterns) {
  return listFiles(repoRoot, 'test', ['.test.ts'])
    .filter((path) => patterns.length === 0 || patterns.some((pattern) => path.includes(pattern)))
    .map((path) => `dist/${path.replace(/\.ts$/, '.js')}`);
}

/** Runs tap on the files and passes its report on. @returns its counts. */
async function runTests(files) {
  const tap = join(repoRoot, 'node_modules/tap/dist/esm/run.mjs');
  const child = spawn(process.execPath, [tap, '--reporter=./scripts/ci-reporter.mjs', ...files], {
    cwd: repoRoot,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const exited = new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', resolve);
  });
  let counts = { passed: 0, failed: 0, skipped: 0 };
  for await (const line of createInterface({ input: child.stdout })) {
    const closing = parseClosingLine(line);
    if (closing === null) console.log(line);
    else counts = closing;
  }
  const status = await exited;
  if (status !== 0 && counts.failed === 0) {
    console.log(`FAILED the test runner ended with status ${status} and reported no failure`);
    counts.failed = 1;
  }
  return counts;
}

function finish(parts) {
  const total = { passed: 0, failed: 0, skipped: 0 };
  for (const part of parts) for (const name of Object.keys(total)) total[name] += part[name];
  console.log(closingLine(total));
  process.exitCode = total.failed === 0 ? 0 : 1;
}

async function main(args) {
  const patterns = args.filter((arg) => !arg.startsWith('-'));
  const options = args.filter((arg) => arg.startsWith('-'));
  if (options.some((option) => option !== '--no-apt')) {
    console.error(USAGE);
    process.exitCode = 2;
    return;
  }
  try {
    await setup({ purposes: ['tests'], development: true, mayInstall: options.length === 0 });
  } catch (error) {
    reportSetupError(error);
    finish([{ passed: 0, failed: 1, skipped: 0 }]);
    return;
  }
  const checks = patterns.length === 0 ? [await runChecks()] : [];
  const files = selectTests(patterns);
  if (files.length === 0) {
    console.error(`no test file's path contains ${patterns.join(' or ')}`);
    finish([...checks, { passed: 0, failed: 1, skipped: 0 }]);
    return;
  }
  finish([...checks, await runTests(files)]);
}

await main(process.argv.slice(2));

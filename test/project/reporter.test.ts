// The test command's reporter: its closing line must agree with what happened, and no kind of
// failure may look green. Real tap runs over small files written here.

import { execFile } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { repoRoot } from '../support/fixtures.js';

interface TapRun {
  readonly status: number;
  readonly lines: string[];
}

/** Runs the files with tap and our reporter; they live in the checkout, where `tap` resolves. */
function runTap(files: Record<string, string>, timeoutSeconds = 60): Promise<TapRun> {
  mkdirSync(join(repoRoot, 'dist'), { recursive: true });
  const directory = mkdtempSync(join(repoRoot, 'dist/reporter-'));
  for (const [name, text] of Object.entries(files)) writeFileSync(join(directory, name), text);
  const tap = join(repoRoot, 'node_modules/tap/dist/esm/run.mjs');
  const paths = Object.keys(files).map((name) => join(directory, name));
  const args = [
    tap,
    '--reporter=./scripts/ci-reporter.mjs',
    `--timeout=${timeoutSeconds}`,
    ...paths,
  ];
  return new Promise((resolve) => {
    // What tells a process that it is tap's child would make the inner run report to the outer one.
    const env = Object.fromEntries(
      Object.entries(process.env).filter(([name]) => !/^_?TAP/.test(name)),
    );
    execFile(process.execPath, args, { cwd: repoRoot, env }, (error, stdout) => {
      rmSync(directory, { recursive: true, force: true });
      resolve({ status: error === null ? 0 : 1, lines: stdout.trimEnd().split('\n') });
    });
  });
}

const PASSES = "import t from 'tap';\nt.test('one', async (t) => t.ok(true));\n";

t.test('a run without failures closes with N passed, 0 failed, N skipped', async (t) => {
  const skips = "import t from 'tap';\nt.test('two', { skip: 'no disk' }, () => undefined);\n";
  const run = await runTap({ 'passes.js': PASSES, 'skips.js': skips });
  t.equal(run.status, 0);
  t.match(run.lines.join('\n'), /^ok {5}dist\/reporter-\w+\/passes\.js/m, 'one line a file');
  t.match(
    run.lines.join('\n'),
    /skipped: .*two: no disk/,
    'a skipped test is named with its reason',
  );
  t.equal(run.lines.at(-1), '1 passed, 0 failed, 1 skipped');
});

t.test('every kind of failure is counted, named and fails the run', async (t) => {
  const kinds = {
    assertion: "import t from 'tap';\nt.equal(1, 2, 'sums');\n",
    throws: "import t from 'tap';\nt.test('x', async () => { throw new Error('planted'); });\n",
    exits: "import t from 'tap';\nt.ok(true);\nprocess.exit(3);\n",
    loads: "import './missing.js';\n",
  };
  const files = Object.entries(kinds).map(([kind, text]) => [`${kind}.js`, text]);
  const run = await runTap(Object.fromEntries(files));
  t.equal(run.status, 1, 'non-zero status');
  for (const kind of Object.keys(kinds)) {
    t.match(run.lines.join('\n'), new RegExp(`FAILED .*${kind}`), `${kind}: named`);
  }
  const failed = Number(/^\d+ passed, (\d+) failed$/.exec(run.lines.at(-1) ?? '')?.[1]);
  t.ok(failed >= Object.keys(kinds).length, 'each is counted', { failed });
});

t.test('a file that never ends is stopped, counted, named and fails the run', async (t) => {
  const hangs =
    "import t from 'tap';\nt.test('x', () => new Promise(() => setInterval(() => {}, 99)));\n";
  const run = await runTap({ 'hangs.js': hangs }, 2);
  t.equal(run.status, 1, 'non-zero status');
  t.match(run.lines.join('\n'), /FAILED .*hangs/, 'named');
  t.match(run.lines.at(-1), /^0 passed, [1-9]\d* failed$/, 'counted');
});

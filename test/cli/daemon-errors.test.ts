// What Longhorn's own daemons refuse at their start, ours refuse too, with the same meaning. The
// recorded command lines run against this program; texts and exit codes are ours where ours say
// more: 2 for wrong arguments where Longhorn says 1 (src/cli/exit-codes.ts).

import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { EXIT_CODE } from '../../src/cli/exit-codes.js';
import { runCli } from '../support/cli.js';
import { FIXTURES_MISSING, fixturesDir } from '../support/fixtures.js';

interface RecordedStep {
  readonly argv: readonly string[];
  readonly exitCode?: number;
}

interface Expectation {
  /** The recorded arguments after `longhorn`, DIR for the directory of the recording. */
  readonly argv: string;
  readonly code: number;
  readonly says: RegExp;
}

const { usage, failure, noUsableReplica } = EXIT_CODE;
const ENGINE = 'controller fxc-given --size 16m --current-size 16m';
const LISTENING = `${ENGINE} --listen 127.0.0.1:21496`;
const RECORDED_DIRECTORY = '/var/lib/recording';

const EXPECTED: readonly Expectation[] = [
  { argv: 'controller', code: usage, says: /size is required/ },
  { argv: 'controller fxc-given', code: usage, says: /size is required/ },
  { argv: 'controller fxc-given --size 16m', code: usage, says: /current-size is required/ },
  {
    argv: 'controller --size 16m --current-size 16m fxc-given!',
    code: usage,
    says: /'fxc-given!' is invalid.*volume name/,
  },
  {
    argv: `${LISTENING} --replica tcp://127.0.0.1:9 --disableRevCounter`,
    code: failure,
    says: /service unavailable from the addresses \[tcp:\/\/127\.0\.0\.1:9\].*NO_BACKEND/,
  },
  {
    argv: `${LISTENING} --replica nonsense --disableRevCounter`,
    code: noUsableReplica,
    says: /replica error from the addresses \[nonsense\].*NO_BACKEND/,
  },
  {
    argv: `${ENGINE} --rebuild-sync-concurrent-limit 0`,
    code: usage,
    says: /--rebuild-sync-concurrent-limit.*1 or more/,
  },
  {
    argv: `${ENGINE} --frontend nosuch`,
    code: usage,
    says: /'nosuch' is invalid.*nbd, socket, rest/,
  },
  { argv: 'replica', code: usage, says: /directory is required/ },
  { argv: 'replica --size abc DIR/vol/zzz', code: usage, says: /'abc' is invalid.*Sizes look/ },
  { argv: 'replica DIR/vol/zzz --size abc', code: usage, says: /'abc' is invalid.*Sizes look/ },
  {
    argv: 'replica DIR/nosuchparent/zzz --size 16m --listen 127.0.0.1:21460',
    code: failure,
    says: /cannot create .*nosuchparent\/zzz.*ENOENT/,
  },
  // Longhorn's serves on and fails at the first transfer; it was killed for the recording.
  { argv: 'sync-agent --listen-port-range 5-3', code: usage, says: /'5-3' is invalid.*FIRST-LAST/ },
];

t.test('daemons refuse a wrong start in one line that says why, and create nothing', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'longhorn-daemon-errors-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  for (const { argv, code, says } of EXPECTED) {
    const result = await runCli(...argv.replace('DIR', directory).split(' '));
    t.equal(result.code, code, `${argv}: exit code`);
    t.equal(result.stdout, '', `${argv}: nothing on stdout`);
    const lines = result.stderr.trimEnd().split('\n');
    t.match(lines.at(-1), says, `${argv}: the last line says why`);
    t.notMatch(result.stderr, /^ +at /m, `${argv}: no stack trace`);
    if (code === usage) t.equal(lines.length, 1, `${argv}: one line`);
  }
  t.strictSame(await readdir(directory), [], 'nothing was created');
});

const golden = fixturesDir();

t.test(
  'these are the command lines that were recorded with Longhorn',
  { skip: golden === null && FIXTURES_MISSING },
  async (t) => {
    const text = await readFile(join(golden ?? '', 'cli/daemon-errors.json'), 'utf8');
    const { steps } = JSON.parse(text) as { readonly steps: readonly RecordedStep[] };
    const recorded = steps.map(({ argv }) => argv.slice(1).join(' '));
    t.strictSame(
      EXPECTED.map(({ argv }) => argv.replace('DIR', RECORDED_DIRECTORY)),
      recorded,
    );
    for (const [index, { exitCode }] of steps.entries()) {
      // 61 tells Longhorn's manager something; all others only have to be failures.
      if (exitCode === noUsableReplica) t.equal(EXPECTED[index]?.code, noUsableReplica);
    }
  },
);

// The command line itself: arguments, exit codes, tables, YAML, labels, progress, completion.

import { spawnSync } from 'node:child_process';
import t from 'tap';
import { completionScript } from '../../src/cli/completion.js';
import { reportOf } from '../../src/cli/error-report.js';
import { EXIT_CODE } from '../../src/cli/exit-codes.js';
import { parseLabels } from '../../src/cli/labels.js';
import { jsonText, listingText, tableText, yamlText } from '../../src/cli/output.js';
import { createProgram } from '../../src/cli/program.js';
import { ProgressPrinter } from '../../src/cli/progress.js';
import type { RebuildProgress } from '../../src/client/rebuild.js';
import { StorageError } from '../../src/core/errors.js';
import { CliWorker, runCli, startCli } from '../support/cli.js';
import { FakeVolume } from '../support/fake-volume.js';

t.test('every command has help with an example and ends with 0', async (t) => {
  const cli = new CliWorker();
  t.teardown(() => cli.stop());
  const program = createProgram();
  const paths = program.commands.flatMap((command) => [
    [command.name()],
    ...command.commands.map((child) => [command.name(), child.name()]),
  ]);
  for (const path of paths) {
    const { code, stdout, stderr } = await cli.run(...path, '--help');
    t.equal(code, EXIT_CODE.ok, path.join(' '));
    t.match(stdout, /\nExamples?\b[\s\S]*\n +\$ /, `${path.join(' ')} shows how`);
    t.equal(stderr, '');
  }
});

t.test('a command knows its aliases', (t) => {
  const names = new Map(createProgram().commands.map((c) => [c.name(), c.aliases()]));
  t.match(Object.fromEntries(names), {
    engine: ['controller'],
    'start-with-replicas': ['start'],
    'add-replica': ['add'],
    'replica-rebuild-status': ['rebuild-status'],
    'verify-rebuild-replica': ['verify-rebuild'],
    'ls-replica': ['ls'],
    'rm-replica': ['rm'],
    'update-replica': ['update'],
    snapshots: ['snapshot'],
    'unmap-mark-snap-chain-removed': ['unmap-mark-snap'],
  });
  t.end();
});

t.test('the program as a process: exit codes, streams, no stack traces', async (t) => {
  const nothing = await runCli();
  t.equal(nothing.code, EXIT_CODE.ok);
  t.match(nothing.stdout, 'add-replica');
  const wrong = await runCli('nosuch');
  t.equal(wrong.code, EXIT_CODE.usage);
  t.match(wrong.stderr, /^error: unknown command 'nosuch' \(INVALID_ARGUMENT\)\. .+\n$/);
  const away = ['--url', '127.0.0.1:9', 'info'];
  const refused = await runCli(...away);
  t.equal(refused.code, EXIT_CODE.failure);
  t.match(refused.stderr, /^error: failed to get volume .*\(CONNECTION_REFUSED\)\. Is .+\n$/);
  t.equal(refused.stderr.split('\n').length, 2, 'one line');
  const debug = await runCli(...away, '--debug');
  t.match(debug.stderr, /\n +at .*connections/, 'stack traces when asked for');
  t.equal((await runCli('--url', 'nonsense', 'info')).code, EXIT_CODE.failure);
  const nowhere = await runCli('--url', 'http://nosuch.invalid:1', 'info');
  t.match(nowhere.stderr, /nosuch\.invalid.*\(CONNECTION_REFUSED\)\. Is /);
  t.match((await runCli('--version')).stdout, /^\d+\.\d+\.\d+\n$/);
  const version = await runCli('version', '--client-only');
  t.equal(JSON.parse(version.stdout).clientVersion.cliAPIVersion, 12);
});

t.test('SIGINT during a rebuild takes the replica out and says how to go on', async (t) => {
  const fake = new FakeVolume();
  fake.syncHangs = true;
  await fake.start();
  t.teardown(() => fake.stop());
  const url = `127.0.0.1:${fake.enginePort}`;
  const args = ['--url', url, 'add', '--size', '32m', '--current-size', '32m', fake.address];
  const run = startCli(args);
  await run.said('copying');
  run.kill('SIGINT');
  const { code, stderr, stdout } = await run.result;
  t.equal(code, EXIT_CODE.interrupted);
  t.equal(stdout, '');
  t.match(stderr, /error: .*the replica is not in the volume \(CANCELLED\)\. Run the same command/);
  t.equal(fake.mode, 'absent');
});

t.test('what a failed rebuild leaves is said together with the way out', async (t) => {
  const cli = new CliWorker();
  t.teardown(() => cli.stop());
  const fake = new FakeVolume();
  fake.failing = 'sync';
  await fake.start();
  t.teardown(() => fake.stop());
  const add = ['add', '--size', '32m', '--current-size', '32m', '--quiet', fake.address];
  const { code, stderr } = await cli.run('--url', `127.0.0.1:${fake.enginePort}`, ...add);
  t.equal(code, EXIT_CODE.failure);
  t.match(
    stderr,
    /^error: .*stays in the volume as WO.*longhorn rm-replica tcp:.*\n$/,
    'and only that',
  );
});

t.test('an engine without a trustworthy replica ends with 61', (t) => {
  const none = (unreachable: boolean): StorageError =>
    new StorageError('NO_BACKEND', 'no available backend', { unreachable });
  t.equal(reportOf(none(false), false).exitCode, EXIT_CODE.noUsableReplica);
  t.equal(reportOf(none(true), false).exitCode, EXIT_CODE.failure);
  t.match(reportOf(new TypeError('x is not a function'), false), {
    exitCode: EXIT_CODE.failure,
    text: /\(BUG\)/,
  });
  t.end();
});

t.test('JSON and tables are as Go prints them', (t) => {
  t.equal(
    jsonText({ a: [], b: {}, c: '<&>\u2028' }),
    '{\n\t"a": [],\n\t"b": {},\n\t"c": "\\u003c\\u0026\\u003e\\u2028"\n}',
  );
  t.equal(
    tableText([
      ['ADDRESS', 'MODE', 'CHAIN'],
      ['tcp://a:1', 'ERR', ''],
    ]),
    'ADDRESS   MODE CHAIN\ntcp://a:1 ERR  ',
  );
  const columns = [
    { title: 'ID', text: (row: { id: string }) => row.id },
    { title: 'MORE', text: () => 'm', isWide: true },
  ];
  const listing = (format: 'table' | 'wide' | 'json' | 'yaml'): string =>
    listingText(format, [{ id: 'x' }], columns, (row) => row);
  t.equal(listing('table'), 'ID\nx');
  t.equal(listing('wide'), 'ID MORE\nx  m');
  t.equal(listing('json'), '[\n\t{\n\t\t"id": "x"\n\t}\n]');
  t.equal(listing('yaml'), '- id: x');
  t.end();
});

t.test('YAML keeps text text', (t) => {
  const data = [
    { a: 'true', b: '12', n: 12, none: null, nested: { list: ['x: y', '', 'tcp://h:1'], e: [] } },
  ];
  t.equal(
    yamlText(data),
    [
      '- a: "true"',
      '  b: "12"',
      '  "n": 12',
      '  none: null',
      '  nested:',
      '    list:',
      '      - "x: y"',
      '      - ""',
      '      - tcp://h:1',
      '    e: []',
    ].join('\n'),
  );
  t.end();
});

t.test('labels follow the rules of Kubernetes', (t) => {
  t.same(parseLabels(['a=1', 'x.y/z=2=3', 'a=4']), { a: '4', 'x.y/z': '2=3' });
  for (const bad of ['a', 'a=', '=v', '-a=v', 'a/b/c=v', 'UP.x/a=v', `${'k'.repeat(64)}=v`]) {
    t.throws(() => parseLabels([bad]), { code: 'INVALID_ARGUMENT' }, bad);
  }
  t.end();
});

t.test('progress is one changing line on a terminal, few lines elsewhere, none when quiet', (t) => {
  const progress = (percent: number): RebuildProgress => ({
    step: 'sync',
    percent,
    sources: ['s'],
  });
  const shown = (isTTY: boolean, isQuiet: boolean): string => {
    let text = '';
    const stream = { isTTY, write: (part: string) => (text += part) };
    const printer = new ProgressPrinter(stream, 'r', isQuiet);
    for (let percent = 0; percent <= 100; percent++) printer.show(progress(percent));
    printer.end();
    return text;
  };
  t.equal(shown(true, false).split('\n').length, 2);
  t.equal(shown(true, false).split('\r').length, 102);
  t.equal(shown(false, false).trimEnd().split('\n').length, 11);
  t.equal(shown(false, true), '');
  t.end();
});

t.test('bash completes commands, aliases, options and choices', (t) => {
  const script = completionScript('bash', createProgram()) ?? '';
  const complete = (...words: string[]): string[] => {
    const body = `${script}\nCOMP_WORDS=(longhorn "$@")\nCOMP_CWORD=$#\n_longhorn\nprintf '%s\\n' "\${COMPREPLY[@]}"`;
    const { stdout, stderr } = spawnSync('bash', ['-c', body, 'bash', ...words], {
      encoding: 'utf8',
    });
    t.equal(stderr, '');
    return stdout.split('\n').filter((word) => word !== '');
  };
  t.same(complete('add').sort(), ['add', 'add-replica']);
  t.same(complete('snapshot', 'cre'), ['create']);
  t.same(complete('--url', 'info', 'snapshots', 'purge-'), ['purge-status']);
  t.same(complete('ls', '-o', '').sort(), ['json', 'table', 'wide', 'yaml']);
  t.same(complete('ls', '--out'), ['--output']);
  t.same(complete('frontend', 's').sort(), ['shutdown', 'start']);
  t.end();
});

t.test('other shells get scripts of their own; unknown ones an error', async (t) => {
  t.match(completionScript('zsh', createProgram()), /^#compdef longhorn\n[\s\S]*compadd -- /);
  t.match(
    completionScript('fish', createProgram()),
    /complete -c longhorn .*-a 'snapshots snapshot'/,
  );
  t.equal((await runCli('completion', 'csh')).code, EXIT_CODE.usage);
});

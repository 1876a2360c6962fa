// The project's own rules as tests: the checks pass on this checkout, and each fails on a planted
// violation, so that a check that stopped looking is noticed.

import { spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { pathToFileURL } from 'node:url';
import t from 'tap';
import { repoRoot } from '../support/fixtures.js';

type Check = (root: string) => string[];

async function importCheck(name: string): Promise<Check> {
  const path = join(repoRoot, `scripts/check-${name}.mjs`);
  const module = (await import(pathToFileURL(path).href)) as Record<string, Check>;
  return module[`check${name.charAt(0).toUpperCase()}${name.slice(1)}`] as Check;
}

const CHECKS: Record<string, Check> = {
  layers: await importCheck('layers'),
  style: await importCheck('style'),
  docs: await importCheck('docs'),
};

const COPIED = ['src', 'scripts', 'docs', 'charts', 'bench', 'native', 'bin', 'test', '.ci'];
const COPIED_FILES = ['package.json', 'README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'LICENSE'];
const LEFT_OUT = /^(?:test\/fixtures\/.+|.*\/node_modules)$/;

/** A copy of everything the checks read, without golden data. */
function copyOfCheckout(): string {
  const copy = mkdtempSync(join(tmpdir(), 'longhorn-checks-'));
  for (const name of [...COPIED, ...COPIED_FILES]) {
    if (!existsSync(join(repoRoot, name))) continue; // a folder that nothing is in yet
    cpSync(join(repoRoot, name), join(copy, name), {
      recursive: true,
      filter: (path) => !LEFT_OUT.test(relative(repoRoot, path)),
    });
  }
  return copy;
}

/** A violation: which check must find it, where, and what its report must say. */
interface Violation {
  readonly claim: string;
  readonly check: keyof typeof CHECKS;
  readonly file: string;
  readonly change: (text: string) => string;
  readonly report: RegExp;
}

const HEADER = '// Planted by a test.\n';

const VIOLATIONS: Violation[] = [
  {
    claim: 'an import against the direction of data',
    check: 'layers',
    file: 'src/core/planted.ts',
    change: () => `${HEADER}import { VolumeChain } from '../image/chain.js';\n`,
    report: /src\/core\/planted\.ts:2: core may not import image\/chain/,
  },
  {
    claim: 'a type-only import over several lines against the direction of data',
    check: 'layers',
    file: 'src/wire/nbd/planted.ts',
    change: () => `${HEADER}import type {\n  Disk,\n} from '../../disk/disk.js';\n`,
    report: /wire may not import disk\/disk/,
  },
  {
    claim: 'a dynamic import against the direction of data',
    check: 'layers',
    file: 'src/image/planted.ts',
    change: () => `${HEADER}export const late = () => import('../engine/volume.js');\n`,
    report: /image may not import engine\/volume/,
  },
  {
    claim: 'a codec that uses a module of Node',
    check: 'layers',
    file: 'src/wire/nbd/planted.ts',
    change: () => `${HEADER}import { connect } from 'node:net';\n`,
    report: /wire may not use node:net/,
  },
  {
    claim: 'a folder of src that the table does not know',
    check: 'layers',
    file: 'src/core/../utils/planted.ts',
    change: () => HEADER,
    report: /src\/utils has no row/,
  },
  {
    claim: 'an architecture without its table',
    check: 'layers',
    file: 'docs/architecture.md',
    change: (text) => text.replace('layers:begin', 'layers'),
    report: /layer table is missing/,
  },
  {
    claim: 'a timer in product code',
    check: 'style',
    file: 'src/engine/planted.ts',
    change: () => `${HEADER}setTimeout(() => undefined, 5);\n`,
    report: /planted\.ts:2: setTimeout is allowed only/,
  },
  {
    claim: 'the time of day in a template of product code',
    check: 'style',
    file: 'src/engine/planted.ts',
    change: () => `${HEADER}export const text = \`now \${Date.now()}\`;\n`,
    report: /Date\.now is allowed only/,
  },
  {
    claim: 'a file of more than 500 lines',
    check: 'style',
    file: 'src/engine/planted.ts',
    change: () => HEADER.repeat(501),
    report: /501 lines; 500 are allowed/,
  },
  {
    claim: 'a method of more than 70 lines',
    check: 'style',
    file: 'src/engine/planted.ts',
    change: () =>
      `${HEADER}export class Long {\n  run(n: number): number {\n${'    n++;\n'.repeat(70)}  }\n}\n`,
    report: /planted\.ts:3: function of 72 lines/,
  },
  {
    claim: 'a file that does not say what it is',
    check: 'style',
    file: 'src/engine/planted.ts',
    change: () => 'export const answer = 42;\n',
    report: /starts by saying what it is/,
  },
  {
    claim: 'a file name that is not kebab-case',
    check: 'style',
    file: 'src/engine/plantedFile.ts',
    change: () => HEADER,
    report: /kebab-case/,
  },
  {
    claim: 'a suppressed type error',
    check: 'style',
    file: 'src/engine/planted.ts',
    change: () => `${HEADER}// @ts-${'ignore'}\n`,
    report: /mend it instead/,
  },
  {
    claim: 'a code that the catalogue of errors lacks',
    check: 'docs',
    file: 'src/core/errors.ts',
    change: (text) => text.replace("NOT_ALIGNED: 'request'", "PLANTED: 'request',\n  $&"),
    report: /errors\.md: PLANTED is missing/,
  },
  {
    claim: 'a catalogued code that does not exist',
    check: 'docs',
    file: 'docs/errors.md',
    change: (text) => `${text}| \`PLANTED\` | request | a | b | c |\n`,
    report: /PLANTED is not in src\/core\/errors\.ts/,
  },
  {
    claim: 'a catalogued code of the wrong kind',
    check: 'docs',
    file: 'docs/errors.md',
    change: (text) => text.replace('`NO_SPACE` | resource', '`NO_SPACE` | state'),
    report: /NO_SPACE is of kind resource, not state/,
  },
  {
    claim: 'a catalogued code without a cure',
    check: 'docs',
    file: 'docs/errors.md',
    change: (text) => text.replace(/(\| `NO_SPACE` .*\|)[^|]*\|$/m, '$1  |'),
    report: /NO_SPACE needs a meaning, a likely cause and a cure/,
  },
  {
    claim: 'a promise that disappeared',
    check: 'docs',
    file: 'docs/invariants.md',
    change: (text) => text.replace('### P3 ', '### '),
    report: /P3 is missing/,
  },
  {
    claim: 'a cited promise that does not exist',
    check: 'docs',
    file: 'src/engine/planted.ts',
    change: () => `// Keeps P${17} whatever happens.\n`,
    report: /cites P17/,
  },
  {
    claim: 'a glossary without one of its words',
    check: 'docs',
    file: 'docs/glossary.md',
    change: (text) => text.replace('| salvage |', '| rescue |'),
    report: /salvage is missing/,
  },
  {
    claim: 'a README that names a command which does not exist',
    check: 'docs',
    file: 'README.md',
    change: (text) => `${text}\nTry \`npm run planted\` and \`./scripts/planted\`.\n`,
    report: /npm run planted does not exist[\s\S]*\.\/scripts\/planted does not exist/,
  },
  {
    claim: 'a link that leads nowhere',
    check: 'docs',
    file: 'docs/testing.md',
    change: (text) => `${text}\n[gone](planted.md) and [off](errors.md#planted)\n`,
    report: /planted\.md leads nowhere[\s\S]*no heading for #planted/,
  },
  {
    claim: 'a document that names a file which does not exist',
    check: 'docs',
    file: 'docs/testing.md',
    change: (text) => `${text}\nSee \`src/core/planted.ts\`.\n`,
    report: /src\/core\/planted\.ts does not exist/,
  },
];

t.test('a check run as a command exits non-zero when there are problems', async (t) => {
  const script = join(repoRoot, 'scripts/check-layers.mjs');
  const empty = mkdtempSync(join(tmpdir(), 'longhorn-checks-'));
  t.teardown(() => rmSync(empty, { recursive: true, force: true }));
  mkdirSync(join(empty, 'docs'));
  writeFileSync(join(empty, 'docs/architecture.md'), 'no table\n');
  const run = spawnSync(process.execPath, [script, empty], { encoding: 'utf8' });
  t.equal(run.status, 1);
  t.match(run.stderr, /layer table is missing/);
});

t.test('this checkout', async (t) => {
  for (const [name, check] of Object.entries(CHECKS)) {
    t.same(check(repoRoot), [], `keeps the rules of ${name}`);
  }
});

t.test('the checks report', async (t) => {
  const copy = copyOfCheckout();
  t.teardown(() => rmSync(copy, { recursive: true, force: true }));
  for (const { claim, check, file, change, report } of VIOLATIONS) {
    const path = join(copy, file);
    const before = existsSync(path) ? readFileSync(path, 'utf8') : null;
    const madeFolder = mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, change(before ?? ''));
    t.match(CHECKS[check]?.(copy).join('\n'), report, claim);
    if (before === null) rmSync(madeFolder ?? path, { recursive: true });
    else writeFileSync(path, before);
  }
});

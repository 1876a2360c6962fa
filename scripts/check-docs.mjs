// Documents that can be compared with the code are: error codes, promises, glossary words, the
// commands that the documents name, and links. A document that lies is worse than none.

import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { listFiles, maskSource, readText, runAsCommand } from './source-files.mjs';

const ERRORS_FILE = 'docs/errors.md';
const INVARIANTS_FILE = 'docs/invariants.md';
const GLOSSARY_FILE = 'docs/glossary.md';
const PROMISES = [
  'P1',
  'P2',
  'P3',
  'P4',
  'P5',
  'P6',
  'P7',
  'P8',
  'E1',
  'E2',
  'E3',
  'E4',
  'C1',
  'C2',
];
const GLOSSARY_WORDS = [
  'volume',
  'engine',
  'controller',
  'replica',
  'frontend',
  'initiator',
  'image chain',
  'layer',
  'head',
  'snapshot',
  'backing image',
  'coalesce',
  'purge',
  'rebuild',
  'salvage',
  'backupstore',
  'backup target',
  'instance manager',
  'disk',
  'sector',
  'logical block',
  'backup block',
  'slab',
];
const ROOT_DOCUMENTS = [
  'README.md',
  'CHANGELOG.md',
  'CONTRIBUTING.md',
  'src/README.md',
  'charts/README.md',
];

/** Rows of every table in a document, as arrays of trimmed cells. */
function tableRows(document) {
  return document
    .split('\n')
    .filter((line) => line.startsWith('|'))
    .map((line) =>
      line
        .split('|')
        .slice(1, -1)
        .map((cell) => cell.trim()),
    );
}

/** Code and kind of every entry of ERROR_KIND_OF_CODE. */
export function readErrorCodes(source) {
  const body =
    /ERROR_KIND_OF_CODE = \{([\s\S]*?)\n\}/.exec(maskSource(source, { keepStrings: true }))?.[1] ??
    '';
  return [...body.matchAll(/^\s*([A-Z0-9_]+): '(\w+)'/gm)].map(([, code, kind]) => ({
    code,
    kind,
  }));
}

function checkErrors(root) {
  const codes = readErrorCodes(readText(root, 'src/core/errors.ts'));
  const rows = tableRows(readText(root, ERRORS_FILE)).filter(([first]) =>
    /^`[A-Z0-9_]+`$/.test(first ?? ''),
  );
  const rowOfCode = new Map(rows.map((row) => [row[0].slice(1, -1), row]));
  const problems = codes.length === 0 ? ['src/core/errors.ts: no error codes found'] : [];
  for (const { code, kind } of codes) {
    const row = rowOfCode.get(code);
    if (row === undefined) problems.push(`${ERRORS_FILE}: ${code} is missing`);
    else if (row[1] !== kind)
      problems.push(`${ERRORS_FILE}: ${code} is of kind ${kind}, not ${row[1]}`);
    else if (row.length !== 5 || row.some((cell) => cell === '')) {
      problems.push(`${ERRORS_FILE}: ${code} needs a meaning, a likely cause and a cure`);
    }
  }
  for (const code of rowOfCode.keys()) {
    if (!codes.some((known) => known.code === code)) {
      problems.push(`${ERRORS_FILE}: ${code} is not in src/core/errors.ts`);
    }
  }
  if (rows.length !== rowOfCode.size) problems.push(`${ERRORS_FILE}: a code is listed twice`);
  return problems;
}

function checkPromises(root) {
  const defined = new Set(
    [...readText(root, INVARIANTS_FILE).matchAll(/^#+ ([A-Z]\d+)\b/gm)].map((match) => match[1]),
  );
  const problems = PROMISES.filter((promise) => !defined.has(promise)).map(
    (promise) => `${INVARIANTS_FILE}: ${promise} is missing`,
  );
  for (const file of ['src', 'test'].flatMap((folder) => listFiles(root, folder, ['.ts']))) {
    for (const [, cited] of readText(root, file).matchAll(
      /(?:\/\/|\*|assert\(.*')[^\n]*?\b([PEC]\d{1,2})\b(?![-+\w])/g,
    )) {
      if (!defined.has(cited))
        problems.push(`${file}: cites ${cited}, which ${INVARIANTS_FILE} does not define`);
    }
  }
  return problems;
}

function checkGlossary(root) {
  const defined = new Set(
    tableRows(readText(root, GLOSSARY_FILE)).flatMap(([word]) =>
      (word ?? '').split(/,\s*|\s+\/\s+/),
    ),
  );
  return GLOSSARY_WORDS.filter((word) => !defined.has(word)).map(
    (word) => `${GLOSSARY_FILE}: ${word} is missing`,
  );
}

function documents(root) {
  const present = ROOT_DOCUMENTS.filter((path) => existsSync(join(root, path)));
  return [...present, ...listFiles(root, 'docs', ['.md'])];
}

/** Files and folders of the checkout that a document names in code, such as `src/core/slab.ts`. */
function checkPaths(root) {
  const problems = [];
  for (const document of documents(root)) {
    const named = readText(root, document).matchAll(
      /`((?:src|test|bench|scripts|native|docs|charts|bin)\/[\w./-]*)`/g,
    );
    for (const [, path] of named) {
      if (!existsSync(join(root, path))) problems.push(`${document}: ${path} does not exist`);
    }
  }
  return problems;
}

/** Commands in code: `npm run NAME` must be a package script, `./PATH` an existing file. */
function checkCommands(root) {
  const scripts = JSON.parse(readText(root, 'package.json')).scripts ?? {};
  const problems = [];
  for (const document of documents(root)) {
    const text = readText(root, document);
    for (const [, name] of text.matchAll(/\bnpm run ([a-z][\w:-]*)/g)) {
      if (scripts[name] === undefined) problems.push(`${document}: npm run ${name} does not exist`);
    }
    for (const [, path] of text.matchAll(/(?:^|[\s`(])\.\/((?:scripts|bin|\.ci)\/[\w./-]*\w)/gm)) {
      if (!existsSync(join(root, path))) problems.push(`${document}: ./${path} does not exist`);
    }
  }
  return problems;
}

/** The anchor that a heading gets: lower case, punctuation dropped, spaces to hyphens. */
function anchors(markdown) {
  return [...markdown.matchAll(/^#+ (.+)$/gm)].map(([, heading]) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N}\s_-]/gu, '')
      .trim()
      .replace(/\s/g, '-'),
  );
}

function checkLinks(root) {
  const problems = [];
  for (const document of documents(root)) {
    const text = readText(root, document).replace(/```[\s\S]*?```/g, '');
    for (const [, target] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target)) continue;
      const [path, anchor] = target.split('#');
      const file = path === '' ? document : join(dirname(document), path);
      if (!existsSync(join(root, file)))
        problems.push(`${document}: link to ${target} leads nowhere`);
      else if (
        anchor !== undefined &&
        file.endsWith('.md') &&
        !anchors(readText(root, file)).includes(anchor)
      ) {
        problems.push(`${document}: ${file} has no heading for #${anchor}`);
      }
    }
  }
  return problems;
}

/** @returns one line a problem. */
export function checkDocs(root) {
  return [checkErrors, checkPromises, checkGlossary, checkPaths, checkCommands, checkLinks].flatMap(
    (check) => check(root),
  );
}

runAsCommand(import.meta.url, 'docs', checkDocs);

// House rules that the compiler and the linter do not know: sizes of files and functions, names,
// the opening comment, and time, randomness and environment only where they are allowed.

import { basename } from 'node:path';
import { lineOf, listFiles, maskSource, readText, runAsCommand } from './source-files.mjs';

const FILE_LINES_MAX = 500;
const FUNCTION_LINES_MAX = 70;
/** A test's callback may hold a whole scenario; longer ones hide what they claim. */
const TEST_FUNCTION_LINES_MAX = 140;
const SOURCE_FOLDERS = ['src', 'test', 'bench', 'scripts'];

/** Product code takes these from a Clock, an Rng or its options. A leading dot is another's method. */
const BANNED_GLOBALS =
  /(?<![.\w])(?:(?:set|clear)(?:Timeout|Interval)\b|new Date\b|Date\.\w+|Math\.random\b|process\.env\b|performance\.\w+)/g;
/** The addon's own path may come from the environment: it is loaded before there are options. */
const GLOBALS_ALLOWED =
  /^(?:src\/core\/clock-real\.ts|src\/addon\/addon\.ts|src\/cli\/|test\/|bench\/|scripts\/)/;

/** Split so that this file does not match itself. */
const SUPPRESSIONS = new RegExp(
  ['@ts-' + '(?:ignore|expect-error|nocheck)', 'eslint-' + 'disable', 'biome-' + 'ignore'].join(
    '|',
  ),
  'g',
);
const UNFINISHED = new RegExp('\\b' + 'FIX' + 'ME\\b|\\bTO' + 'DO\\b(?!\\(#\\d+\\))', 'g');
const KEBAB_CASE = /^[a-z0-9]+(?:-[a-z0-9]+)*(?:\.test|\.d)?\.(?:ts|mjs)$/;
const OPENS_WITH_COMMENT = /^(?:#![^\n]*\n)?\s*(?:\/\/|\/\*)/;

const BLOCK_HEADER =
  /^(?:\}?\s*(?:if|else|for|while|switch|do|try|catch|finally)\b|(?:export\s+)?(?:default\s+)?(?:abstract\s+)?(?:class|interface|declare|type)\b)/;
const FUNCTION_HEADER = /=>\s*$|\)\s*(?::[^;{}]*(?:\{[^{}]*\}[^;{}]*)?)?$/;

/** Functions whose text, signature line to closing brace, is longer than the limit. */
function longFunctions(masked, linesMax) {
  const found = [];
  const open = [];
  let headerBegin = 0;
  let parens = 0;
  for (let i = 0; i < masked.length; i++) {
    const c = masked[i];
    if (c === '(') parens++;
    else if (c === ')') parens--;
    else if (c === ';' && parens === (open.at(-1)?.parens ?? 0)) headerBegin = i + 1;
    else if (c === '{') {
      const header = masked.slice(headerBegin, i).trimStart();
      const isFunction = !BLOCK_HEADER.test(header) && FUNCTION_HEADER.test(header.trimEnd());
      open.push({ isFunction, begin: i - header.length, parens });
      headerBegin = i + 1;
    } else if (c === '}') {
      const block = open.pop();
      headerBegin = i + 1;
      if (block === undefined || !block.isFunction) continue;
      const firstLine = lineOf(masked, block.begin);
      const lines = lineOf(masked, i) - firstLine + 1;
      if (lines > linesMax) found.push({ firstLine, lines });
    }
  }
  return found;
}

function checkFile(file, text) {
  const problems = [];
  const masked = maskSource(text);
  const report = (index, message) => problems.push(`${file}:${lineOf(text, index)}: ${message}`);
  const lines = text.split('\n').length - 1;
  if (lines > FILE_LINES_MAX) report(0, `${lines} lines; ${FILE_LINES_MAX} are allowed`);
  const linesMax = file.startsWith('test/') ? TEST_FUNCTION_LINES_MAX : FUNCTION_LINES_MAX;
  for (const { firstLine, lines: length } of longFunctions(masked, linesMax)) {
    problems.push(`${file}:${firstLine}: function of ${length} lines; ${linesMax} are allowed`);
  }
  if (!KEBAB_CASE.test(basename(file))) report(0, 'file names are kebab-case');
  if (!OPENS_WITH_COMMENT.test(text)) report(0, 'a file starts by saying what it is');
  if (!GLOBALS_ALLOWED.test(file)) {
    for (const match of masked.matchAll(BANNED_GLOBALS)) {
      report(match.index, `${match[0]} is allowed only in core/clock-real.ts, cli and tests`);
    }
  }
  for (const match of text.matchAll(SUPPRESSIONS))
    report(match.index, `${match[0]}: mend it instead`);
  for (const match of text.matchAll(UNFINISHED))
    report(match.index, `${match[0]} needs an issue: (#123)`);
  return problems;
}

/** @returns one line a problem. */
export function checkStyle(root) {
  return SOURCE_FOLDERS.flatMap((folder) => listFiles(root, folder, ['.ts', '.mjs'])).flatMap(
    (file) => checkFile(file, readText(root, file)),
  );
}

runAsCommand(import.meta.url, 'style', checkStyle);

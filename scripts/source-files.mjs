// What the checks share: listing the project's own files and reading a source text without its
// comments and strings. The checks get by without a parser so that they run before anything is
// installed; they must never report on generated code or on what is not committed.

import { readdirSync, readFileSync } from 'node:fs';
import { join, relative, resolve, sep } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Root of the checkout. */
export const repoRoot = fileURLToPath(new URL('..', import.meta.url));

const SKIPPED_DIRECTORIES = new Set([
  'node_modules',
  'generated',
  'fixtures',
  '.git',
  'dist',
  'build',
]);

/** Paths below root/directory with one of these endings, '/'-separated, relative to root, sorted. */
export function listFiles(root, directory, endings) {
  const found = [];
  const visit = (path) => {
    let entries;
    try {
      entries = readdirSync(path, { withFileTypes: true });
    } catch {
      return; // the folder does not exist (yet)
    }
    for (const entry of entries) {
      const child = join(path, entry.name);
      if (entry.isDirectory()) {
        if (!SKIPPED_DIRECTORIES.has(entry.name)) visit(child);
      } else if (endings.some((ending) => entry.name.endsWith(ending))) {
        found.push(relative(root, child).split(sep).join('/'));
      }
    }
  };
  visit(join(root, directory));
  return found.sort();
}

export function readText(root, path) {
  return readFileSync(join(root, path), 'utf8');
}

/** 1-based line of a character index. */
export function lineOf(text, index) {
  let line = 1;
  for (let i = text.indexOf('\n'); i !== -1 && i < index; i = text.indexOf('\n', i + 1)) line++;
  return line;
}

const REGEX_MAY_FOLLOW = /(?:^|[(,=:[!&|?{};+\-*%<>~^]|\b(?:return|typeof|case|in|of|=>))\s*$/;

/** Index just past a quoted text or a regular expression that starts at begin. */
function skipQuoted(text, begin, quote) {
  let inClass = false;
  for (let i = begin + 1; i < text.length; i++) {
    const c = text[i];
    if (c === '\\') i++;
    else if (c === '\n') return i;
    else if (quote === '/' && c === '[') inClass = true;
    else if (quote === '/' && c === ']') inClass = false;
    else if (c === quote && !inClass) return i + 1;
  }
  return text.length;
}

/** Index just past the text part of a template that starts at begin: at its end or at `${`. */
function skipTemplate(text, begin) {
  for (let i = begin; i < text.length; i++) {
    if (text[i] === '\\') i++;
    else if (text[i] === '`') return i + 1;
    else if (text[i] === '$' && text[i + 1] === '{') return i + 2;
  }
  return text.length;
}

function skipComment(text, begin) {
  const end = text[begin + 1] === '/' ? text.indexOf('\n', begin) : text.indexOf('*/', begin) + 2;
  return end === -1 || end < begin + 2 ? text.length : end;
}

/**
 * The source with comments, regular expressions and (unless keepStrings) the content of strings
 * blanked. Length and line breaks stay, so that indices and line numbers hold.
 */
export function maskSource(text, { keepStrings = false } = {}) {
  const out = [...text];
  const blank = (begin, end) => {
    for (let i = begin; i < end; i++) if (out[i] !== '\n') out[i] = ' ';
  };
  const templateDepths = []; // brace depth at which each open template expression ends
  let depth = 0;
  for (let i = 0; i < text.length; ) {
    const c = text[i];
    let end = i + 1;
    if (c === '/' && (text[i + 1] === '/' || text[i + 1] === '*')) {
      end = skipComment(text, i);
      blank(i, end);
    } else if (c === "'" || c === '"') {
      end = skipQuoted(text, i, c);
      if (!keepStrings) blank(i + 1, end - 1);
    } else if (c === '`' || (c === '}' && templateDepths.at(-1) === depth)) {
      if (c === '}') templateDepths.pop();
      end = skipTemplate(text, i + 1);
      blank(i, end);
      if (text[end - 1] === '{' && text[end - 2] === '$') templateDepths.push(depth);
    } else if (c === '/' && REGEX_MAY_FOLLOW.test(out.slice(Math.max(0, i - 20), i).join(''))) {
      end = skipQuoted(text, i, '/');
      blank(i, end);
    } else if (c === '{') depth++;
    else if (c === '}') depth--;
    i = end;
  }
  return out.join('');
}

/** Runs a check from the command line: prints each problem, exits 1 when there are any. */
export function runAsCommand(moduleUrl, name, check) {
  if (process.argv[1] === undefined || resolve(process.argv[1]) !== fileURLToPath(moduleUrl))
    return;
  const problems = check(process.argv[2] === undefined ? repoRoot : resolve(process.argv[2]));
  for (const problem of problems) console.error(problem);
  console.log(problems.length === 0 ? `${name} ok` : `${name}: ${problems.length} problems`);
  process.exitCode = problems.length === 0 ? 0 : 1;
}

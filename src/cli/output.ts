// What commands print on stdout. JSON and tables are byte for byte Longhorn's, because scripts and
// Longhorn's manager parse them; progress and errors never come here.

import type { OutputFormat } from './flag-values.js';

/** Go's encoder escapes these in strings; nowhere else can they occur in JSON. */
const GO_ESCAPED = /[<>&\u2028\u2029]/g;

/** JSON as Longhorn prints it: tabs, Go's escapes. Keys keep the order they have. */
export function jsonText(value: unknown): string {
  const text = JSON.stringify(value, null, '\t');
  return text.replace(GO_ESCAPED, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

/** Columns as wide as their widest cell and one space; the last one is not padded. */
export function tableText(rows: readonly (readonly string[])[]): string {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [i, cell] of row.entries()) widths[i] = Math.max(widths[i] ?? 0, cell.length);
  }
  const line = (row: readonly string[]): string =>
    row
      .map((cell, i) => (i === row.length - 1 ? cell : cell.padEnd((widths[i] ?? 0) + 1)))
      .join('');
  return rows.map(line).join('\n');
}

const YAML_PLAIN = /^[A-Za-z_/][\w./:-]*$/;
/** Words that YAML 1.1 or 1.2 reads as something other than text. */
const YAML_RESERVED = /^(?:true|false|yes|no|on|off|null|y|n)$/i;

function yamlString(text: string): string {
  const isPlain = YAML_PLAIN.test(text) && !YAML_RESERVED.test(text) && !text.endsWith(':');
  return isPlain ? text : JSON.stringify(text);
}

function yamlLines(value: unknown): string[] {
  if (typeof value === 'string') return [yamlString(value)];
  if (value === null || typeof value !== 'object') return [JSON.stringify(value ?? null)];
  const isList = Array.isArray(value);
  const entries: [string, unknown][] = Object.entries(value);
  if (entries.length === 0) return [isList ? '[]' : '{}'];
  return entries.flatMap(([key, item]) => {
    const lines = yamlLines(item);
    const [first = '', ...rest] = lines;
    const isNested = item !== null && typeof item === 'object' && Object.keys(item).length > 0;
    if (isList) return [`- ${first}`, ...rest.map((line) => `  ${line}`)];
    if (!isNested) return [`${yamlString(key)}: ${first}`];
    return [`${yamlString(key)}:`, ...lines.map((line) => `  ${line}`)];
  });
}

/** Block style YAML of plain JSON data. */
export function yamlText(value: unknown): string {
  return yamlLines(value).join('\n');
}

export interface Column<T> {
  readonly title: string;
  readonly text: (row: T) => string;
  /** Only with `-o wide`. */
  readonly isWide?: boolean;
}

/** One listing in any of the formats. @param toData what JSON and YAML show of a row. */
export function listingText<T>(
  format: OutputFormat,
  rows: readonly T[],
  columns: readonly Column<T>[],
  toData: (row: T) => unknown,
): string {
  switch (format) {
    case 'json':
      return jsonText(rows.map(toData));
    case 'yaml':
      return yamlText(rows.map(toData));
    case 'table':
    case 'wide': {
      const shown = columns.filter(({ isWide }) => isWide !== true || format === 'wide');
      const header = shown.map(({ title }) => title);
      return tableText([header, ...rows.map((row) => shown.map(({ text }) => text(row)))]);
    }
  }
}

export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

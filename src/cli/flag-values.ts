// Values of flags that several commands take, parsed and refused the same way everywhere.

import { InvalidArgumentError, Option } from 'commander';
import { parseSizeBytes } from '../core/units.js';

/** `4096`, `42k`, `42mb`, `10g`: bytes. */
export function sizeBytes(text: string): number {
  try {
    return parseSizeBytes(text);
  } catch {
    throw new InvalidArgumentError('Sizes look like 4096, 512m or 10g.');
  }
}

export function wholeNumber(text: string): number {
  const value = Number(text);
  if (text.trim() !== '' && Number.isSafeInteger(value) && value >= 0) return value;
  throw new InvalidArgumentError('Not a whole number.');
}

export function collect(value: string, earlier: readonly string[]): string[] {
  return [...earlier, value];
}

/** For names: an empty one is what an unset shell variable becomes. */
export function nonEmpty(text: string): string {
  if (text !== '') return text;
  throw new InvalidArgumentError('It is empty.');
}

export const OUTPUT_FORMATS = ['table', 'json', 'yaml', 'wide'] as const;
export type OutputFormat = (typeof OUTPUT_FORMATS)[number];

/** `-o` of every listing; the default is Longhorn's own table. */
export function outputOption(): Option {
  return new Option('-o, --output <format>', 'table (as Longhorn prints it), wide, json or yaml')
    .choices(OUTPUT_FORMATS)
    .default('table');
}

/** Text for the end of a command's help. */
export function examples(...list: readonly (readonly [does: string, command: string])[]): string {
  const lines = list.map(([does, command]) => `  ${does}:\n    $ ${command}`);
  return `\nExamples:\n${lines.join('\n')}`;
}

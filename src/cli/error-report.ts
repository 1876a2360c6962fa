// How a failed command ends: one line on stderr with what happened, the stable code and what to do
// next, and an exit code. Stack traces only with --debug.

import { CommanderError } from 'commander';
import { type ErrorCode, type ErrorKind, StorageError } from '../core/errors.js';
import { EXIT_CODE } from './exit-codes.js';

/** Hints that know more than the kind does. */
const HINT_OF_CODE: Partial<Record<ErrorCode, string>> = {
  CONNECTION_REFUSED:
    'Is the process running there? The address of the engine is given with --url.',
  CONNECTION_LOST: 'Look at the log of the process at that address, then try again.',
  TIMEOUT: 'Look at the log of the process at that address, then try again.',
  IDENTITY_MISMATCH:
    'The address belongs to another volume or instance: look up the current one, or correct ' +
    '--volume-name, --engine-instance-name or --replica-instance-name.',
  NOT_FOUND: 'See what there is: longhorn snapshots info, longhorn ls-replica.',
  ALREADY_EXISTS: 'Choose another name, or remove what is there first.',
  UNSUPPORTED:
    'Is that address the one that was meant (an engine, not a replica)? If so, compare the versions ' +
    'of both ends: longhorn version.',
  BUSY: 'Wait until it has ended, then try again.',
  NO_BACKEND:
    'See the replicas with longhorn ls-replica; add a healthy one with longhorn add-replica.',
  TOO_MANY_SNAPSHOTS: 'Remove snapshots with longhorn snapshots rm, then longhorn snapshots purge.',
  SNAPSHOT_SPACE_EXCEEDED:
    'Remove snapshots with longhorn snapshots rm, then longhorn snapshots purge.',
};

const HINT_OF_KIND = {
  request: 'Correct the command; --help shows examples.',
  protocol: 'Compare the versions of both ends: longhorn version.',
  resource: 'Free or add space, then try again.',
  unavailable: 'Try again; if it stays, look at the log of the process at that address.',
  state: 'See the present state with longhorn info and longhorn ls-replica.',
  corruption: 'Take that replica out with longhorn rm-replica and add an empty one.',
} as const satisfies Record<ErrorKind, string>;

export interface Report {
  readonly exitCode: number;
  /** For stderr; empty when there is nothing to say. */
  readonly text: string;
}

/** A failure with a hint of its own, which replaces the one of its code. */
export class HintedError extends Error {
  readonly failure: StorageError;
  readonly hint: string;

  constructor(failure: StorageError, hint: string) {
    super(failure.message, { cause: failure });
    this.failure = failure;
    this.hint = hint;
  }
}

/** Commander quotes names as they are declared; Longhorn's texts name the thing. */
function usageText(error: CommanderError): string {
  const name = /'([^']*)'/.exec(error.message)?.[1] ?? '';
  if (error.code === 'commander.missingArgument') return `${name.replaceAll('-', ' ')} is required`;
  if (error.code === 'commander.missingMandatoryOptionValue') {
    return `${/--([\w-]+)/.exec(name)?.[1] ?? name} is required`;
  }
  return oneLine(error.message.replace(/^error: /, ''));
}

function oneLine(text: string): string {
  return text
    .trim()
    .replace(/\s*\n\s*/g, ' ')
    .replace(/\.$/, '');
}

function isUnusable(failure: StorageError): boolean {
  return failure.code === 'NO_BACKEND' && failure.details['unreachable'] === false;
}

function exitCodeOf(failure: StorageError): number {
  if (failure.code === 'CANCELLED') return EXIT_CODE.interrupted;
  return isUnusable(failure) ? EXIT_CODE.noUsableReplica : EXIT_CODE.failure;
}

function storageReport(failure: StorageError, hint: string | undefined): Report {
  const advice = hint ?? HINT_OF_CODE[failure.code] ?? HINT_OF_KIND[failure.kind];
  return {
    exitCode: exitCodeOf(failure),
    text: `error: ${oneLine(failure.message)} (${failure.code}). ${advice}`,
  };
}

function stackText(error: unknown): string {
  const lines: string[] = [];
  for (let at: unknown = error; at instanceof Error; at = at.cause)
    lines.push(at.stack ?? at.message);
  return lines.map((line, depth) => (depth === 0 ? line : `caused by ${line}`)).join('\n');
}

function shortReport(error: unknown): Report {
  if (error instanceof CommanderError) {
    if (error.exitCode === 0) return { exitCode: EXIT_CODE.ok, text: '' };
    // Help that nobody asked for by name was already written to stderr.
    if (error.code === 'commander.help') return { exitCode: EXIT_CODE.usage, text: '' };
    const text = `error: ${usageText(error)} (INVALID_ARGUMENT). ${HINT_OF_KIND.request}`;
    return { exitCode: EXIT_CODE.usage, text };
  }
  if (error instanceof HintedError) return storageReport(error.failure, error.hint);
  if (error instanceof StorageError) return storageReport(error, undefined);
  const message = error instanceof Error ? error.message : String(error);
  const text = `error: ${oneLine(message)} (BUG). This is a fault of longhorn itself: run it again with --debug and report what it prints.`;
  return { exitCode: EXIT_CODE.failure, text };
}

/** What to print and how to exit for anything that a command threw. */
export function reportOf(error: unknown, debug: boolean): Report {
  const report = shortReport(error);
  if (!debug || report.text === '') return report;
  return { ...report, text: `${report.text}\n${stackText(error)}` };
}

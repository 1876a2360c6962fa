// Runs one command line. Nothing that only some commands need is loaded before its command is chosen.

import type { GlobalFlags } from './engine-session.js';
import { EXIT_CODE } from './exit-codes.js';
import { createProgram } from './program.js';

/** @param args without interpreter and program. @returns the exit code; errors are on stderr by then. */
export async function runCommandLine(args: readonly string[]): Promise<number> {
  const program = createProgram();
  try {
    // Asked for nothing, it says what there is, like Longhorn.
    await program.parseAsync(args.length > 0 ? args : ['--help'], { from: 'user' });
    return EXIT_CODE.ok;
  } catch (error) {
    const { reportOf } = await import('./error-report.js');
    const { exitCode, text } = reportOf(error, program.opts<GlobalFlags>().debug);
    if (text !== '') process.stderr.write(`${text}\n`);
    return exitCode;
  }
}

// Entry of the program: parses the command line, runs the chosen command, reports its failure. It
// must not load what only some commands need: daemons start through it within strict limits.

import { createProgram } from './program.js';
import type { GlobalFlags } from './engine-session.js';

async function main(argv: readonly string[]): Promise<void> {
  const program = createProgram();
  try {
    // Asked for nothing, it says what there is, like Longhorn.
    await program.parseAsync(argv.length > 2 ? argv : [...argv, '--help']);
  } catch (error) {
    const { reportOf } = await import('./error-report.js');
    const { exitCode, text } = reportOf(error, program.opts<GlobalFlags>().debug);
    if (text !== '') process.stderr.write(`${text}\n`);
    process.exitCode = exitCode;
  }
}

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  // `| head` closes the pipe early; that is no failure of the command.
  if (error.code !== 'EPIPE') throw error;
  process.exit();
});

await main(process.argv);

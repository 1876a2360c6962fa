// Entry of the program, for users and for the processes of a volume.

import { runCommandLine } from './run.js';

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  // `| head` closes the pipe early; that is no failure of the command.
  if (error.code !== 'EPIPE') throw error;
  process.exit();
});

const exitCode = await runCommandLine(process.argv.slice(2));
// A daemon is only beginning now, and has its own say in how it ends.
if (exitCode !== 0) process.exitCode = exitCode;

// The daemons' commands without the rest of the command line, for tests that start real processes.

import { Command } from 'commander';
import { registerDaemonCommands } from '../../src/cli/daemon-commands.js';

const program = new Command('longhorn')
  .option('--volume-name <name>', '', '')
  .option('--engine-instance-name <name>', '', '')
  .option('--debug', '', false);
registerDaemonCommands(program);
await program.parseAsync();

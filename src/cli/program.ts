// The command tree. Building it loads commander and nothing of what the commands do.

import { Command, type Option } from 'commander';
import { OWN_VERSION } from '../core/version.js';
import { registerDaemonCommands } from './daemon-commands.js';
import { examples } from './flag-values.js';
import { registerReplicaCommands } from './replica-commands.js';
import { registerSnapshotCommands } from './snapshot-commands.js';
import { registerVolumeCommands } from './volume-commands.js';

export const ENGINE_URL_DEFAULT = 'http://localhost:9501';

const AFTER_HELP = `

Exit codes: 0 done, 1 failed, 2 wrong arguments, 61 an engine found no usable replica, 130 interrupted.`;

/** Longhorn's defaults are mostly "not given", which says nothing to a reader. */
function isWorthSaying(value: unknown): boolean {
  return value !== undefined && value !== '' && value !== false && String(value) !== '';
}

function optionDescription(option: Option): string {
  const facts = [
    ...(option.argChoices === undefined ? [] : [option.argChoices.join(', ')]),
    ...(isWorthSaying(option.defaultValue)
      ? [`default ${option.defaultValueDescription ?? String(option.defaultValue)}`]
      : []),
    ...(option.envVar === undefined ? [] : [`environment ${option.envVar}`]),
  ];
  return facts.length === 0 ? option.description : `${option.description} (${facts.join('; ')})`;
}

/** Throws CommanderError instead of ending the process; the caller prints errors. */
export function createProgram(): Command {
  const program = new Command('longhorn')
    .description('Replicated block storage: serves volumes and changes running ones.')
    .version(OWN_VERSION.version, '--version', 'print the version of this program')
    .option('--url <address>', 'control API of the engine', ENGINE_URL_DEFAULT)
    .option('--volume-name <name>', 'volume that must be meant', '')
    .option('--engine-instance-name <name>', 'engine instance that must be meant', '')
    .option('--debug', 'log more; show stack traces of errors', false)
    .exitOverride()
    .configureOutput({ outputError: () => undefined })
    .configureHelp({ optionDescription })
    .showSuggestionAfterError();
  registerDaemonCommands(program.commandsGroup('Processes:'));
  registerReplicaCommands(program.commandsGroup('Replicas:'));
  registerSnapshotCommands(program.commandsGroup('Snapshots:'));
  registerVolumeCommands(program.commandsGroup('Volume and program:'));
  return program.addHelpText(
    'after',
    examples(
      ['The volume served by the engine at the default address', 'longhorn info'],
      ['Its replicas', 'longhorn ls-replica'],
      ['More about a command', 'longhorn add-replica --help'],
    ) + AFTER_HELP,
  );
}

// Commands about the volume as a whole, and about this program. Declarations only; what they do is
// loaded when one of them is chosen.

import { type Command, Option } from 'commander';
import { examples, nonEmpty, sizeBytes, wholeNumber } from './flag-values.js';

const SHELLS = ['bash', 'zsh', 'fish'] as const;

function registerVolume(program: Command): void {
  program
    .command('info')
    .summary('the volume as JSON: size, endpoint, frontend, expansion')
    .addHelpText(
      'after',
      examples(
        ['Where to attach it', 'longhorn info | jq -r .endpoint'],
        ['Of another engine', 'longhorn --url http://localhost:9502 info'],
      ),
    )
    .action(async (_flags, command) => (await import('./volume-actions.js')).info(command));
  program
    .command('expand')
    .summary('grow the volume; returns when the expansion has begun')
    .requiredOption(
      '--size <size>',
      'new size, larger than the present one: bytes, or 42k, 42m, 42g',
      sizeBytes,
    )
    .addHelpText(
      'after',
      examples(['To 2 GiB, then see', 'longhorn expand --size 2g && longhorn info']),
    )
    .action(async (flags, command) =>
      (await import('./volume-actions.js')).expand(flags.size, command),
    );
  const frontend = program
    .command('frontend')
    .summary('start or stop serving the volume')
    .addHelpText('after', examples(['Serve it over NBD', 'longhorn frontend start nbd']));
  frontend
    .command('start')
    .summary('serve the volume by this frontend')
    .argument('<frontend-name>', 'nbd, socket or rest', nonEmpty)
    .addHelpText('after', examples(['Over NBD', 'longhorn frontend start nbd']))
    .action(async (name, _flags, command) =>
      (await import('./volume-actions.js')).startFrontend(name, command),
    );
  frontend
    .command('shutdown')
    .summary('stop serving the volume; its replicas stay connected')
    .addHelpText('after', examples(['Before a revert', 'longhorn frontend shutdown']))
    .action(async (_flags, command) =>
      (await import('./volume-actions.js')).shutdownFrontend(command),
    );
}

function registerSettings(program: Command): void {
  program
    .command('unmap-mark-snap-chain-removed')
    .alias('unmap-mark-snap')
    .summary('let trimming reclaim the space of snapshots too, or not')
    .addOption(new Option('--enable', 'trimming marks snapshots as removed').conflicts('disable'))
    .addOption(new Option('--disable', 'trimming leaves snapshots alone'))
    .addHelpText('after', examples(['Let it', 'longhorn unmap-mark-snap-chain-removed --enable']))
    .action(async (flags, command) =>
      (await import('./volume-actions.js')).setUnmapMark(flags, command),
    );
  program
    .command('journal')
    .summary('kept for Longhorn; this engine keeps no journal and only logs the request')
    .option('--limit <n>', 'most entries, 0 for all', wholeNumber, 0)
    .addHelpText('after', examples(['The last ten', 'longhorn journal --limit 10']))
    .action(async (flags, command) =>
      (await import('./volume-actions.js')).journal(flags.limit, command),
    );
  program
    .command('sync-agent-server-reset')
    .summary('make the sync agents forget their earlier jobs')
    .addHelpText('after', examples(['After a failed restore', 'longhorn sync-agent-server-reset']))
    .action(async (_flags, command) => (await import('./volume-actions.js')).resetAgents(command));
}

function registerProgram(program: Command): void {
  program
    .command('version')
    .summary('versions of this program and of the engine, as JSON')
    .option('--client-only', 'do not ask the engine', false)
    .addHelpText(
      'after',
      examples(
        ['Of both', 'longhorn version'],
        ['Without an engine', 'longhorn version --client-only'],
      ),
    )
    .action(async (flags, command) =>
      flags.clientOnly
        ? (await import('./client-version.js')).printClientVersion()
        : (await import('./volume-actions.js')).version(command),
    );
  program
    .command('completion')
    .summary('print a completion script for a shell')
    .argument('<shell>', SHELLS.join(', '))
    .addHelpText(
      'after',
      examples(
        ['In ~/.bashrc', 'source <(longhorn completion bash)'],
        ['In ~/.zshrc, after compinit', 'source <(longhorn completion zsh)'],
        ['For fish', 'longhorn completion fish > ~/.config/fish/completions/longhorn.fish'],
      ),
    )
    .action(async (shell, _flags, command) =>
      (await import('./completion.js')).printCompletion(shell, program, command),
    );
}

export function registerVolumeCommands(program: Command): void {
  registerVolume(program);
  registerSettings(program);
  registerProgram(program);
}

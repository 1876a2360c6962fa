// Commands about snapshots, and the hash commands that Longhorn has at the top level as well.
// Declarations only; what they do is loaded when one of them is chosen.

import type { Command } from 'commander';
import { collect, examples, nonEmpty, outputOption, wholeNumber } from './flag-values.js';

function nameArgument(command: Command): Command {
  return command.argument('<snapshot-name>', 'name of the snapshot', nonEmpty);
}

function registerCreate(snapshots: Command): void {
  snapshots
    .command('create')
    .summary('take a snapshot and print its name')
    .argument('[name]', 'name; without it a new UUID', '')
    .option('--label <key=value>', 'label of the snapshot (repeat)', collect, [])
    .option('--freeze-fs', 'kept for Longhorn; has no effect on NBD clients', false)
    .addHelpText(
      'after',
      examples(
        ['With a name and a label', 'longhorn snapshots create before-upgrade --label app=db'],
        ['Keep the generated name', 'name=$(longhorn snapshots create)'],
      ),
    )
    .action(async (name, flags, command) =>
      (await import('./snapshot-actions.js')).create(name, flags, command),
    );
  nameArgument(snapshots.command('revert'))
    .summary('make the volume what it was; its frontend must be down')
    .addHelpText(
      'after',
      examples([
        'Go back',
        'longhorn frontend shutdown && longhorn snapshots revert before-upgrade &&\n' +
          '      longhorn frontend start nbd',
      ]),
    )
    .action(async (name, _flags, command) =>
      (await import('./snapshot-actions.js')).revert(name, command),
    );
  snapshots
    .command('rm')
    .summary('mark snapshots as removed; purge frees their space')
    .argument('[snapshot-names...]', 'names; unknown ones are fine')
    .addHelpText(
      'after',
      examples([
        'Remove and free the space',
        'longhorn snapshots rm before-upgrade && longhorn snapshots purge',
      ]),
    )
    .action(async (names, _flags, command) =>
      (await import('./snapshot-actions.js')).remove(names, command),
    );
}

function registerListings(snapshots: Command): void {
  snapshots
    .command('ls', { isDefault: true })
    .summary('list the snapshots that can be reverted to, newest first')
    .addOption(outputOption())
    .addHelpText(
      'after',
      examples(
        ['As Longhorn prints it', 'longhorn snapshots ls'],
        ['With sizes', 'longhorn snapshots ls -o wide'],
      ),
    )
    .action(async (flags, command) =>
      (await import('./snapshot-actions.js')).list(flags.output, command),
    );
  snapshots
    .command('info')
    .summary('all snapshots and the head as JSON, removed ones too')
    .addHelpText(
      'after',
      examples(['Who is the parent', `longhorn snapshots info | jq -r '."volume-head".parent'`]),
    )
    .action(async (_flags, command) => (await import('./snapshot-actions.js')).info(command));
}

function registerPurge(snapshots: Command): void {
  snapshots
    .command('purge')
    .summary('start freeing the space of removed snapshots on every replica')
    .option('--skip-if-in-progress', 'succeed when a purge is running already', false)
    .addHelpText(
      'after',
      examples([
        'Start it, then look',
        'longhorn snapshots purge && longhorn snapshots purge-status',
      ]),
    )
    .action(async (flags, command) =>
      (await import('./snapshot-actions.js')).purge(flags.skipIfInProgress, command),
    );
  snapshots
    .command('purge-status')
    .summary('progress of the last purge of each replica, as JSON')
    .addHelpText('after', examples(['How far is it', 'longhorn snapshots purge-status']))
    .action(async (_flags, command) =>
      (await import('./snapshot-actions.js')).purgeStatus(command),
    );
}

function registerClone(snapshots: Command): void {
  snapshots
    .command('clone')
    .summary('fill this volume with a snapshot of another; returns when it is done')
    .requiredOption('--snapshot-name <name>', 'snapshot of the source volume', nonEmpty)
    .requiredOption('--from-controller-address <address>', 'engine of the source volume', nonEmpty)
    .option('--from-volume-name <name>', 'name of the source volume that must be meant', '')
    .option('--from-controller-instance-name <name>', 'engine instance that must be meant', '')
    .option('--export-backing-image-if-exist', 'copy the data of the backing image too', false)
    .option(
      '--file-sync-http-client-timeout <seconds>',
      'time-out of file transfers',
      wholeNumber,
      5,
    )
    .option(
      '--grpc-timeout-seconds <seconds>',
      'limit for the whole copy; 0 is 24 hours',
      wholeNumber,
      0,
    )
    .addHelpText(
      'after',
      examples([
        'Into the volume served at port 9502',
        'longhorn --url http://localhost:9502 snapshots clone --snapshot-name s1 \\\n' +
          '        --from-controller-address localhost:9501',
      ]),
    )
    .action(async (flags, command) =>
      (await import('./snapshot-actions.js')).clone(flags, command),
    );
  snapshots
    .command('clone-status')
    .summary('progress of the last clone of each replica, as JSON')
    .addHelpText('after', examples(['How far is it', 'longhorn snapshots clone-status']))
    .action(async (_flags, command) =>
      (await import('./snapshot-actions.js')).cloneStatus(command),
    );
}

function registerHash(parent: Command, prefix: string): void {
  nameArgument(parent.command('hash'))
    .summary('start computing the checksum of a snapshot on every replica')
    .option('--rehash', 'also when a valid checksum is stored', false)
    .addHelpText(
      'after',
      examples(['Compute it again', `longhorn ${prefix}hash --rehash before-upgrade`]),
    )
    .action(async (name, flags, command) =>
      (await import('./snapshot-actions.js')).hash(name, flags.rehash, command),
    );
  nameArgument(parent.command('hash-cancel'))
    .summary('stop computing the checksum of a snapshot')
    .addHelpText('after', examples(['Stop it', `longhorn ${prefix}hash-cancel before-upgrade`]))
    .action(async (name, _flags, command) =>
      (await import('./snapshot-actions.js')).hashCancel(name, command),
    );
  nameArgument(parent.command('hash-status'))
    .summary('checksum of a snapshot on each replica, as JSON')
    .addHelpText(
      'after',
      examples(['Compare the replicas', `longhorn ${prefix}hash-status before-upgrade`]),
    )
    .action(async (name, _flags, command) =>
      (await import('./snapshot-actions.js')).hashStatus(name, command),
    );
}

function registerCheck(snapshots: Command): void {
  nameArgument(snapshots.command('check'))
    .summary('hash a snapshot anew on every replica; one with corrupted data becomes ERR')
    .addHelpText(
      'after',
      examples(
        ['Find bit rot', 'longhorn snapshots check before-upgrade'],
        [
          'Repair what was found',
          'longhorn rm-replica ADDRESS && longhorn add-replica ADDRESS --size S --current-size S',
        ],
      ),
    )
    .action(async (name, _flags, command) =>
      (await import('./snapshot-actions.js')).check(name, command),
    );
}

export function registerSnapshotCommands(program: Command): void {
  const snapshots = program
    .command('snapshots')
    .alias('snapshot')
    .summary('take, list, revert to, remove, purge, hash and clone snapshots')
    .addHelpText('after', examples(['List them', 'longhorn snapshots']));
  registerCreate(snapshots);
  registerListings(snapshots);
  registerPurge(snapshots);
  registerClone(snapshots);
  registerHash(snapshots, 'snapshots ');
  registerCheck(snapshots);
  registerHash(program, '');
}

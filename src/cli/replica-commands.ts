// Commands about the replicas of a running volume. Declarations only: what they do is loaded when
// one of them is chosen, because daemons start through the same program.

import { type Command, Option } from 'commander';
import { examples, nonEmpty, outputOption, sizeBytes, wholeNumber } from './flag-values.js';

const REPLICA_NAME_OPTION = '--replica-instance-name <name>';
const REPLICA_NAME_TEXT = 'name of the replica instance that must be meant';

function addressArgument(command: Command): Command {
  return command.argument('<replica-address>', 'tcp://HOST:PORT of the replica', nonEmpty);
}

function registerStart(program: Command): void {
  program
    .command('start-with-replicas')
    .alias('start')
    .summary('start a volume whose engine runs without replicas')
    .description('Connects the first replicas of a volume. Later ones come with add-replica.')
    .argument('<replica-address...>', 'tcp://HOST:PORT of each replica')
    .requiredOption(
      '--size <size>',
      'size the volume should have: bytes, or 42k, 42m, 42g',
      sizeBytes,
    )
    .requiredOption('--current-size <size>', 'size the volume has now', sizeBytes)
    .addHelpText(
      'after',
      examples([
        'Start with two replicas',
        'longhorn start-with-replicas --size 1g --current-size 1g \\\n' +
          '        tcp://127.0.0.1:10000 tcp://127.0.0.1:10010',
      ]),
    )
    .action(async (addresses, flags, command) =>
      (await import('./replica-actions.js')).start(addresses, flags, command),
    );
}

function registerAdd(program: Command): void {
  addressArgument(program.command('add-replica'))
    .alias('add')
    .summary('add a replica and fill it from the others; returns when it is RW')
    .description(
      'Adds a replica to a running volume and copies the data of the others to it while the volume ' +
        'stays in use. A replica that was part of the volume before is brought up to date.',
    )
    .requiredOption(
      '--size <size>',
      'size the volume should have: bytes, or 42k, 42m, 42g',
      sizeBytes,
    )
    .requiredOption('--current-size <size>', 'size the volume has now', sizeBytes)
    .option(
      '--restore',
      'the volume is being restored from a backup, which fills the replica',
      false,
    )
    .option('--fast-sync', 'skip files whose change time and checksum are the same', false)
    .addOption(
      new Option(
        '--sync-local',
        'kept for Longhorn; files are always copied over the network',
      ).default(false),
    )
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
    .option(
      '--bandwidth-limit <size>',
      'copy at most so many bytes a second, like 100m; 0 is no limit',
      sizeBytes,
      0,
    )
    .option(REPLICA_NAME_OPTION, REPLICA_NAME_TEXT, '')
    .option('--quiet', 'print no progress', false)
    .addHelpText(
      'after',
      examples(
        [
          'Add a third replica to a 1 GiB volume',
          'longhorn add-replica --size 1g --current-size 1g tcp://127.0.0.1:10020',
        ],
        [
          'Try again after a rebuild that failed',
          'longhorn rm-replica tcp://127.0.0.1:10020 &&\n' +
            '      longhorn add-replica --size 1g --current-size 1g --fast-sync tcp://127.0.0.1:10020',
        ],
      ),
    )
    .action(async (address, flags, command) =>
      (await import('./add-replica-action.js')).add(address, flags, command),
    );
}

function registerRebuild(program: Command): void {
  program
    .command('replica-rebuild-status')
    .alias('rebuild-status')
    .summary('progress of replicas that are being filled, as JSON')
    .addHelpText('after', examples(['How far is it', 'longhorn replica-rebuild-status']))
    .action(async (_flags, command) =>
      (await import('./replica-actions.js')).rebuildStatus(command),
    );
  addressArgument(program.command('verify-rebuild-replica'))
    .alias('verify-rebuild')
    .summary('compare a filled replica with the others and let it be read')
    .description('Makes a WO replica RW when its snapshots are those of the others, else ERR.')
    .option(REPLICA_NAME_OPTION, REPLICA_NAME_TEXT, '')
    .addHelpText(
      'after',
      examples([
        'After a restore into a volume with a new replica',
        'longhorn verify-rebuild-replica tcp://127.0.0.1:10020',
      ]),
    )
    .action(async (address, _flags, command) =>
      (await import('./replica-actions.js')).verify(address, command),
    );
}

function registerMembership(program: Command): void {
  program
    .command('ls-replica')
    .alias('ls')
    .summary('list the replicas with mode and chain')
    .addOption(outputOption())
    .addHelpText(
      'after',
      examples(
        ['As Longhorn prints it', 'longhorn ls-replica'],
        [
          'Addresses of the failed ones',
          `longhorn ls-replica -o json | jq -r '.[]|select(.mode=="ERR").address'`,
        ],
      ),
    )
    .action(async (flags, command) =>
      (await import('./replica-actions.js')).list(flags.output, command),
    );
  addressArgument(program.command('rm-replica'))
    .alias('rm')
    .summary('take a replica out of the volume; its files stay')
    .addHelpText(
      'after',
      examples(['Take a failed one out', 'longhorn rm-replica tcp://127.0.0.1:10020']),
    )
    .action(async (address, _flags, command) =>
      (await import('./replica-actions.js')).remove(address, command),
    );
  addressArgument(program.command('update-replica'))
    .alias('update')
    .summary('set the mode of a replica by hand')
    .description('Sets the mode of a replica. One that is ERR stays so until it is added again.')
    .requiredOption('--mode <mode>', 'RW or ERR')
    .addHelpText(
      'after',
      examples([
        'Stop using a replica',
        'longhorn update-replica --mode ERR tcp://127.0.0.1:10020',
      ]),
    )
    .action(async (address, flags, command) =>
      (await import('./replica-actions.js')).update(address, flags.mode, command),
    );
}

export function registerReplicaCommands(program: Command): void {
  registerStart(program);
  registerAdd(program);
  registerRebuild(program);
  registerMembership(program);
}

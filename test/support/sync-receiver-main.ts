// A process that receives one file, for tests that kill it: argv is the directory and the file
// name; it prints the port.

import { realClock } from '../../src/core/clock-real.js';
import { silentLogger } from '../../src/core/log.js';
import { createNativeDisk } from '../../src/disk/native-disk.js';
import { launchReceiver } from './sync-transfer.js';

const [, , directory, fileName] = process.argv;
const disk = createNativeDisk({ log: silentLogger });
const receiver = await launchReceiver(disk, directory ?? '', fileName ?? '', { clock: realClock });
process.stdout.write(`${receiver.port}\n`);
await receiver.done;
await disk.shutdown();

// Loaded into a process with `node --import`: its disk then says that data is durable without
// asking the kernel. Only for showing that a power-loss test notices; never part of the program.

import { DISK_OP, type DiskRequest } from '../../src/disk/disk.js';
import { NativeDiskFile } from '../../src/disk/native-disk-file.js';
import { NativeDiskQueue } from '../../src/disk/native-disk-queue.js';

const submit = Reflect.get(NativeDiskQueue.prototype, 'submit') as (request: DiskRequest) => void;
NativeDiskQueue.prototype.submit = function (this: NativeDiskQueue, request: DiskRequest): void {
  if (request.op !== DISK_OP.sync) submit.call(this, request);
  else queueMicrotask(() => request.complete(0));
};
NativeDiskFile.prototype.sync = () => Promise.resolve();

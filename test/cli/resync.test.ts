// A replica that was away comes back by what it missed: real processes, counted bytes, and in the end
// each replica alone must hold the same, in its head and in every snapshot.

import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { EXIT_CODE } from '../../src/cli/exit-codes.js';
import { silentLogger } from '../../src/core/log.js';
import { createNativeDisk, createSlab } from '../../src/disk/native-disk.js';
import { MIB, ResyncVolume } from '../support/resync-volume.js';

const disk = createNativeDisk({ slab: createSlab(4 * MIB), log: silentLogger });
t.setTimeout(180_000);
t.teardown(() => disk.shutdown());

t.test('a replica that was killed comes back by what was written meanwhile', async (t) => {
  const volume = await ResyncVolume.create(t, disk);
  await volume.lose();
  await volume.fill(20, 2);
  await volume.scatter(64);
  const moved = await volume.comeBack(t);
  t.ok(moved >= 2 * MIB, `${moved} bytes: what was written`);
  t.ok(moved <= 3 * MIB, `${moved} bytes: little else`);
  await volume.assertAlike(t);
});

t.test('snapshots come and go meanwhile, engine and replicas restart', async (t) => {
  const volume = await ResyncVolume.create(t, disk);
  await volume.lose();
  await volume.fill(20, 2);
  await volume.run('snapshots', 'create', 'meanwhile');
  await volume.restartEngine('SIGKILL', [volume.kept]);
  await volume.kept.daemon?.end('SIGKILL');
  await volume.stack.engine?.end('SIGKILL');
  await volume.stack.startReplica(volume.kept);
  await volume.restartEngine('SIGTERM', [volume.kept]);
  await volume.fill(22, 1);
  await volume.run('snapshots', 'create', 'gone');
  await volume.fill(30, 1);
  await volume.run('snapshots', 'rm', 'gone');
  await volume.run('snapshots', 'purge');
  const moved = await volume.comeBack(t);
  t.ok(moved <= 5 * MIB, `${moved} bytes: what was written, no more`);
  await volume.assertAlike(t);
});

t.test('the engine dies too, and knows again who was away', async (t) => {
  const volume = await ResyncVolume.create(t, disk);
  await volume.fill(40, 1);
  await volume.away.daemon?.end('SIGKILL');
  await volume.stack.engine?.end('SIGKILL');
  await volume.restartEngine('SIGKILL', [volume.kept]);
  await volume.fill(41, 1);
  await volume.comeBack(t);
  await volume.assertAlike(t);
});

t.test('without a record, or after another life, everything is compared', async (t) => {
  const volume = await ResyncVolume.create(t, disk);
  await volume.lose();
  await volume.fill(20, 2);
  await volume.restartEngine('SIGTERM', [volume.kept]);
  // Somebody runs the other one alone: from here on it has a history of its own.
  await volume.stack.engine?.end();
  await volume.kept.daemon?.end();
  await volume.stack.startReplica(volume.away);
  await volume.restartEngine('SIGTERM', [volume.away]);
  await volume.fill(0, 1);
  await volume.scatter(64);
  await volume.stack.engine?.end();
  await volume.away.daemon?.end();
  await volume.stack.startReplica(volume.kept);
  await volume.restartEngine('SIGTERM', [volume.kept]);
  const moved = await volume.comeBack(t);
  t.ok(moved < 16 * MIB, `${moved} bytes: equal pieces are not sent`);
  await volume.assertAlike(t);
});

t.test('a replica without its roster file is compared; an empty one copied whole', async (t) => {
  const volume = await ResyncVolume.create(t, disk);
  await volume.lose();
  await volume.fill(20, 2);
  await rm(join(volume.away.directory, 'volume.roster'));
  const moved = await volume.comeBack(t);
  t.ok(moved < 16 * MIB, `${moved} bytes: equal pieces are not sent`);
  await volume.lose();
  await rm(volume.away.directory, { recursive: true });
  const all = await volume.comeBack(t);
  t.ok(all >= 32 * MIB, `${all} bytes`);
  await volume.assertAlike(t);
});

t.test('a second outage in the middle of the resync loses nothing', async (t) => {
  const volume = await ResyncVolume.create(t, disk);
  await volume.lose();
  await volume.fill(20, 8);
  const daemon = await volume.stack.startReplica(volume.away);
  await volume.cli('rm', volume.away.address);
  const adding = volume.add();
  await daemon.event('receiver.stopped');
  await daemon.end('SIGKILL');
  t.not((await adding).code, EXIT_CODE.ok, 'the first attempt failed');
  await volume.fill(30, 1);
  const before = await volume.comeBack(t);
  t.ok(before <= 20 * MIB, `${before} bytes`);
  await volume.assertAlike(t);
});

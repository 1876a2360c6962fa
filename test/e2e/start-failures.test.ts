// What a replica or an engine that cannot start or serve says, with real processes: one clear
// error to whoever caused it, an exit code that scripts can rely on, nothing changed on disk.

import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { fioRefusal, runFio } from '../support/fio.js';
import { mountRefusal, mountSmall } from '../support/native-disk.js';
import { type Daemon, ProcessStack, type ReplicaSlot } from '../support/process-stack.js';
import { replicaState } from '../support/replica-state.js';

const SIZE = '16m';

async function newStack(t: Test): Promise<ProcessStack> {
  const stack = await ProcessStack.create({ size: SIZE, replicaFlags: ['--no-sync-agent'] });
  t.teardown(() => stack.stop());
  return stack;
}

/** The one line with which a daemon that cannot start ends. */
async function startFailure(t: Test, daemon: Daemon, exitCode = 1): Promise<string> {
  t.match(await daemon.ended, { code: exitCode, signal: null }, 'its exit code', {
    log: daemon.text(),
  });
  const lines = daemon.eventsOf('process.start.failed');
  t.equal(lines.length, 1, 'one line says why');
  return JSON.stringify(lines[0] ?? {});
}

/** A replica that was served once and is closed, its process ended. */
async function usedReplica(t: Test): Promise<{ stack: ProcessStack; slot: ReplicaSlot }> {
  const stack = await newStack(t);
  await stack.startReplicas(1);
  await stack.startEngine();
  await stack.engine?.end();
  const [slot] = stack.replicas as [ReplicaSlot];
  await slot.daemon?.end();
  return { stack, slot };
}

t.test('a replica needs free ports', async (t) => {
  const stack = await newStack(t);
  const slot = await stack.addSlot();
  for (const offset of [0, 1]) {
    const taken = createServer().listen(slot.port + offset, '127.0.0.1');
    await once(taken, 'listening');
    const text = await startFailure(t, stack.launchReplica(slot));
    t.match(text, /EADDRINUSE|in use/);
    t.match(text, String(slot.port + offset), 'and names the port');
    taken.close();
    await once(taken, 'close');
  }
  await stack.startReplica(slot);
});

t.test('a replica needs a directory or a place for one', async (t) => {
  const stack = await newStack(t);
  const missing = await stack.addSlot(join(stack.directory, 'no', 'such'));
  t.match(await startFailure(t, stack.launchReplica(missing)), /cannot create .*no\/such.*ENOENT/);
  const path = join(stack.directory, 'file');
  await writeFile(path, 'not a directory');
  const file = await stack.addSlot(path);
  await refused(t, stack, file, /not a directory|ENOTDIR/);
  t.equal(await readFile(path, 'utf8'), 'not a directory', 'the file is as it was');
});

t.test('a replica needs its backing file before it creates anything', async (t) => {
  const stack = await newStack(t);
  const slot = await stack.addSlot();
  const path = join(stack.directory, 'nosuch.img');
  const text = await startFailure(t, stack.launchReplica(slot, ['--backing-file', path]));
  t.match(text, /cannot use --backing-file .*nosuch\.img: ENOENT/);
  t.strictSame(await readdir(stack.directory), []);
});

t.test('P6: a directory is served by one replica process at a time', async (t) => {
  const stack = await newStack(t);
  await stack.startReplicas(1);
  const [first] = stack.replicas as [ReplicaSlot];
  const second = await stack.addSlot(first.directory);
  t.match(await startFailure(t, stack.launchReplica(second)), /another process serves/);
  await first.daemon?.end('SIGKILL');
  await stack.startReplica(second);
});

t.test('a replica has whole sectors', async (t) => {
  const stack = await newStack(t);
  const slot = await stack.addSlot();
  const text = await startFailure(t, stack.launchReplica(slot, ['--size', '1000001']));
  t.match(text, /1000001/);
  t.match(text, /4096|512/, 'and names the unit');
});

t.test('an engine without a replica to reach says so', async (t) => {
  const stack = await newStack(t);
  await stack.addSlot();
  const text = await startFailure(t, stack.launchEngine());
  t.match(text, /no available backend/);
});

t.test(
  'NBD over TLS needs a mode, readable files, and a certificate that fits its key',
  async (t) => {
    const stack = await newStack(t);
    await stack.startReplicas(1);
    const [slot] = stack.replicas as [ReplicaSlot];
    const garbage = join(stack.directory, 'garbage.pem');
    await writeFile(garbage, 'no certificate');
    const files = ['--nbd-tls-certificate', garbage, '--nbd-tls-key', garbage];
    const missing = ['--nbd-tls-certificate', '/nosuch.pem', '--nbd-tls-key', garbage];
    const wrong: readonly (readonly [flags: readonly string[], says: RegExp])[] = [
      [files, /need --nbd-tls allow or --nbd-tls require/],
      [['--nbd-tls', 'require'], /needs --nbd-tls-certificate and --nbd-tls-key/],
      [['--nbd-tls', 'require', ...missing], /cannot read --nbd-tls-certificate .*nosuch\.pem/],
      [['--nbd-tls', 'require', ...files], /are not a PEM certificate and its key/],
    ];
    for (const [flags, says] of wrong) {
      t.match(await startFailure(t, stack.launchEngine(stack.replicas, flags)), says);
      t.strictSame(await replicaState(slot), { state: 'closed', dirty: false });
    }
  },
);

t.test('an engine is refused by the replica of another volume', async (t) => {
  const stack = await newStack(t);
  await stack.startReplicas(1);
  const [slot] = stack.replicas as [ReplicaSlot];
  const engine = stack.daemon([
    ...['engine', 'other', '--size', SIZE, '--current-size', SIZE, '--frontend', 'none'],
    ...['--listen', '127.0.0.1:0', '--disableRevCounter', '--replica', slot.address],
  ]);
  t.match(await engine.ended, { signal: null });
  t.not((await engine.ended).code, 0);
  t.match(engine.text(), /incorrect volume name|vol\b.*other|other.*vol\b/);
  t.strictSame(await replicaState(slot), { state: 'closed', dirty: false });
});

/** True when the daemon reaches the event, false when it ends instead. */
function reaches(daemon: Daemon, event: string): Promise<boolean> {
  return daemon.event(event).then(
    () => true,
    () => false,
  );
}

/**
 * The replica either does not start, or serves only to say that it cannot be used; then an engine
 * refuses it and the replica lives. Its log or the engine's says why.
 */
async function refused(
  t: Test,
  stack: ProcessStack,
  slot: ReplicaSlot,
  says: RegExp,
): Promise<void> {
  const replica = stack.launchReplica(slot);
  if (!(await reaches(replica, 'replica.serving'))) {
    t.match(await startFailure(t, replica), says);
    return;
  }
  const engine = stack.launchEngine([slot]);
  t.match(await engine.ended, { code: 61 }, 'an engine finds no usable replica');
  t.match(`${engine.text()}\n${replica.text()}`, says, 'and the logs say why');
  t.notOk(replica.hasEnded, 'the replica process lives');
}

interface Damage {
  readonly what: string;
  readonly says: RegExp;
  readonly change: (directory: string) => Promise<void>;
}

const DAMAGES: readonly Damage[] = [
  {
    what: 'the head is missing',
    says: /volume-head-000\.img/,
    change: (directory) => rm(join(directory, 'volume-head-000.img')),
  },
  {
    what: 'the head is cut short',
    says: /volume-head-000\.img/,
    change: (directory) => truncate(join(directory, 'volume-head-000.img'), 1_000_000),
  },
  {
    what: 'volume.meta is no JSON',
    says: /volume\.meta/,
    change: (directory) => writeFile(join(directory, 'volume.meta'), '{"Size":16'),
  },
  {
    what: 'the metadata of the head is no JSON',
    says: /volume-head-000\.img\.meta/,
    change: (directory) => writeFile(join(directory, 'volume-head-000.img.meta'), 'nonsense'),
  },
  {
    what: 'the chain has a cycle',
    says: /volume-head-000|cycle|loop/i,
    change: async (directory) => {
      const path = join(directory, 'volume-head-000.img.meta');
      const meta = JSON.parse(await readFile(path, 'utf8')) as Record<string, unknown>;
      await writeFile(path, JSON.stringify({ ...meta, Parent: 'volume-head-000.img' }));
    },
  },
];

for (const { what, says, change } of DAMAGES) {
  t.test(`a damaged replica is refused and left as it is: ${what}`, async (t) => {
    const { stack, slot } = await usedReplica(t);
    await change(slot.directory);
    const before = await contentOf(slot.directory);
    await refused(t, stack, slot, says);
    t.strictSame(await contentOf(slot.directory), before);
  });
}

/** Names of all files and text of the metadata. */
async function contentOf(directory: string): Promise<Record<string, string>> {
  const content: Record<string, string> = {};
  for (const name of (await readdir(directory)).sort()) {
    if (name.startsWith('.')) continue;
    const text = name.endsWith('.meta') ? await readFile(join(directory, name), 'utf8') : '';
    content[name] = text;
  }
  return content;
}

t.test(
  'on a file system of memory, a volume works or is refused in one line',
  { skip: mountRefusal() },
  async (t) => {
    const stack = await newStack(t);
    const mount = await mkdtemp(join(stack.directory, 'memory-'));
    mountSmall(mount);
    t.teardown(() => execFileSync('umount', ['-l', mount]));
    const slot = await stack.addSlot(join(mount, 'r1'));
    const replica = stack.launchReplica(slot);
    if (!(await reaches(replica, 'replica.serving'))) {
      t.match(await startFailure(t, replica), /extent|direct/i);
      return;
    }
    const engine = stack.launchEngine();
    if (!(await reaches(engine, 'engine.serving'))) {
      t.match(engine.text(), /extent|direct/i);
      t.notOk(replica.hasEnded, 'the replica process lives');
      return;
    }
    if (fioRefusal() !== false) return;
    const flags = ['--rw=randwrite', '--bs=4k', '--size=1m', '--verify=crc32c', '--verify_fatal=1'];
    t.match(await runFio(stack.nbdUri, stack.directory, flags), { code: 0 });
  },
);

t.test('an engine whose NBD socket is taken ends and closes its replicas', async (t) => {
  const stack = await newStack(t);
  await stack.startReplicas(1);
  const taken = createServer().listen(stack.nbdSocket);
  await once(taken, 'listening');
  t.match(await startFailure(t, stack.launchEngine()), /nbd\.sock/);
  const [slot] = stack.replicas as [ReplicaSlot];
  t.strictSame(await replicaState(slot), { state: 'closed', dirty: false });
  taken.close();
});

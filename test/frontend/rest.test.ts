// The `rest` frontend over real HTTP: what it reads, writes and refuses, and that it ends.

import { once } from 'node:events';
import { connect } from 'node:net';
import t, { type Test } from 'tap';
import { MIB } from '../../src/core/units.js';
import { type RestFrontend, startRestFrontend } from '../../src/frontend/rest/server.js';
import { createTestSlab } from '../support/memory-connection.js';
import { MemoryDevice } from '../support/memory-device.js';
import { freeBuffers } from '../support/stream-mutation.js';

const slab = createTestSlab(0);
const ALL_FREE = freeBuffers(slab);

interface Rig {
  readonly frontend: RestFrontend;
  readonly device: MemoryDevice;
  post(action: string, body: string): Promise<{ status: number; answer: Record<string, unknown> }>;
}

async function start(t: Test): Promise<Rig> {
  const device = new MemoryDevice({ slab, sizeBytes: 4 * MIB });
  const options = { device, slab, volumeName: 'vol', host: '127.0.0.1', port: 0 };
  const frontend = await startRestFrontend(options);
  t.teardown(() => frontend.close());
  const url = `http://127.0.0.1:${frontend.port}/v1/volumes/1`;
  return {
    frontend,
    device,
    post: async (action, body) => {
      const response = await fetch(`${url}?action=${action}`, { method: 'POST', body });
      return {
        status: response.status,
        answer: (await response.json()) as Record<string, unknown>,
      };
    },
  };
}

t.test('what is written is read back', async (t) => {
  const { frontend, device, post } = await start(t);
  const data = Buffer.alloc(5000, 7);
  const write = JSON.stringify({ offset: 1000, length: 5000, data: data.toString('base64') });
  t.match(await post('writeat', write), { status: 200 });
  t.ok(data.equals(device.content.subarray(1000, 6000)));
  const { answer } = await post('readat', JSON.stringify({ offset: 1000, length: 5000 }));
  t.equal(answer['data'], data.toString('base64'));
  const about = await fetch(`http://127.0.0.1:${frontend.port}/v1/volumes/1`);
  t.match(await about.json(), { name: 'vol', size: 4 * MIB });
  t.equal(freeBuffers(slab), ALL_FREE);
});

t.test('bad requests are refused and leave nothing behind', async (t) => {
  const { frontend, post } = await start(t);
  const big = Buffer.alloc(MIB + 1).toString('base64');
  const refused: [string, string, number][] = [
    ['readat', 'no JSON', 400],
    ['readat', '[]', 400],
    ['readat', '{"offset":-1,"length":10}', 400],
    ['readat', '{"offset":1.5,"length":10}', 400],
    ['readat', `{"offset":0,"length":${MIB + 1}}`, 400],
    ['readat', `{"offset":${4 * MIB},"length":1}`, 400],
    ['writeat', JSON.stringify({ offset: 4 * MIB - 1, data: 'AAAA' }), 400],
    ['writeat', JSON.stringify({ offset: 0, data: big }), 400],
    ['writeat', 'x'.repeat(2 * MIB + 1), 400],
    ['destroy', '{}', 404],
  ];
  for (const [action, body, status] of refused) {
    const answer = await post(action, body);
    t.equal(answer.status, status, `${action} ${body.slice(0, 40)}`);
    t.equal(answer.answer['type'], 'error');
  }
  const wrong = await fetch(`http://127.0.0.1:${frontend.port}//[`, { method: 'POST' });
  t.equal(wrong.status, 404, 'a path that is no path');
  t.equal(freeBuffers(slab), ALL_FREE);
});

t.test('it ends although a client never finishes its request', async (t) => {
  const { frontend } = await start(t);
  const socket = connect(frontend.port, '127.0.0.1');
  t.teardown(() => socket.destroy());
  socket.on('error', () => undefined);
  const closed = once(socket, 'close');
  const head = 'POST /v1/volumes/1?action=readat HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n';
  socket.write(`${head}Content-Length: 1000\r\n\r\n`);
  // The server answers "100 Continue" once it waits for the body.
  await once(socket, 'data');
  await frontend.close();
  socket.resume();
  await closed;
});

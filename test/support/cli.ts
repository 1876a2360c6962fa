// Runs the program as a user does, and reads and writes a volume through the `socket` frontend.

import { type ChildProcess, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { FRAME_HEADER_BYTES, FRAME_TYPE } from '../../src/wire/replica/constants.js';
import { encodeFrameHeader } from '../../src/wire/replica/frame.js';
import { RawClient } from './raw-client.js';

const PROGRAM = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
const WORKER = fileURLToPath(new URL('./cli-worker-main.js', import.meta.url));

export interface CliResult {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface CliRun {
  readonly result: Promise<CliResult>;
  kill(signal: NodeJS.Signals): void;
  /** Resolves when stderr contains the text. @throws when the program ends without. */
  said(text: string | RegExp): Promise<void>;
}

export function startCli(args: readonly string[]): CliRun {
  const child = spawn(process.execPath, [PROGRAM, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  let stdout = '';
  let stderr = '';
  let isOver = false;
  const listeners = new Set<() => void>();
  const wake = (): void => {
    for (const listener of listeners) listener();
  };
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
    wake();
  });
  const result = once(child, 'close').then(([code]) => {
    isOver = true;
    wake();
    return { code: code as number | null, stdout, stderr };
  });
  return {
    result,
    kill: (signal) => void child.kill(signal),
    said: (text) =>
      new Promise((resolve, reject) => {
        const look = (): void => {
          if (typeof text === 'string' ? stderr.includes(text) : text.test(stderr)) resolve();
          else if (isOver) reject(new Error(`ended without saying '${String(text)}': ${stderr}`));
          else return;
          listeners.delete(look);
        };
        listeners.add(look);
        look();
      }),
  };
}

export function runCli(...args: string[]): Promise<CliResult> {
  return startCli(args).result;
}

/** The same command line in one process for many commands, for tests that run dozens. */
export class CliWorker {
  private readonly child: ChildProcess = fork(WORKER);

  async run(...args: string[]): Promise<CliResult> {
    this.child.send(args);
    const [result] = await once(this.child, 'message');
    return result as CliResult;
  }

  stop(): void {
    this.child.kill('SIGKILL');
  }
}

/** A client of the `socket` frontend, one request at a time. */
export class SocketClient {
  private readonly connection: RawClient;
  private seq = 0;

  private constructor(connection: RawClient) {
    this.connection = connection;
  }

  static async connect(path: string): Promise<SocketClient> {
    return new SocketClient(await RawClient.connect({ path }));
  }

  async write(offset: number, data: Buffer): Promise<void> {
    await this.request(FRAME_TYPE.write, offset, data.byteLength, data);
  }

  read(offset: number, lengthBytes: number): Promise<Buffer> {
    return this.request(FRAME_TYPE.read, offset, lengthBytes, Buffer.alloc(0));
  }

  async trim(offset: number, lengthBytes: number): Promise<void> {
    await this.request(FRAME_TYPE.unmap, offset, lengthBytes, Buffer.alloc(0));
  }

  close(): void {
    this.connection.destroy();
  }

  private async request(
    type: number,
    offset: number,
    sizeBytes: number,
    data: Buffer,
  ): Promise<Buffer> {
    const header = Buffer.alloc(FRAME_HEADER_BYTES);
    const view = new DataView(header.buffer, header.byteOffset);
    encodeFrameHeader(view, 0, this.seq++, type, offset, sizeBytes, data.byteLength);
    this.connection.write(Buffer.concat([header, data]));
    const answer = await this.connection.read(FRAME_HEADER_BYTES);
    const payload = await this.connection.read(answer.readUInt32LE(22));
    const answerType = answer.readUInt32LE(6);
    if (answerType === FRAME_TYPE.response) return payload;
    throw new Error(`a request was answered with type ${answerType}: ${payload.toString()}`);
  }
}

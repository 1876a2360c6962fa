// Runs command lines it receives from its parent, one after the other, and answers with what they
// wrote: the whole command line without a process start for each.

import { runCommandLine } from '../../src/cli/run.js';

const written = { stdout: '', stderr: '' };
for (const name of ['stdout', 'stderr'] as const) {
  process[name].write = (text: string | Uint8Array): boolean => {
    written[name] += String(text);
    return true;
  };
}

process.on('message', (args: string[]) => {
  written.stdout = '';
  written.stderr = '';
  void runCommandLine(args).then((code) => process.send?.({ code, ...written }));
});

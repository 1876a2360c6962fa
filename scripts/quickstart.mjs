// The main job on this machine, for a first look: set-up, then the story of one volume
// (scripts/quickstart-story.mjs). Only Debian packages need root.

import { resolve } from 'node:path';
import { reportSetupError, setup } from './setup.mjs';
import { repoRoot } from './source-files.mjs';

const USAGE = `usage: ./scripts/quickstart [--once] [--dir DIR] [--no-apt]
  --once     exit when the story is told: 0, or non-zero on any mismatch
             (otherwise the volume stays served until Ctrl-C)
  --dir DIR  keep replicas and sockets there (default .quickstart in the checkout)
  --no-apt   never install Debian packages`;

/** @returns options, or null when the arguments make no sense. */
function parseArguments(args) {
  const options = { once: false, directory: resolve(repoRoot, '.quickstart'), mayInstall: true };
  for (let i = 0; i < args.length; i++) {
    if (args[i] === '--once') options.once = true;
    else if (args[i] === '--no-apt') options.mayInstall = false;
    else if (args[i] === '--dir' && args[i + 1] !== undefined)
      options.directory = resolve(args[++i]);
    else return null;
  }
  return options;
}

async function main(args) {
  if (args.includes('--help') || args.includes('-h')) {
    console.log(USAGE);
    return;
  }
  const options = parseArguments(args);
  if (options === null) {
    console.error(USAGE);
    process.exitCode = 2;
    return;
  }
  const { missing } = await setup({ purposes: ['quickstart'], mayInstall: options.mayInstall });
  const { tellStory } = await import('./quickstart-story.mjs');
  process.exitCode = await tellStory({ ...options, missingPrograms: missing });
}

await main(process.argv.slice(2)).catch(reportSetupError);

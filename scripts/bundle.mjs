// Bundles the program into dist/bundle/app/: few files that a daemon loads quickly, with each command
// in a chunk of its own so that a process pays only for what it runs (docs/adr/0005-bundle.md).

import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';

/**
 * As deep as dist/src/LAYER/, and flat: a module that finds a file of the checkout relative to itself
 * (the addon, package.json) finds it bundled or not.
 */
const BUNDLE_DIRECTORY = 'dist/bundle/app';

/** Keep what is being replaced until the new one is complete: a process may be starting from it. */
function removeOtherFiles(directory, kept) {
  for (const name of readdirSync(directory)) if (!kept.has(name)) rmSync(join(directory, name));
}

/** Writes main.js and its chunks. @throws when esbuild finds an error. */
export async function bundle(root) {
  const { build } = await import('esbuild');
  const directory = join(root, BUNDLE_DIRECTORY);
  const result = await build({
    absWorkingDir: root,
    entryPoints: ['src/cli/main.ts'],
    outdir: directory,
    bundle: true,
    splitting: true,
    format: 'esm',
    platform: 'node',
    target: 'node20.19',
    minifySyntax: true,
    minifyWhitespace: true,
    sourcemap: 'linked',
    sourcesContent: false,
    metafile: true,
    logLevel: 'silent',
    // CommonJS packages in the bundle call require() for Node's own modules.
    banner: {
      js: "import{createRequire as $cr}from'node:module';const require=$cr(import.meta.url);",
    },
  });
  const written = new Set(
    Object.keys(result.metafile.outputs).map((path) => path.split('/').at(-1)),
  );
  removeOtherFiles(directory, written);
}

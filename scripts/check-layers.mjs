// Fails when a file under src/ imports what its layer may not. The rules are the table of
// docs/architecture.md between the `layers` markers, so the document and the check cannot drift.

import { dirname, posix } from 'node:path';
import { lineOf, listFiles, maskSource, readText, runAsCommand } from './source-files.mjs';

const IMPORT = /\b(?:import|export)\b[^'"`;]*?\bfrom\s*'([^']+)'|\bimport\s*\(?\s*'([^']+)'/g;
const TABLE = /<!-- layers:begin -->([\s\S]*?)<!-- layers:end -->/;

/** Names in backticks of a table cell; a cell without any means nothing. */
function names(cell) {
  return [...cell.matchAll(/`([^`]+)`/g)].map((match) => match[1]);
}

/** Layer name to { layers, modules }; `*` stands for everything. */
export function readLayerTable(document) {
  const table = new Map();
  for (const row of (TABLE.exec(document)?.[1] ?? '').split('\n')) {
    const cells = row.split('|').slice(1, -1);
    if (cells.length < 3) continue;
    const [folders, layers, modules] = cells.map(names);
    for (const folder of folders) table.set(folder, { layers, modules });
  }
  return table;
}

function allowed(patterns, target) {
  return patterns.some((p) => p === '*' || target === p || target.startsWith(`${p}/`));
}

function moduleAllowed(patterns, specifier) {
  return (
    patterns.some((p) => (p === 'node:*' ? specifier.startsWith('node:') : false)) ||
    allowed(patterns, specifier)
  );
}

/** Why a file of this layer may not import the specifier, or null. */
function refusal(layer, rule, file, specifier) {
  if (!specifier.startsWith('.')) {
    return moduleAllowed(rule.modules, specifier) ? null : `${layer} may not use ${specifier}`;
  }
  const target = posix.normalize(posix.join(dirname(file), specifier));
  if (!target.startsWith('src/')) return `${layer} may not import ${target}, outside src/`;
  if (!specifier.endsWith('.js')) return `import of ${specifier} must end in .js`;
  const inside = target.slice('src/'.length).replace(/\.js$/, '');
  if (inside.split('/')[0] === layer || allowed(rule.layers, inside)) return null;
  return `${layer} may not import ${inside}`;
}

function tableProblems(table) {
  const problems = [];
  for (const [layer, { layers }] of table) {
    for (const target of layers) {
      const name = target.split('/')[0];
      if (name === '*') continue;
      if (!table.has(name))
        problems.push(`docs/architecture.md: ${layer} may import ${name}, which has no row`);
      if (table.get(name)?.layers.some((back) => back === layer)) {
        problems.push(`docs/architecture.md: ${layer} and ${name} may import each other`);
      }
    }
  }
  return problems;
}

/** @returns one line a problem; none when every import is allowed. */
export function checkLayers(root) {
  const table = readLayerTable(readText(root, 'docs/architecture.md'));
  if (table.size === 0) return ['docs/architecture.md: the layer table is missing'];
  const problems = tableProblems(table);
  for (const file of listFiles(root, 'src', ['.ts'])) {
    const layer = file.split('/')[1];
    const rule = table.get(layer);
    if (rule === undefined) {
      problems.push(`${file}: src/${layer} has no row in docs/architecture.md`);
      continue;
    }
    const source = maskSource(readText(root, file), { keepStrings: true });
    for (const match of source.matchAll(IMPORT)) {
      const why = refusal(layer, rule, file, match[1] ?? match[2]);
      if (why !== null) problems.push(`${file}:${lineOf(source, match.index)}: ${why}`);
    }
  }
  return problems;
}

runAsCommand(import.meta.url, 'layers', checkLayers);

// Completion scripts for shells, generated from the command tree, so they cannot know other
// commands than there are. The scripts ask nobody: completing must not reach for an engine.

import type { Command, Option } from 'commander';
import { print } from './output.js';

/** One place in the tree: what can come next there. */
interface CommandNode {
  /** Words from the program's name to here, e.g. ['snapshots', 'create']. */
  readonly path: readonly string[];
  readonly summary: string;
  readonly names: readonly string[];
  readonly options: readonly OptionNode[];
  readonly children: readonly CommandNode[];
}

interface OptionNode {
  readonly flags: readonly string[];
  readonly takesValue: boolean;
  readonly choices: readonly string[];
  readonly summary: string;
}

function optionNode(option: Option): OptionNode {
  return {
    flags: [option.short, option.long].filter((flag) => typeof flag === 'string'),
    takesValue: option.required || option.optional,
    choices: option.argChoices ?? [],
    summary: option.description,
  };
}

const HELP_OPTION: OptionNode = {
  flags: ['--help'],
  takesValue: false,
  choices: [],
  summary: 'show help',
};

function commandNode(command: Command, path: readonly string[]): CommandNode {
  return {
    path,
    summary: command.summary(),
    names: [command.name(), ...command.aliases()],
    options: [...command.options.map(optionNode), HELP_OPTION],
    children: command.commands.map((child) => commandNode(child, [...path, child.name()])),
  };
}

function allNodes(node: CommandNode): CommandNode[] {
  return [node, ...node.children.flatMap(allNodes)];
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Words for a place: its sub-commands under all their names, and its options and the global ones. */
function wordsAt(node: CommandNode, root: CommandNode): string[] {
  const options = node === root ? root.options : [...node.options, ...root.options];
  const flags = options.flatMap((option) => option.flags);
  return [...new Set([...node.children.flatMap((child) => child.names), ...flags])];
}

/** `case` arms that follow the words typed so far from place to place. */
function stepArms(nodes: readonly CommandNode[]): string[] {
  return nodes.flatMap((node) =>
    node.children.map((child) => {
      const patterns = child.names.map((name) => quoted([...node.path, name].join(' ')));
      return `      ${patterns.join('|')}) place=${quoted(child.path.join(' '))} ;;`;
    }),
  );
}

function valueFlags(nodes: readonly CommandNode[]): string[] {
  const taking = nodes.flatMap((node) => node.options).filter((option) => option.takesValue);
  return [...new Set(taking.flatMap((option) => option.flags))];
}

function choiceArms(nodes: readonly CommandNode[], offer: (words: string) => string): string[] {
  const arms = new Map<string, string>();
  for (const { flags, choices } of nodes.flatMap((node) => node.options)) {
    if (choices.length === 0) continue;
    arms.set(flags.join('|'), `    ${flags.join('|')}) ${offer(choices.join(' '))}; return ;;`);
  }
  return [...arms.values()];
}

/** bash and zsh differ only in how they hand over words and take candidates. */
interface ShellDialect {
  readonly before: string;
  readonly wordLoop: string;
  readonly readWords: string;
  readonly offer: (words: string) => string;
  readonly offerFiles: string;
  readonly after: string;
}

const BASH: ShellDialect = {
  before: '# bash completion of longhorn',
  readWords: `local cur="\${COMP_WORDS[COMP_CWORD]}" prev="\${COMP_WORDS[COMP_CWORD-1]}"`,
  wordLoop: `for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do`,
  offer: (words) => `COMPREPLY=( $(compgen -W "${words}" -- "$cur") )`,
  offerFiles: `COMPREPLY=( $(compgen -f -- "$cur") )`,
  after: 'complete -o default -F _longhorn longhorn',
};

const ZSH: ShellDialect = {
  before: '#compdef longhorn',
  readWords: `local cur="\${words[CURRENT]}" prev="\${words[CURRENT-1]}"`,
  wordLoop: `for word in "\${(@)words[2,CURRENT-1]}"; do`,
  offer: (words) => `compadd -- ${words}`,
  offerFiles: '_files',
  after: 'compdef _longhorn longhorn',
};

function posixScript(root: CommandNode, dialect: ShellDialect): string {
  const nodes = allNodes(root);
  const flags = valueFlags(nodes).join('|');
  const places = nodes.map(
    (node) =>
      `    ${quoted(node.path.join(' '))}) ${dialect.offer(wordsAt(node, root).join(' '))} ;;`,
  );
  return [
    dialect.before,
    '_longhorn() {',
    `  ${dialect.readWords}`,
    "  local place='' word='' skip=''",
    `  ${dialect.wordLoop}`,
    `    if [[ -n $skip ]]; then skip=''; continue; fi`,
    `    case "$word" in ${flags}) skip=1; continue ;; esac`,
    `    case "\${place:+$place }$word" in`,
    ...stepArms(nodes),
    '    esac',
    '  done',
    '  case "$prev" in',
    ...choiceArms(nodes, dialect.offer),
    `    ${flags}) ${dialect.offerFiles}; return ;;`,
    '  esac',
    '  case "$place" in',
    ...places,
    '  esac',
    '}',
    dialect.after,
  ].join('\n');
}

function fishOption(option: OptionNode): string {
  const parts = option.flags.map((flag) =>
    flag.startsWith('--') ? `-l ${flag.slice(2)}` : `-s ${flag.slice(1)}`,
  );
  if (option.choices.length > 0) parts.push(`-x -a ${quoted(option.choices.join(' '))}`);
  else if (option.takesValue) parts.push('-r');
  return `${parts.join(' ')} -d ${quoted(option.summary)}`;
}

function fishScript(root: CommandNode): string {
  const nodes = allNodes(root);
  const at = (node: CommandNode): string => `-n "__longhorn_at '${node.path.join(' ')}'"`;
  const steps = nodes.flatMap((node) =>
    node.children.map((child) => {
      const patterns = child.names.map((name) => quoted([...node.path, name].join(' ')));
      return `      case ${patterns.join(' ')}\n        set place ${quoted(child.path.join(' '))}`;
    }),
  );
  return [
    '# fish completion of longhorn',
    'function __longhorn_at',
    '  set -l place',
    '  set -l skip',
    '  for word in (commandline -opc)[2..-1]',
    '    if test -n "$skip"; set skip; continue; end',
    `    if contains -- $word ${valueFlags(nodes).join(' ')}; set skip 1; continue; end`,
    '    switch (string join " " $place $word)',
    ...steps,
    '    end',
    '  end',
    '  test "$place" = "$argv[1]"',
    'end',
    'complete -c longhorn -f',
    ...root.options.map((option) => `complete -c longhorn ${fishOption(option)}`),
    ...nodes.flatMap((node) => [
      ...node.children.map((child) => {
        const words = quoted(child.names.join(' '));
        return `complete -c longhorn ${at(node)} -a ${words} -d ${quoted(child.summary)}`;
      }),
      ...(node === root ? [] : node.options).map(
        (option) => `complete -c longhorn ${at(node)} ${fishOption(option)}`,
      ),
    ]),
  ].join('\n');
}

/** Undefined for a shell that is not known. */
export function completionScript(shell: string, program: Command): string | undefined {
  const root = commandNode(program, []);
  if (shell === 'bash') return posixScript(root, BASH);
  if (shell === 'zsh') return posixScript(root, ZSH);
  if (shell === 'fish') return fishScript(root);
  return undefined;
}

export function printCompletion(shell: string, program: Command, command: Command): void {
  const script = completionScript(shell, program);
  if (script === undefined) command.error(`unknown shell ${shell}; known are bash, zsh and fish`);
  print(script);
}

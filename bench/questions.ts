// Questions that one number each answers, beside the throughput tables: how long does a failing
// replica stall a client, how much does a resync move? `npm run bench -- ask [NAME…]` runs them. Each
// measures what it compares with in the same run, and says what the project wants of it.

import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { describeMachine } from './machine.js';

export interface Answer {
  /** What was measured, with its unit: `longest pause, ms`. */
  readonly what: string;
  readonly value: number;
  /** The goal; absent where a figure is for information. */
  readonly goal?: { readonly relation: 'at most' | 'at least'; readonly value: number };
}

export interface QuestionContext {
  /** Empty, on the disk to measure, removed afterwards. */
  readonly directory: string;
  /** Smaller and shorter, to see that it works. */
  readonly quick: boolean;
  readonly progress: (text: string) => void;
  readonly signal: AbortSignal;
}

export interface Question {
  readonly name: string;
  readonly asks: string;
  /** Leaves no process behind, however it ends. */
  readonly answer: (context: QuestionContext) => Promise<readonly Answer[]>;
}

/** Loaded when asked, so that one question's needs do not burden another. */
const QUESTIONS: Readonly<Record<string, () => Promise<Question>>> = {
  membership: async () => (await import('./membership.js')).membership,
  chain: async () => (await import('./snapshot-chain.js')).chain,
  purge: async () => (await import('./purge.js')).purge,
  resync: async () => (await import('./resync.js')).resync,
  rebuild: async () => (await import('./rebuild.js')).rebuild,
  'snapshot-pause': async () => (await import('./snapshot-pause.js')).snapshotPause,
};

export const QUESTION_NAMES: readonly string[] = Object.keys(QUESTIONS);

function isMet({ value, goal }: Answer): boolean {
  if (goal === undefined) return true;
  return goal.relation === 'at most' ? value <= goal.value : value >= goal.value;
}

function lineOf(answer: Answer): string {
  const { what, value, goal } = answer;
  const figure = `${what}: ${Number(value.toPrecision(4))}`;
  if (goal === undefined) return figure;
  return `${figure}  (wanted ${goal.relation} ${goal.value}: ${isMet(answer) ? 'met' : 'NOT MET'})`;
}

/** Asks and prints. @throws for names that are no question. */
export async function askQuestions(
  names: readonly string[],
  parent: string,
  options: Pick<QuestionContext, 'quick' | 'signal'>,
): Promise<void> {
  const unknown = names.find((name) => QUESTIONS[name] === undefined);
  if (unknown !== undefined) {
    throw new Error(`there is no question '${unknown}'; there are: ${QUESTION_NAMES.join(' ')}`);
  }
  const machine = await describeMachine(parent);
  console.log(JSON.stringify({ at: new Date().toISOString(), machine }));
  for (const name of names.length > 0 ? names : QUESTION_NAMES) {
    const question = await (QUESTIONS[name] as () => Promise<Question>)();
    const directory = await mkdtemp(join(parent, `longhorn-bench-${name}-`));
    const progress = (text: string): void => console.error(`bench: ${name}: ${text}`);
    try {
      console.log(`\n${question.name}: ${question.asks}`);
      const answers = await question.answer({ directory, progress, ...options });
      for (const answer of answers) console.log(`  ${lineOf(answer)}`);
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  }
}

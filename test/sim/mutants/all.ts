// Every planted bug, by name.

import { ENGINE_MUTANTS } from './engine-mutants.js';
import type { Mutant } from './mutant.js';
import { REPLICA_MUTANTS } from './replica-mutants.js';

export const MUTANTS: readonly Mutant[] = [...ENGINE_MUTANTS, ...REPLICA_MUTANTS];

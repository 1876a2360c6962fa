// A planted bug: something the simulator must notice. It is put into the real classes from outside
// and taken out again; the program knows nothing of it.

export interface Mutant {
  readonly name: string;
  /** What a programmer could have got wrong. */
  readonly mistake: string;
  /** Puts the bug in; the result takes it out. */
  plant(): () => void;
}

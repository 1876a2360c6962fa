// tap reporter for people and CI: one line a test file, every failure in full, and a closing line
// `N passed, N failed` with `, N skipped` when there are any. It must never turn a failed run green:
// what fails without a failed assertion (a crash, a time-out, a bad plan) is counted as a failure.

import { Transform } from 'node:stream';
import { Parser } from 'tap-parser';
import { closingLine } from './closing-line.mjs';

/** Everything tap knows about one failure, as indented lines. */
function describe(failure) {
  const lines = [`FAILED ${failure.fullname || failure.name} > ${failure.name}`];
  const { diff, stack, at, source, ...rest } = failure.diag ?? {};
  if (at?.fileName !== undefined) lines.push(`at ${at.fileName}:${at.lineNumber}`);
  for (const [name, text] of Object.entries({ source, diff, stack })) {
    if (text) lines.push(`${name}:`, String(text).trimEnd());
  }
  if (Object.keys(rest).length > 0) lines.push(JSON.stringify(rest, null, 2));
  return `${lines.join('\n').replaceAll('\n', '\n    ')}\n`;
}

export default class CiReporter extends Transform {
  #parser = new Parser();
  #complete = new Promise((resolve) => this.#parser.on('complete', resolve));
  #failures = [];
  #skips = [];
  #failedBefore = 0;
  #counts = { passed: 0, failed: 0, skipped: 0 };

  constructor() {
    super();
    // 'result' reports leaves: assertions, and test points that have no assertions of their own.
    this.#parser.on('result', (result) => this.#count(result));
    // Test points of the outermost level are the files; tap judges their exit status too.
    this.#parser.on('assert', (file) => this.#fileDone(file));
  }

  #count(result) {
    if (result.skip || result.todo) {
      this.#counts.skipped++;
      this.#skips.push(result);
    } else if (result.ok) {
      this.#counts.passed++;
    } else {
      this.#counts.failed++;
      this.#failures.push(result);
    }
  }

  #fileDone(file) {
    const failed = this.#counts.failed - this.#failedBefore;
    this.#failedBefore = this.#counts.failed;
    const verdict = file.ok ? (file.skip ? 'skip  ' : 'ok    ') : 'not ok';
    const time = file.time ? ` ${(file.time / 1000).toFixed(1)} s` : '';
    this.push(`${verdict} ${file.name}${time}${failed > 0 ? ` (${failed} failed)` : ''}\n`);
  }

  _transform(chunk, _encoding, callback) {
    this.#parser.write(chunk);
    callback();
  }

  _flush(callback) {
    this.#parser.end();
    this.#complete.then((run) => {
      for (const skip of this.#skips) {
        const reason = typeof skip.skip === 'string' ? skip.skip : skip.todo || 'skipped';
        this.push(`skipped: ${skip.fullname || skip.name}: ${reason}\n`);
      }
      for (const failure of this.#failures) this.push(`\n${describe(failure)}`);
      if (run.bailout) this.push(`\nFAILED the run bailed out: ${run.bailout}\n`);
      if (!run.ok && this.#counts.failed === 0) {
        this.#counts.failed = Math.max(1, run.fail ?? 0);
        this.push(`\nFAILED ${JSON.stringify(run.failures ?? [], null, 2)}\n`);
      }
      this.push(`\n${closingLine(this.#counts)}\n`);
      callback();
    }, callback);
  }
}

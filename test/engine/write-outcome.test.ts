// Scenario numbers refer to the engine's upstream unit scenarios 28 to 34 (control_test).
import t from 'tap';
import { StorageError } from '../../src/core/errors.js';
import { decideWriteOutcome, type WriteResult } from '../../src/engine/write-outcome.js';

const full = new StorageError('NO_SPACE', 'no space left on device');
const broken = new StorageError('CONNECTION_LOST', 'EOF');

function results(...rows: [WriteResult['mode'], StorageError | null, number?][]): WriteResult[] {
  return rows.map(([mode, error, writtenBytes = 0]) => ({ mode, error, writtenBytes }));
}

t.test('#28 a write that every replica took succeeds and fails nobody', (t) => {
  t.same(decideWriteOutcome(results(['RW', null], ['RW', null], ['WO', null])), {
    failed: [],
    answer: 'success',
  });
  t.end();
});

t.test('#29 the only readable replica stays when it is full', (t) => {
  t.same(decideWriteOutcome(results(['RW', full])), { failed: [], answer: 'noSpace' });
  t.end();
});

t.test('#30 with the readable replica full, the write-only one leaves', (t) => {
  const outcome = decideWriteOutcome(results(['RW', full], ['WO', full]));
  t.same(outcome, { failed: [1], answer: 'noSpace' });
  t.end();
});

t.test('a write-only replica that took what the readable one could not leaves', (t) => {
  const outcome = decideWriteOutcome(results(['RW', full], ['WO', null]));
  t.same(outcome, { failed: [1], answer: 'noSpace' });
  t.end();
});

t.test('#31 only the write-only replica full', (t) => {
  const outcome = decideWriteOutcome(results(['RW', null], ['WO', full]));
  t.same(outcome, { failed: [1], answer: 'success' });
  t.end();
});

t.test('#32 of four full replicas that wrote 1, 1, 2, 3 bytes the two with 1 stay', (t) => {
  const outcome = decideWriteOutcome(
    results(['RW', full, 1], ['RW', full, 1], ['RW', full, 2], ['RW', full, 3]),
  );
  t.same(outcome, { failed: [2, 3], answer: 'noSpace' });
  t.end();
});

t.test('#33 of 2, 2, 1, 1 those with 2 stay', (t) => {
  const outcome = decideWriteOutcome(
    results(['RW', full, 2], ['RW', full, 2], ['RW', full, 1], ['RW', full, 1]),
  );
  t.same(outcome, { failed: [2, 3], answer: 'noSpace' });
  t.end();
});

t.test('#34 some full, others not: the full ones leave', (t) => {
  const outcome = decideWriteOutcome(results(['RW', full], ['RW', null], ['RW', full]));
  t.same(outcome, { failed: [0, 2], answer: 'success' });
  t.end();
});

t.test('a lost replica leaves, the write succeeds on the rest', (t) => {
  const outcome = decideWriteOutcome(results(['RW', null], ['RW', broken]));
  t.same(outcome, { failed: [1], answer: 'success' });
  t.end();
});

t.test('no readable replica left: the client hears of it', (t) => {
  const outcome = decideWriteOutcome(results(['RW', broken], ['WO', null]));
  t.same(outcome, { failed: [0], answer: 'error' });
  t.end();
});

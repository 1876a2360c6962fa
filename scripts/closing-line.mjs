// The last line of every test command. Apart from the reporter, because the test command needs it
// before npm packages are there.

const CLOSING_LINE = /^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$/;

/** `N passed, N failed[, N skipped]`. */
export function closingLine({ passed, failed, skipped }) {
  return `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`;
}

/** The counts of a closing line, or null for any other line. */
export function parseClosingLine(line) {
  const match = CLOSING_LINE.exec(line);
  if (match === null) return null;
  return { passed: Number(match[1]), failed: Number(match[2]), skipped: Number(match[3] ?? 0) };
}

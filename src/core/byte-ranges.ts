// Arithmetic on lists of byte ranges. A normal list is ascending, without overlaps or empty ranges,
// and adjacent ranges are merged.

export interface ByteRange {
  readonly beginOffset: number;
  readonly endOffset: number;
}

/** The normal list of any ranges. */
export function mergeRanges(ranges: readonly ByteRange[]): ByteRange[] {
  const sorted = [...ranges].sort((a, b) => a.beginOffset - b.beginOffset);
  const merged: { beginOffset: number; endOffset: number }[] = [];
  for (const { beginOffset, endOffset } of sorted) {
    if (beginOffset >= endOffset) continue;
    const last = merged.at(-1);
    if (last === undefined || beginOffset > last.endOffset) merged.push({ beginOffset, endOffset });
    else last.endOffset = Math.max(last.endOffset, endOffset);
  }
  return merged;
}

/** What a normal list leaves of [beginOffset, endOffset). */
export function gapsBetween(
  ranges: readonly ByteRange[],
  beginOffset: number,
  endOffset: number,
): ByteRange[] {
  const gaps: ByteRange[] = [];
  let position = beginOffset;
  for (const range of ranges) {
    const gapEnd = Math.min(range.beginOffset, endOffset);
    if (position < gapEnd) gaps.push({ beginOffset: position, endOffset: gapEnd });
    position = Math.max(position, range.endOffset);
  }
  if (position < endOffset) gaps.push({ beginOffset: position, endOffset });
  return gaps;
}

/** What of the first normal list is in no range of the second. */
export function subtractRanges(
  from: readonly ByteRange[],
  removed: readonly ByteRange[],
): ByteRange[] {
  return from.flatMap((range) => gapsBetween(removed, range.beginOffset, range.endOffset));
}

/** What two normal lists share. */
export function intersectRanges(
  first: readonly ByteRange[],
  second: readonly ByteRange[],
): ByteRange[] {
  const shared: ByteRange[] = [];
  for (let i = 0, j = 0; i < first.length && j < second.length; ) {
    const one = first[i] as ByteRange;
    const other = second[j] as ByteRange;
    const beginOffset = Math.max(one.beginOffset, other.beginOffset);
    const endOffset = Math.min(one.endOffset, other.endOffset);
    if (beginOffset < endOffset) shared.push({ beginOffset, endOffset });
    if (one.endOffset < other.endOffset) i++;
    else j++;
  }
  return shared;
}

export function totalBytes(ranges: readonly ByteRange[]): number {
  return ranges.reduce((sum, range) => sum + range.endOffset - range.beginOffset, 0);
}

/** Both normal lists as one. */
export function uniteRanges(
  first: readonly ByteRange[],
  second: readonly ByteRange[],
): readonly ByteRange[] {
  if (first.length === 0) return second;
  return second.length === 0 ? first : mergeRanges([...first, ...second]);
}

/** A normal list of at most `countMax` ranges that covers the given one, and as little more as steps of two allow. */
export function coarsenRanges(
  ranges: readonly ByteRange[],
  countMax: number,
): readonly ByteRange[] {
  let coarse = ranges;
  for (let stepBytes = 8192; coarse.length > countMax; stepBytes *= 2) {
    const step = stepBytes;
    coarse = mergeRanges(
      ranges.map(({ beginOffset, endOffset }) => ({
        beginOffset: Math.floor(beginOffset / step) * step,
        endOffset: Math.ceil(endOffset / step) * step,
      })),
    );
  }
  return coarse;
}

// The layout of a sparse file as the intervals a transfer sends, in order: holes whole, data in
// pieces. Any extent is data, written or not: in an image chain it masks the layers below.

import { SECTOR_BYTES, alignUp } from '../core/units.js';
import type { DiskFile } from '../disk/disk.js';
import { LAYOUT_EXTENTS_MAX, PIECE_BYTES_MAX } from './constants.js';
import type { Interval } from './query.js';

export interface LayoutPiece extends Interval {
  readonly isHole: boolean;
}

/** Layout of some ranges of a file only: ascending, disjoint, on sector bounds, inside it. */
export async function* rangePieces(
  file: DiskFile,
  ranges: readonly Interval[],
): AsyncGenerator<LayoutPiece> {
  for (const { beginOffset, endOffset } of ranges) yield* piecesOf(file, beginOffset, endOffset);
}

/** The last piece of a file that ends inside a sector ends at that sector's end, like an extent. */
export function filePieces(file: DiskFile, sizeBytes: number): AsyncGenerator<LayoutPiece> {
  return piecesOf(file, 0, alignUp(sizeBytes, SECTOR_BYTES));
}

async function* piecesOf(
  file: DiskFile,
  beginOffset: number,
  endOffset: number,
): AsyncGenerator<LayoutPiece> {
  let position = beginOffset;
  while (position < endOffset) {
    const extents = await file.extents(position, endOffset, LAYOUT_EXTENTS_MAX);
    for (const extent of extents) {
      if (extent.beginOffset > position) {
        yield { beginOffset: position, endOffset: extent.beginOffset, isHole: true };
      }
      const extentEnd = Math.min(alignUp(extent.endOffset, SECTOR_BYTES), endOffset);
      for (let begin = extent.beginOffset; begin < extentEnd; begin += PIECE_BYTES_MAX) {
        const end = Math.min(begin + PIECE_BYTES_MAX, extentEnd);
        yield { beginOffset: begin, endOffset: end, isHole: false };
      }
      position = extentEnd;
    }
    if (extents.length < LAYOUT_EXTENTS_MAX && position < endOffset) {
      yield { beginOffset: position, endOffset, isHole: true };
      position = endOffset;
    }
  }
}

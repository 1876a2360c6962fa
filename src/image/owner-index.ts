// Says for every 4 KiB sector which layer owns it: one byte a sector, kept in pages of 64K sectors
// (256 MiB of volume). A page is filled from the layers' extents when it is first needed, so that
// opening costs nothing, a process that opened the chain early (live upgrade) sees the files as
// they are at its first I/O, and a page without any data takes no memory.

import { assert } from '../core/assert.js';
import { SECTOR_BYTES } from '../core/units.js';

/** No layer has data: the sector reads zero. */
export const OWNER_NONE = 0;
/** Layer ids are 1 … OWNER_MAX. */
export const OWNER_MAX = 255;

const PAGE_SECTORS = 65536;

/** Tells which layer has extents where, oldest layer first. */
export interface ExtentSource {
  scan(
    beginOffset: number,
    endOffset: number,
    found: (owner: number, beginOffset: number, endOffset: number) => void,
  ): Promise<void>;
}

/** A page: undefined is not known yet, null has no data at all. */
type Page = Uint8Array | null | undefined;

export class OwnerIndex {
  private pages: Page[];
  private readonly loading = new Map<number, Promise<void>>();
  private readonly source: ExtentSource;
  private sectorCount: number;

  constructor(sizeBytes: number, source: ExtentSource) {
    this.source = source;
    this.sectorCount = sizeBytes / SECTOR_BYTES;
    this.pages = new Array<Page>(Math.ceil(this.sectorCount / PAGE_SECTORS)).fill(undefined);
  }

  /** True when every sector of the range may be asked for. */
  isLoaded(beginSector: number, endSector: number): boolean {
    const lastPage = Math.floor((endSector - 1) / PAGE_SECTORS);
    for (let page = Math.floor(beginSector / PAGE_SECTORS); page <= lastPage; page++) {
      if (this.pages[page] === undefined) return false;
    }
    return true;
  }

  /** Fills the pages of the range. The caller holds the range, so its layers stay as they are. */
  async load(beginSector: number, endSector: number): Promise<void> {
    const lastPage = Math.floor((endSector - 1) / PAGE_SECTORS);
    for (let page = Math.floor(beginSector / PAGE_SECTORS); page <= lastPage; page++) {
      if (this.pages[page] === undefined) await this.loadPage(page);
    }
  }

  /** The first range of sectors from `sector` on that is not loaded, one page at most; or null. */
  firstUnloaded(sector: number): { beginSector: number; endSector: number } | null {
    const from = Math.floor(sector / PAGE_SECTORS);
    const index = this.pages.findIndex((page, i) => i >= from && page === undefined);
    if (index < 0) return null;
    const beginSector = index * PAGE_SECTORS;
    return { beginSector, endSector: Math.min(this.sectorCount, beginSector + PAGE_SECTORS) };
  }

  /** Owner of a loaded sector. */
  ownerAt(sector: number): number {
    const page = this.pages[Math.floor(sector / PAGE_SECTORS)];
    assert(page !== undefined, 'a sector is loaded before it is used');
    return page === null ? OWNER_NONE : (page[sector % PAGE_SECTORS] as number);
  }

  /** First sector after `sector`, at most endSector, that has another owner. */
  runEnd(sector: number, endSector: number): number {
    const owner = this.ownerAt(sector);
    let next = sector + 1;
    while (next < endSector) {
      const page = this.pages[Math.floor(next / PAGE_SECTORS)];
      const pageEnd = Math.min(endSector, (Math.floor(next / PAGE_SECTORS) + 1) * PAGE_SECTORS);
      if (page === null || page === undefined) {
        if (owner !== OWNER_NONE) return next;
        next = pageEnd;
        continue;
      }
      for (; next < pageEnd; next++) {
        if (page[next % PAGE_SECTORS] !== owner) return next;
      }
    }
    return endSector;
  }

  /** Notes a new owner of loaded sectors. */
  fill(beginSector: number, endSector: number, owner: number): void {
    for (let sector = beginSector; sector < endSector; ) {
      const index = Math.floor(sector / PAGE_SECTORS);
      const end = Math.min(endSector, (index + 1) * PAGE_SECTORS);
      const page = this.pages[index];
      assert(page !== undefined, 'a sector is loaded before it changes');
      if (page !== null) {
        page.fill(owner, sector % PAGE_SECTORS, (sector % PAGE_SECTORS) + (end - sector));
      } else if (owner !== OWNER_NONE) {
        this.allocate(index).fill(
          owner,
          sector % PAGE_SECTORS,
          (sector % PAGE_SECTORS) + (end - sector),
        );
      }
      sector = end;
    }
  }

  /** The volume has grown; new sectors have no owner until they are loaded. */
  resize(sizeBytes: number): void {
    assert(this.loading.size === 0, 'the volume grows while no request runs');
    const lastPage = this.pages.length - 1;
    const wasPartial = this.sectorCount % PAGE_SECTORS !== 0;
    this.sectorCount = sizeBytes / SECTOR_BYTES;
    while (this.pages.length < Math.ceil(this.sectorCount / PAGE_SECTORS))
      this.pages.push(undefined);
    // The old last page may have been cut to the old size.
    if (wasPartial) this.pages[lastPage] = undefined;
  }

  /** Forgets everything; pages are filled again when needed. */
  reset(): void {
    assert(this.loading.size === 0, 'the index is reset while no request runs');
    this.pages.fill(undefined);
  }

  /** Renames owners: `renamed[old]` is the new id. */
  rename(renamed: Uint8Array): void {
    for (const page of this.pages) {
      if (page === undefined || page === null) continue;
      for (let i = 0; i < page.length; i++) page[i] = renamed[page[i] as number] as number;
    }
  }

  /** Bytes of memory in pages, for metrics. */
  get memoryBytes(): number {
    let bytes = 0;
    for (const page of this.pages) bytes += page?.length ?? 0;
    return bytes;
  }

  private allocate(index: number): Uint8Array {
    const page = new Uint8Array(Math.min(PAGE_SECTORS, this.sectorCount - index * PAGE_SECTORS));
    this.pages[index] = page;
    return page;
  }

  private loadPage(index: number): Promise<void> {
    const running = this.loading.get(index);
    if (running !== undefined) return running;
    const load = this.scanPage(index).finally(() => this.loading.delete(index));
    this.loading.set(index, load);
    return load;
  }

  private async scanPage(index: number): Promise<void> {
    const firstSector = index * PAGE_SECTORS;
    const endSector = Math.min(this.sectorCount, firstSector + PAGE_SECTORS);
    let page: Uint8Array | null = null;
    const note = (owner: number, beginOffset: number, endOffset: number): void => {
      page ??= new Uint8Array(endSector - firstSector);
      const begin = Math.floor(beginOffset / SECTOR_BYTES) - firstSector;
      page.fill(owner, begin, Math.ceil(endOffset / SECTOR_BYTES) - firstSector);
    };
    await this.source.scan(firstSector * SECTOR_BYTES, endSector * SECTOR_BYTES, note);
    this.pages[index] = page;
  }
}

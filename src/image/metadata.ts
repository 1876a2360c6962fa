// The two JSON records of a replica directory, byte for byte as Go's encoding/json writes them and
// as tolerant as it reads them: only the first value counts, keys match in any case, unknown keys
// are ignored, missing ones are zero. Pure: no files here (facts: on-disk §2).

import { StorageError } from '../core/errors.js';

/** volume.meta. Longhorn's Error field is neither kept nor believed: it would outlive its cause. */
export interface VolumeMeta {
  readonly sizeBytes: number;
  readonly head: string;
  readonly dirty: boolean;
  readonly rebuilding: boolean;
  /** Disk name of the head's parent, '' if none. */
  readonly parent: string;
  readonly sectorBytes: number;
  readonly backingFilePath: string;
  readonly encrypted: boolean;
}

/** `<disk>.meta`. The stored Name may be an older one: the file's name is the truth. */
export interface DiskRecord {
  readonly name: string;
  readonly parent: string;
  readonly removed: boolean;
  readonly userCreated: boolean;
  /** RFC 3339 text. */
  readonly created: string;
  readonly labels: Readonly<Record<string, string>> | null;
}

/** Longhorn's ReplicaSectorSize, the value of SectorSize. */
export const META_SECTOR_BYTES = 512;

const GO_ESCAPES: Record<string, string> = {
  '<': '\\u003c',
  '>': '\\u003e',
  '&': '\\u0026',
  '\u2028': '\\u2028',
  '\u2029': '\\u2029',
};

/** One line of JSON with Go's HTML escapes and its final newline. */
export function encodeGoJson(value: object): string {
  const text = JSON.stringify(value).replace(/[<>&\u2028\u2029]/g, (c) => GO_ESCAPES[c] as string);
  return `${text}\n`;
}

export function encodeVolumeMeta(meta: VolumeMeta): string {
  return encodeGoJson({
    Size: meta.sizeBytes,
    Head: meta.head,
    Dirty: meta.dirty,
    Rebuilding: meta.rebuilding,
    Error: '',
    Parent: meta.parent,
    SectorSize: meta.sectorBytes,
    BackingFilePath: meta.backingFilePath,
    Encrypted: meta.encrypted,
  });
}

export function encodeDiskRecord(record: DiskRecord): string {
  return encodeGoJson({
    Name: record.name,
    Parent: record.parent,
    Removed: record.removed,
    UserCreated: record.userCreated,
    Created: record.created,
    Labels: record.labels === null ? null : sortedByKey(record.labels),
  });
}

/** Go writes map keys in byte order. */
function sortedByKey(labels: Readonly<Record<string, string>>): Record<string, string> {
  const keys = Object.keys(labels).sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  return Object.fromEntries(keys.map((key) => [key, labels[key] as string]));
}

/** @throws BAD_METADATA naming the file. */
export function decodeVolumeMeta(text: string, fileName: string): VolumeMeta {
  const fields = new Fields(text, fileName);
  return {
    sizeBytes: fields.integer('size'),
    head: fields.text('head'),
    dirty: fields.flag('dirty'),
    rebuilding: fields.flag('rebuilding'),
    parent: fields.text('parent'),
    sectorBytes: fields.integer('sectorsize'),
    backingFilePath: fields.text('backingfilepath'),
    encrypted: fields.flag('encrypted'),
  };
}

/** @throws BAD_METADATA naming the file. */
export function decodeDiskRecord(text: string, fileName: string, diskName: string): DiskRecord {
  const fields = new Fields(text, fileName);
  fields.text('name');
  return {
    name: diskName,
    parent: fields.text('parent'),
    removed: fields.flag('removed'),
    userCreated: fields.flag('usercreated'),
    created: fields.text('created'),
    labels: fields.labels('labels'),
  };
}

/** The members of the first JSON value of a text, by lower-case key. */
class Fields {
  private readonly values = new Map<string, unknown>();
  private readonly fileName: string;

  constructor(text: string, fileName: string) {
    this.fileName = fileName;
    let value: unknown;
    try {
      value = JSON.parse(firstJsonValue(text));
    } catch (error) {
      throw this.bad(error instanceof Error ? error.message : String(error), error);
    }
    if (value === null) return;
    if (typeof value !== 'object' || Array.isArray(value)) throw this.bad('is not a JSON object');
    for (const [key, member] of Object.entries(value)) {
      if (member !== null) this.values.set(key.toLowerCase(), member);
    }
  }

  text(key: string): string {
    const value = this.values.get(key) ?? '';
    if (typeof value !== 'string') throw this.bad(`has a ${key} that is no string`);
    return value;
  }

  flag(key: string): boolean {
    const value = this.values.get(key) ?? false;
    if (typeof value !== 'boolean') throw this.bad(`has a ${key} that is neither true nor false`);
    return value;
  }

  integer(key: string): number {
    const value = this.values.get(key) ?? 0;
    if (!Number.isSafeInteger(value)) throw this.bad(`has a ${key} that is no whole number`);
    return value as number;
  }

  labels(key: string): Readonly<Record<string, string>> | null {
    const value = this.values.get(key);
    if (value === undefined) return null;
    if (typeof value !== 'object' || Array.isArray(value))
      throw this.bad(`has ${key} that are no map`);
    const labels: [string, string][] = [];
    for (const [name, text] of Object.entries(value as object)) {
      if (typeof text !== 'string') throw this.bad(`has a label ${name} that is no string`);
      labels.push([name, text]);
    }
    return Object.fromEntries(labels);
  }

  private bad(what: string, cause?: unknown): StorageError {
    const { fileName } = this;
    return new StorageError('BAD_METADATA', `${fileName} ${what}`, { fileName }, cause);
  }
}

/** The text up to the end of its first object; Go's decoder stops there too. */
function firstJsonValue(text: string): string {
  const begin = text.search(/\S/);
  if (begin < 0 || text[begin] !== '{') return text;
  let depth = 0;
  let isInString = false;
  for (let i = begin; i < text.length; i++) {
    const char = text[i];
    if (isInString) {
      if (char === '\\') i++;
      else if (char === '"') isInString = false;
    } else if (char === '"') isInString = true;
    else if (char === '{') depth++;
    else if (char === '}' && --depth === 0) return text.slice(begin, i + 1);
  }
  return text;
}

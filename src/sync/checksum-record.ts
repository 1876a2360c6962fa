// The `<disk>.checksum` record: which content hash a frozen layer has and for which change time it
// is valid. A record whose change time is not the file's present one says nothing and must never
// be trusted. Source: on-disk §2.3; the key order is Go's struct order.

import { StorageError } from '../core/errors.js';

export const CHECKSUM_SUFFIX = '.checksum';
/** Two dots: Go builds the name as "%s.%s" with the suffix ".tmp". */
export const CHECKSUM_TEMPORARY_SUFFIX = '.checksum..tmp';
export const CHECKSUM_METHOD = 'crc64';
/** Largest record that is read; real ones are below 200 bytes. */
export const CHECKSUM_RECORD_BYTES_MAX = 4096;

export interface ChecksumRecord {
  readonly method: string;
  /** 16 lower-case hex digits for crc64; empty when unknown. */
  readonly checksum: string;
  /** Go's time.Time.String() of the file's ctime. */
  readonly changeTime: string;
  /** RFC 3339, or empty when the record came with a transfer. */
  readonly lastHashedAt: string;
  readonly isSilentlyCorrupted: boolean;
}

/** One line of JSON with its newline. */
export function encodeChecksumRecord(record: ChecksumRecord): string {
  const json = JSON.stringify({
    method: record.method,
    checksum: record.checksum,
    change_time: record.changeTime,
    last_hashed_at: record.lastHashedAt,
    silently_corrupted: record.isSilentlyCorrupted,
  });
  return `${json}\n`;
}

function textField(fields: Record<string, unknown>, key: string): string {
  const value = fields[key];
  if (value === undefined || value === null) return '';
  if (typeof value !== 'string') {
    throw new StorageError('BAD_METADATA', `checksum record: ${key} is no text`);
  }
  return value;
}

/** @throws BAD_METADATA. */
export function decodeChecksumRecord(text: string): ChecksumRecord {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new StorageError('BAD_METADATA', 'checksum record is no JSON', {}, error);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new StorageError('BAD_METADATA', 'checksum record is no JSON object');
  }
  const fields = value as Record<string, unknown>;
  return {
    method: textField(fields, 'method'),
    checksum: textField(fields, 'checksum'),
    changeTime: textField(fields, 'change_time'),
    lastHashedAt: textField(fields, 'last_hashed_at'),
    isSilentlyCorrupted: fields['silently_corrupted'] === true,
  };
}

const NS_PER_SECOND = 1_000_000_000n;

/**
 * A change time as Go prints it in a process whose zone is UTC, which Longhorn's containers are:
 * `2026-08-21 10:11:12.123456789 +0000 UTC`, trailing zeros of the fraction trimmed, no fraction
 * when it is zero. @param changedNs nanoseconds since 1970, not negative.
 */
export function formatChangeTime(changedNs: bigint): string {
  const seconds = changedNs / NS_PER_SECOND;
  const fraction = (changedNs % NS_PER_SECOND).toString().padStart(9, '0').replace(/0+$/, '');
  const iso = isoSeconds(Number(seconds));
  return `${iso.slice(0, 10)} ${iso.slice(11, 19)}${fraction === '' ? '' : `.${fraction}`} +0000 UTC`;
}

const CHANGE_TIME =
  /^(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))? ([+-])(\d\d)(\d\d)(?: \S+)?$/;

/**
 * Nanoseconds since 1970 of a Go time text in any zone, or null. Comparing instants accepts what
 * a peer in another zone recorded; Go itself compares the texts and would hash again.
 */
export function parseChangeTime(text: string): bigint | null {
  const match = CHANGE_TIME.exec(text);
  if (match === null) return null;
  const at = (index: number): number => Number(match[index] ?? 0);
  const offsetSeconds = (at(9) * 3600 + at(10) * 60) * (match[8] === '-' ? -1 : 1);
  const days = daysSinceEpoch(at(1), at(2), at(3));
  const seconds = days * 86_400 + at(4) * 3600 + at(5) * 60 + at(6) - offsetSeconds;
  return BigInt(seconds) * NS_PER_SECOND + BigInt((match[7] ?? '').padEnd(9, '0'));
}

/** True when the record was made for the file as it is now. */
export function isRecordCurrent(record: ChecksumRecord, changedNs: bigint): boolean {
  return record.checksum !== '' && parseChangeTime(record.changeTime) === changedNs;
}

/** Days since 1970-01-01 of a proleptic Gregorian date (month 1 to 12). */
function daysSinceEpoch(year: number, month: number, day: number): number {
  const y = month <= 2 ? year - 1 : year;
  const era = Math.floor(y / 400);
  const yearOfEra = y - era * 400;
  const dayOfYear = Math.floor((153 * (month + (month > 2 ? -3 : 9)) + 2) / 5) + day - 1;
  const dayOfEra =
    yearOfEra * 365 + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100) + dayOfYear;
  return era * 146_097 + dayOfEra - 719_468;
}

/** `YYYY-MM-DDTHH:MM:SS` in UTC, by arithmetic: the system clock has no part in it. */
function isoSeconds(secondsSinceEpoch: number): string {
  const days = Math.floor(secondsSinceEpoch / 86_400);
  const secondOfDay = secondsSinceEpoch - days * 86_400;
  const shifted = days + 719_468;
  const era = Math.floor(shifted / 146_097);
  const dayOfEra = shifted - era * 146_097;
  const yearOfEra = Math.floor(
    (dayOfEra -
      Math.floor(dayOfEra / 1460) +
      Math.floor(dayOfEra / 36_524) -
      Math.floor(dayOfEra / 146_096)) /
      365,
  );
  const dayOfYear =
    dayOfEra - (365 * yearOfEra + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100));
  const shiftedMonth = Math.floor((5 * dayOfYear + 2) / 153);
  const day = dayOfYear - Math.floor((153 * shiftedMonth + 2) / 5) + 1;
  const month = shiftedMonth < 10 ? shiftedMonth + 3 : shiftedMonth - 9;
  const year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0);
  const two = (value: number): string => String(value).padStart(2, '0');
  const time = [secondOfDay / 3600, (secondOfDay / 60) % 60, secondOfDay % 60]
    .map((value) => two(Math.floor(value)))
    .join(':');
  return `${String(year).padStart(4, '0')}-${two(month)}-${two(day)}T${time}`;
}

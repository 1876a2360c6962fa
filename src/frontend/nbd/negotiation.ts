// The handshake of NBD's fixed newstyle as a pure step function: the bytes at hand go in, the
// reply and what to do next come out. It never sees a socket, so both plain connections and TLS
// upgrades drive the same code. Source: proto.md, "Handshake" and "Option types".

import { StorageError } from '../../core/errors.js';
import { NBD_OPTION_BYTES_MAX, NBD_OPTIONS_MAX, NBD_PAYLOAD_BYTES_MAX } from '../../core/limits.js';
import {
  NBD_ALLOCATION_CONTEXT,
  NBD_ALLOCATION_CONTEXT_ID,
  NBD_BASE_NAMESPACE,
  NBD_BLOCK_BYTES_MIN,
  NBD_BLOCK_BYTES_PREFERRED,
  NBD_CLIENT_FLAG,
  NBD_CLIENT_FLAGS_BYTES,
  NBD_HANDSHAKE_FLAG,
  NBD_INFO,
  NBD_OPTION,
  NBD_OPTION_HEADER_BYTES,
  NBD_OPTION_REPLY,
} from '../../wire/nbd/constants.js';
import {
  decodeInfoRequest,
  decodeMetaContextRequest,
  decodeOptionHeader,
  decodeString,
  type NbdInfoRequest,
} from '../../wire/nbd/decoder.js';
import {
  encodeExportNameReply,
  encodeGreeting,
  encodeInfoBlockSize,
  encodeInfoExport,
  encodeInfoText,
  encodeMetaContextReply,
  encodeOptionError,
  encodeOptionReply,
  encodeServerReply,
  joinBytes,
} from '../../wire/nbd/encoder.js';
import { findExport, transmissionFlagsOf, type NamedExport, type NbdExports } from './export.js';

/** off: refused; allow: the client chooses; require: nothing works before it ("FORCEDTLS"). */
export type TlsMode = 'off' | 'allow' | 'require';

export interface NegotiationRules {
  readonly exports: NbdExports;
  readonly tlsMode: TlsMode;
}

export interface NegotiationState {
  readonly phase: 'clientFlags' | 'options';
  /** The client knows fixed newstyle; otherwise EXPORT_NAME is its only option. */
  readonly isFixed: boolean;
  readonly wantsPadding: boolean;
  /** TLS is on. */
  readonly isSecure: boolean;
  readonly structuredReplies: boolean;
  /** Name of the export whose base:allocation the client selected last, or null. */
  readonly contextExport: string | null;
  readonly optionCount: number;
}

/** What was agreed on, for the transmission phase. */
export interface Agreement {
  readonly exported: NamedExport;
  readonly structuredReplies: boolean;
  /** BLOCK_STATUS reports base:allocation. */
  readonly blockStatus: boolean;
}

export type NegotiationOutcome =
  | { readonly kind: 'needBytes' }
  | { readonly kind: 'continue' }
  | { readonly kind: 'transmission'; readonly agreement: Agreement }
  /** Send the reply in the clear, then shake hands over TLS; no other byte may be used before. */
  | { readonly kind: 'startTls' }
  /** Send the reply, then close: the client asked for it. */
  | { readonly kind: 'end' }
  /** Close at once: the client broke a rule that has no error reply. */
  | { readonly kind: 'disconnect'; readonly error: StorageError };

export interface NegotiationStep {
  readonly state: NegotiationState;
  readonly consumedBytes: number;
  readonly reply: Uint8Array;
  readonly outcome: NegotiationOutcome;
}

const NO_REPLY = new Uint8Array(0);
const NEED_BYTES: NegotiationOutcome = { kind: 'needBytes' };
const CONTINUE: NegotiationOutcome = { kind: 'continue' };

export const NEGOTIATION_START: NegotiationState = {
  phase: 'clientFlags',
  isFixed: false,
  wantsPadding: true,
  isSecure: false,
  structuredReplies: false,
  contextExport: null,
  optionCount: 0,
};

/** What the server says first. */
export function negotiationGreeting(): Uint8Array {
  return encodeGreeting(NBD_HANDSHAKE_FLAG.fixedNewstyle | NBD_HANDSHAKE_FLAG.noZeroes);
}

/**
 * Takes one message of the client. Call again with the rest while the outcome is 'continue'.
 * @param bytes everything received and not yet consumed.
 */
export function stepNegotiation(
  state: NegotiationState,
  bytes: Uint8Array,
  rules: NegotiationRules,
): NegotiationStep {
  return state.phase === 'clientFlags'
    ? takeClientFlags(state, bytes)
    : takeOption(state, bytes, rules);
}

function takeClientFlags(state: NegotiationState, bytes: Uint8Array): NegotiationStep {
  if (bytes.byteLength < NBD_CLIENT_FLAGS_BYTES) return waitForBytes(state);
  const flags = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0);
  const known = NBD_CLIENT_FLAG.fixedNewstyle | NBD_CLIENT_FLAG.noZeroes;
  // Section "Client flags": the server MUST drop the connection on an unknown flag.
  if ((flags & ~known) !== 0) return disconnect(state, 'unknown client flags', { flags });
  return {
    state: {
      ...state,
      phase: 'options',
      isFixed: (flags & NBD_CLIENT_FLAG.fixedNewstyle) !== 0,
      wantsPadding: (flags & NBD_CLIENT_FLAG.noZeroes) === 0,
    },
    consumedBytes: NBD_CLIENT_FLAGS_BYTES,
    reply: NO_REPLY,
    outcome: CONTINUE,
  };
}

function takeOption(
  before: NegotiationState,
  bytes: Uint8Array,
  rules: NegotiationRules,
): NegotiationStep {
  if (bytes.byteLength < NBD_OPTION_HEADER_BYTES) return waitForBytes(before);
  const { hasMagic, option, dataBytes } = decodeOptionHeader(bytes);
  if (!hasMagic) return disconnect(before, 'an option without its magic', { option });
  if (dataBytes > NBD_OPTION_BYTES_MAX) {
    return disconnect(before, 'an option is too long', { option, dataBytes });
  }
  if (before.optionCount >= NBD_OPTIONS_MAX) return disconnect(before, 'too many options', {});
  if (!before.isFixed && option !== NBD_OPTION.exportName) {
    return disconnect(before, 'an option that needs fixed newstyle', { option });
  }
  const consumedBytes = NBD_OPTION_HEADER_BYTES + dataBytes;
  if (bytes.byteLength < consumedBytes) return waitForBytes(before);
  const state = { ...before, optionCount: before.optionCount + 1 };
  const data = bytes.subarray(NBD_OPTION_HEADER_BYTES, consumedBytes);
  return { ...answerOption({ state, rules, option, data }), consumedBytes };
}

interface OptionInput {
  readonly state: NegotiationState;
  readonly rules: NegotiationRules;
  readonly option: number;
  readonly data: Uint8Array;
}

type Answer = Omit<NegotiationStep, 'consumedBytes'>;

function answerOption(input: OptionInput): Answer {
  const { state, rules, option } = input;
  if (rules.tlsMode === 'require' && !state.isSecure) {
    const isAllowed = option === NBD_OPTION.startTls || option === NBD_OPTION.abort;
    if (option === NBD_OPTION.exportName) {
      return disconnect(state, 'the export needs TLS', {}); // EXPORT_NAME has no error reply
    }
    if (!isAllowed) return refuse(input, NBD_OPTION_REPLY.errTlsRequired, 'start TLS first');
  }
  switch (option) {
    case NBD_OPTION.exportName:
      return answerExportName(input);
    case NBD_OPTION.abort:
      return { state, reply: acknowledge(option), outcome: { kind: 'end' } };
    case NBD_OPTION.list:
      return answerList(input);
    case NBD_OPTION.startTls:
      return answerStartTls(input);
    case NBD_OPTION.info:
    case NBD_OPTION.go:
      return answerInfo(input);
    case NBD_OPTION.structuredReply:
      return answerStructuredReply(input);
    case NBD_OPTION.listMetaContext:
      return answerListMetaContext(input);
    case NBD_OPTION.setMetaContext:
      return answerSetMetaContext(input);
    default:
      return refuse(input, NBD_OPTION_REPLY.errUnsupported, `option ${option} is not supported`);
  }
}

function answerExportName({ state, rules, data }: OptionInput): Answer {
  const name = decodeString(data);
  const exported = name === null ? null : findExport(rules.exports, name);
  if (exported === null) return disconnect(state, 'no such export', { name });
  const flags = transmissionFlagsOf(exported, state.structuredReplies);
  return {
    state,
    reply: encodeExportNameReply(exported.device.sizeBytes, flags, state.wantsPadding),
    outcome: { kind: 'transmission', agreement: agreementOf(state, exported) },
  };
}

function answerList(input: OptionInput): Answer {
  const { state, rules, option, data } = input;
  if (data.byteLength > 0) return refuse(input, NBD_OPTION_REPLY.errInvalid, 'LIST takes no data');
  const replies: Uint8Array[] = [];
  for (const [name, { description }] of rules.exports) {
    replies.push(encodeServerReply(option, name, description));
  }
  return { state, reply: joinBytes([...replies, acknowledge(option)]), outcome: CONTINUE };
}

function answerStartTls(input: OptionInput): Answer {
  const { state, rules, option, data } = input;
  if (rules.tlsMode === 'off') {
    return refuse(input, NBD_OPTION_REPLY.errPolicy, 'this server has no TLS');
  }
  if (data.byteLength > 0 || state.isSecure) {
    return refuse(input, NBD_OPTION_REPLY.errInvalid, 'TLS can be started once, without data');
  }
  // Nothing that was agreed on in the clear may survive (section "Option types", STARTTLS).
  const secured = { ...state, isSecure: true, structuredReplies: false, contextExport: null };
  return { state: secured, reply: acknowledge(option), outcome: { kind: 'startTls' } };
}

function answerInfo(input: OptionInput): Answer {
  const { state, rules, option, data } = input;
  const request = decodeInfoRequest(data);
  if (request === null) return refuse(input, NBD_OPTION_REPLY.errInvalid, 'malformed request');
  const exported = findExport(rules.exports, request.exportName);
  if (exported === null) return refuse(input, NBD_OPTION_REPLY.errUnknown, 'no such export');
  const infos = encodeInfos(option, request, exported, state.structuredReplies);
  return {
    state,
    reply: joinBytes([...infos, acknowledge(option)]),
    outcome:
      option === NBD_OPTION.go
        ? { kind: 'transmission', agreement: agreementOf(state, exported) }
        : CONTINUE,
  };
}

function encodeInfos(
  option: number,
  request: NbdInfoRequest,
  exported: NamedExport,
  structuredReplies: boolean,
): Uint8Array[] {
  const flags = transmissionFlagsOf(exported, structuredReplies);
  const infos = [encodeInfoExport(option, exported.device.sizeBytes, flags)];
  for (const infoType of new Set(request.infoTypes)) {
    if (infoType === NBD_INFO.name) infos.push(encodeInfoText(option, infoType, exported.name));
    if (infoType === NBD_INFO.description) {
      infos.push(encodeInfoText(option, infoType, exported.description));
    }
    if (infoType === NBD_INFO.blockSize) {
      const preferred = NBD_BLOCK_BYTES_PREFERRED;
      infos.push(
        encodeInfoBlockSize(option, NBD_BLOCK_BYTES_MIN, preferred, NBD_PAYLOAD_BYTES_MAX),
      );
    }
  }
  return infos;
}

function answerStructuredReply(input: OptionInput): Answer {
  const { state, option, data } = input;
  if (data.byteLength > 0) {
    return refuse(input, NBD_OPTION_REPLY.errInvalid, 'STRUCTURED_REPLY takes no data');
  }
  return {
    state: { ...state, structuredReplies: true },
    reply: acknowledge(option),
    outcome: CONTINUE,
  };
}

function answerListMetaContext(input: OptionInput): Answer {
  const request = decodeMetaQueries(input);
  if ('outcome' in request) return request;
  const isListed = request.queries.length === 0 || request.queries.some(matchesList);
  return contextReplies(input, isListed ? 0 : null);
}

function answerSetMetaContext(input: OptionInput): Answer {
  // Earlier selections end here, also when this request fails (section "Option types").
  const state = { ...input.state, contextExport: null };
  const request = decodeMetaQueries({ ...input, state });
  if ('outcome' in request) return request;
  const isSelected = request.queries.includes(NBD_ALLOCATION_CONTEXT);
  const contextExport = isSelected ? request.exportName : null;
  return contextReplies(
    { ...input, state: { ...state, contextExport } },
    isSelected ? NBD_ALLOCATION_CONTEXT_ID : null,
  );
}

function matchesList(query: string): boolean {
  return query === NBD_ALLOCATION_CONTEXT || query === NBD_BASE_NAMESPACE;
}

/** The queries and the canonical name of their export, or the refusal. */
function decodeMetaQueries(
  input: OptionInput,
): { readonly exportName: string; readonly queries: readonly string[] } | Answer {
  const { state, rules, data } = input;
  const { errInvalid, errTooBig, errUnknown } = NBD_OPTION_REPLY;
  if (!state.structuredReplies) return refuse(input, errInvalid, 'ask for STRUCTURED_REPLY first');
  const request = decodeMetaContextRequest(data);
  if (request === null) return refuse(input, errInvalid, 'malformed request');
  if (request === 'tooMany') return refuse(input, errTooBig, 'too many queries');
  const exported = findExport(rules.exports, request.exportName);
  if (exported === null) return refuse(input, errUnknown, 'no such export');
  return { exportName: exported.name, queries: request.queries };
}

/** @param contextId null when base:allocation does not match. */
function contextReplies({ state, option }: OptionInput, contextId: number | null): Answer {
  const ack = acknowledge(option);
  const reply =
    contextId === null
      ? ack
      : joinBytes([encodeMetaContextReply(option, contextId, NBD_ALLOCATION_CONTEXT), ack]);
  return { state, reply, outcome: CONTINUE };
}

function agreementOf(state: NegotiationState, exported: NamedExport): Agreement {
  return {
    exported,
    structuredReplies: state.structuredReplies,
    blockStatus: state.structuredReplies && state.contextExport === exported.name,
  };
}

function acknowledge(option: number): Uint8Array {
  return encodeOptionReply(option, NBD_OPTION_REPLY.ack);
}

function refuse(
  { state, option }: OptionInput,
  reply: (typeof NBD_OPTION_REPLY)[keyof typeof NBD_OPTION_REPLY],
  message: string,
): Answer {
  return { state, reply: encodeOptionError(option, reply, message), outcome: CONTINUE };
}

function waitForBytes(state: NegotiationState): NegotiationStep {
  return { state, consumedBytes: 0, reply: NO_REPLY, outcome: NEED_BYTES };
}

function disconnect(
  state: NegotiationState,
  reason: string,
  details: Record<string, unknown>,
): NegotiationStep {
  const error = new StorageError('HANDSHAKE_FAILED', `NBD handshake: ${reason}`, details);
  return { state, consumedBytes: 0, reply: NO_REPLY, outcome: { kind: 'disconnect', error } };
}

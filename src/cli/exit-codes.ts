// Exit codes are part of the interface: scripts and Longhorn's manager look at them.

export const EXIT_CODE = {
  ok: 0,
  failure: 1,
  /** Wrong arguments; nothing was done. */
  usage: 2,
  /** ENODATA: an engine found no usable replica (they answer, but none can be trusted). */
  noUsableReplica: 61,
} as const;

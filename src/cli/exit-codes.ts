// Exit codes are part of the interface: scripts and Longhorn's manager look at them.

export const EXIT_CODE = {
  ok: 0,
  failure: 1,
  /** Wrong arguments; nothing was done. */
  usage: 2,
  /** ENODATA: an engine found no usable replica (they answer, but none can be trusted). */
  noUsableReplica: 61,
  /** SIGINT or SIGTERM ended a command that was waiting; what it left is said on stderr. */
  interrupted: 130,
} as const;

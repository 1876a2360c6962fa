// The lock that lets one snapshot be hashed at a time on a node: hashing reads whole disks. It is
// an flock, so it ends with the process that holds it. Source: on-disk §2.3 (.lock/hash).

export interface NodeLock {
  /** Takes the lock when it is free; null while anyone else holds it. */
  tryAcquire(): Promise<HeldLock | null>;
}

export interface HeldLock {
  release(): Promise<void>;
}

/** A lock within this process, for tests and hosts without a control directory. */
export function createProcessLock(): NodeLock {
  let isHeld = false;
  return {
    async tryAcquire(): Promise<HeldLock | null> {
      if (isHeld) return null;
      isHeld = true;
      return {
        async release(): Promise<void> {
          isHeld = false;
        },
      };
    },
  };
}

/** An open lock file, as the native disk gives it. */
export interface LockFile {
  /** flock(LOCK_EX | LOCK_NB): false while another open file holds it. */
  tryLock(): Promise<boolean>;
  close(): Promise<void>;
}

/** A lock shared by all processes of the node. @param open opens the lock file, creating it. */
export function createFileLock(open: () => Promise<LockFile>): NodeLock {
  return {
    async tryAcquire(): Promise<HeldLock | null> {
      const file = await open();
      let isHeld = false;
      try {
        isHeld = await file.tryLock();
      } finally {
        if (!isHeld) await file.close();
      }
      return isHeld ? { release: () => file.close() } : null;
    },
  };
}

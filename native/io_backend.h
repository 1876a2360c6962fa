// What the disk queue asks of a way to do file I/O: io_uring or a thread pool. Everything here is
// called on the event loop's thread; a backend never touches JavaScript.
#pragma once

#include <cstdint>

namespace longhorn {

/** All but the last are DISK_OP of src/disk/disk.ts. */
enum class IoOp : int32_t {
  kRead = 0,
  kWrite = 1,
  kSync = 2,
  kPunchHole = 3,
  kZeroRange = 4,
  /** Does nothing: a refused request takes the same way back as all others. */
  kFail = -1,
};

/** One request; the sink owns it and keeps it unchanged from Start() to Done(). */
struct IoRequest {
  IoOp op;
  int fd;
  char* data;
  uint64_t length;
  uint64_t offset;
  /** Bytes already moved. */
  uint64_t done;
  /** Bytes moved, 0, or a negative errno. For kFail set by the caller, else by the backend. */
  int32_t result;
  uint32_t slot;
  int32_t file;
  /** For the backend. */
  IoRequest* next;
};

/** Mode for fallocate(2) of a punch or a zeroing. */
int FallocateMode(IoOp op);

class IoSink {
 public:
  virtual void IoDone(IoRequest* request) = 0;
  /** Follows a run of IoDone calls. May destroy the backend, which must do nothing afterwards. */
  virtual void IoBatchDone() = 0;

 protected:
  ~IoSink() = default;
};

class IoBackend {
 public:
  virtual ~IoBackend() = default;
  virtual const char* name() const = 0;
  /** Takes a request; it may begin at the next Flush(). */
  virtual void Start(IoRequest* request) = 0;
  virtual void Flush() = 0;
  /** Whether the backend keeps the event loop alive. */
  virtual void SetActive(bool active) = 0;
  /** Blocks until nothing is in flight. The sink hears of nothing any more. */
  virtual void Finish() = 0;
};

/**
 * Accounts for the result of one system call of a request: true when it needs another call
 * (interrupted, or a short transfer that is not the end of the file), else request->result is set.
 */
bool NeedsAnotherCall(IoRequest* request, int64_t result);

}  // namespace longhorn

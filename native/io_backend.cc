// See io_backend.h.
#include "io_backend.h"

#include <linux/falloc.h>
#include <sys/stat.h>

#include <cerrno>

namespace longhorn {

namespace {

// A direct read that stopped at an odd length must not be resumed there: it would fail with EINVAL.
bool IsAtEndOfFile(const IoRequest& request) {
  struct stat status;
  if (::fstat(request.fd, &status) != 0) return true;
  return request.offset + request.done >= static_cast<uint64_t>(status.st_size);
}

}  // namespace

int FallocateMode(IoOp op) {
  const int kind = op == IoOp::kPunchHole ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
  return kind | FALLOC_FL_KEEP_SIZE;
}

bool NeedsAnotherCall(IoRequest* request, int64_t result) {
  if (request->op == IoOp::kFail) return false;
  if (result == -EINTR || result == -EAGAIN) return true;
  if (result < 0) {
    request->result = static_cast<int32_t>(result);
    return false;
  }
  if (request->op != IoOp::kRead && request->op != IoOp::kWrite) {
    request->result = 0;
    return false;
  }
  request->done += static_cast<uint64_t>(result);
  request->result = static_cast<int32_t>(request->done);
  if (request->done >= request->length) return false;
  if (request->op == IoOp::kRead) return result > 0 && !IsAtEndOfFile(*request);
  // A write that moves nothing and gives no reason would be retried for ever.
  if (result == 0) request->result = -EIO;
  return result > 0;
}

}  // namespace longhorn

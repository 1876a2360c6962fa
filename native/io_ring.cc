// See io_ring.h. Speaks to the kernel directly (io_uring_setup(2), io_uring_enter(2)): the little
// that liburing would add is not worth a dependency.
#include "io_ring.h"

#include <sys/syscall.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace longhorn {

namespace {

constexpr uint64_t kRetryMs = 1;
constexpr unsigned kProbedOps = 64;
constexpr uint8_t kNeededOps[] = {IORING_OP_NOP, IORING_OP_READ, IORING_OP_WRITE, IORING_OP_FSYNC,
                                  IORING_OP_FALLOCATE};

void FillEntry(io_uring_sqe* entry, const IoRequest& request) {
  std::memset(entry, 0, sizeof(*entry));
  entry->fd = request.fd;
  entry->user_data = reinterpret_cast<uint64_t>(&request);
  switch (request.op) {
    case IoOp::kRead:
    case IoOp::kWrite:
      entry->opcode = request.op == IoOp::kRead ? IORING_OP_READ : IORING_OP_WRITE;
      entry->addr = reinterpret_cast<uint64_t>(request.data + request.done);
      entry->len = static_cast<uint32_t>(request.length - request.done);
      entry->off = request.offset + request.done;
      break;
    case IoOp::kSync:
      entry->opcode = IORING_OP_FSYNC;
      entry->fsync_flags = IORING_FSYNC_DATASYNC;
      break;
    case IoOp::kPunchHole:
    case IoOp::kZeroRange:
      entry->opcode = IORING_OP_FALLOCATE;
      entry->len = static_cast<uint32_t>(FallocateMode(request.op));
      entry->off = request.offset;
      entry->addr = request.length;
      break;
    case IoOp::kFail:
      entry->opcode = IORING_OP_NOP;
      break;
  }
}

int Setup(unsigned entries, io_uring_params* params) {
  std::memset(params, 0, sizeof(*params));
  // Completions run when this thread enters the kernel anyway, without an interrupt (Linux 5.19).
  params->flags = IORING_SETUP_CQSIZE | IORING_SETUP_COOP_TASKRUN;
  params->cq_entries = entries * 4;
  int fd = static_cast<int>(::syscall(SYS_io_uring_setup, entries, params));
  if (fd >= 0 || errno != EINVAL) return fd;
  std::memset(params, 0, sizeof(*params));
  params->flags = IORING_SETUP_CQSIZE;
  params->cq_entries = entries * 4;
  return static_cast<int>(::syscall(SYS_io_uring_setup, entries, params));
}

unsigned LoadAcquire(unsigned* word) {
  return std::atomic_ref<unsigned>(*word).load(std::memory_order_acquire);
}

void StoreRelease(unsigned* word, unsigned value) {
  std::atomic_ref<unsigned>(*word).store(value, std::memory_order_release);
}

}  // namespace

std::unique_ptr<IoRing> IoRing::Create(uv_loop_t* loop, unsigned entries, IoSink* sink,
                                       int* error) {
  std::unique_ptr<IoRing> ring(new IoRing(sink));
  *error = ring->SetUp(entries);
  if (*error == 0) *error = ring->ProbeOperations();
  if (*error == 0) *error = ring->Watch(loop);
  if (*error != 0) return nullptr;
  return ring;
}

IoRing::~IoRing() { Finish(); }

int IoRing::SetUp(unsigned entries) {
  io_uring_params params;
  fd_ = UniqueFd(Setup(entries, &params));
  if (!fd_.valid()) return errno;
  if ((params.features & IORING_FEAT_SINGLE_MMAP) == 0) return ENOSYS;

  const size_t submit_bytes = params.sq_off.array + params.sq_entries * sizeof(unsigned);
  const size_t complete_bytes = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
  const size_t rings_bytes = submit_bytes > complete_bytes ? submit_bytes : complete_bytes;
  const size_t entries_bytes = params.sq_entries * sizeof(io_uring_sqe);
  constexpr int kProtection = PROT_READ | PROT_WRITE;
  constexpr int kFlags = MAP_SHARED | MAP_POPULATE;
  rings_ = Mapping(::mmap(nullptr, rings_bytes, kProtection, kFlags, fd_.get(), IORING_OFF_SQ_RING),
                   rings_bytes);
  if (!rings_.valid()) return errno;
  entries_map_ =
      Mapping(::mmap(nullptr, entries_bytes, kProtection, kFlags, fd_.get(), IORING_OFF_SQES),
              entries_bytes);
  if (!entries_map_.valid()) return errno;

  entries_ = entries_map_.at<io_uring_sqe>(0);
  submit_tail_ = rings_.at<unsigned>(params.sq_off.tail);
  submit_mask_ = *rings_.at<unsigned>(params.sq_off.ring_mask);
  complete_head_ = rings_.at<unsigned>(params.cq_off.head);
  complete_tail_ = rings_.at<unsigned>(params.cq_off.tail);
  complete_mask_ = *rings_.at<unsigned>(params.cq_off.ring_mask);
  completions_ = rings_.at<io_uring_cqe>(params.cq_off.cqes);
  unsigned* order = rings_.at<unsigned>(params.sq_off.array);
  for (unsigned i = 0; i < params.sq_entries; i++) order[i] = i;
  return 0;
}

int IoRing::ProbeOperations() {
  alignas(io_uring_probe) char
      memory[sizeof(io_uring_probe) + kProbedOps * sizeof(io_uring_probe_op)] = {};
  auto* probe = reinterpret_cast<io_uring_probe*>(memory);
  if (::syscall(SYS_io_uring_register, fd_.get(), IORING_REGISTER_PROBE, probe, kProbedOps) < 0) {
    return errno;
  }
  for (const uint8_t op : kNeededOps) {
    if (op > probe->last_op || (probe->ops[op].flags & IO_URING_OP_SUPPORTED) == 0) return ENOSYS;
  }
  return 0;
}

int IoRing::Watch(uv_loop_t* loop) {
  int error =
      poll_.Open(this, [&](uv_poll_t* poll) { return uv_poll_init(loop, poll, fd_.get()); });
  if (error != 0) return -error;
  error = retry_.Open(this, [&](uv_timer_t* timer) { return uv_timer_init(loop, timer); });
  if (error != 0) return -error;
  error = uv_poll_start(poll_.get(), UV_READABLE, [](uv_poll_t* poll, int, int) {
    static_cast<IoRing*>(poll->data)->OnReadable();
  });
  poll_.SetReferenced(false);
  return -error;
}

void IoRing::Start(IoRequest* request) {
  const unsigned tail = *submit_tail_;
  FillEntry(&entries_[tail & submit_mask_], *request);
  StoreRelease(submit_tail_, tail + 1);
  unsubmitted_++;
  in_flight_++;
}

void IoRing::Flush() {
  if (unsubmitted_ == 0 || TrySubmit()) return;
  // The kernel is short of memory. Requests stay queued, and in flight, until it is not.
  uv_timer_start(
      retry_.get(), [](uv_timer_t* timer) { static_cast<IoRing*>(timer->data)->Flush(); }, kRetryMs,
      0);
}

bool IoRing::TrySubmit() {
  while (unsubmitted_ > 0) {
    const int submitted = Enter(unsubmitted_, 0);
    if (submitted <= 0) return false;
    unsubmitted_ -= static_cast<unsigned>(submitted);
  }
  return true;
}

int IoRing::Enter(unsigned submit, unsigned wait) {
  const unsigned flags = wait > 0 ? IORING_ENTER_GETEVENTS : 0;
  for (;;) {
    const long entered = ::syscall(SYS_io_uring_enter, fd_.get(), submit, wait, flags, nullptr, 0);
    if (entered >= 0) return static_cast<int>(entered);
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EBUSY || errno == ENOMEM) return -errno;
    // Requests would be lost silently: nothing else makes this call fail on a sound ring.
    std::fprintf(stderr, "longhorn: io_uring_enter failed: %s\n", std::strerror(errno));
    std::abort();
  }
}

void IoRing::Reap() {
  unsigned head = *complete_head_;
  while (head != LoadAcquire(complete_tail_)) {
    const io_uring_cqe& completion = completions_[head & complete_mask_];
    auto* request = reinterpret_cast<IoRequest*>(completion.user_data);
    const int32_t result = completion.res;
    StoreRelease(complete_head_, ++head);
    in_flight_--;
    if (finishing_) continue;
    if (NeedsAnotherCall(request, result)) {
      Start(request);
    } else {
      sink_->IoDone(request);
    }
  }
}

void IoRing::OnReadable() {
  Reap();
  Flush();
  sink_->IoBatchDone();
}

void IoRing::Finish() {
  if (finishing_ || !fd_.valid() || completions_ == nullptr) return;
  finishing_ = true;
  // Entries that the kernel has not seen are withdrawn; what it has seen is waited for, because it
  // may still move data into or out of the slab.
  StoreRelease(submit_tail_, *submit_tail_ - unsubmitted_);
  in_flight_ -= unsubmitted_;
  unsubmitted_ = 0;
  while (in_flight_ > 0) {
    Reap();
    if (in_flight_ > 0) Enter(0, 1);
  }
}

}  // namespace longhorn

// File I/O through io_uring: one system call starts everything queued in a turn of the event loop,
// and the loop watches the ring's own descriptor for completions. Never more requests may be in
// flight than the ring has entries.
#pragma once

#include <linux/io_uring.h>

#include <memory>

#include "io_backend.h"
#include "mapping.h"
#include "unique_fd.h"
#include "uv_handle.h"

namespace longhorn {

class IoRing final : public IoBackend {
 public:
  /** Null, with an errno in *error, where io_uring is refused or lacks an operation. */
  static std::unique_ptr<IoRing> Create(uv_loop_t* loop, unsigned entries, IoSink* sink,
                                        int* error);
  ~IoRing() override;

  const char* name() const override { return "io_uring"; }
  void Start(IoRequest* request) override;
  void Flush() override;
  void SetActive(bool active) override { poll_.SetReferenced(active); }
  void Finish() override;

 private:
  explicit IoRing(IoSink* sink) : sink_(sink) {}

  int SetUp(unsigned entries);
  int ProbeOperations();
  int Watch(uv_loop_t* loop);
  int Enter(unsigned submit, unsigned wait);
  /** False when the kernel wants to be asked again later. */
  bool TrySubmit();
  void Reap();
  void OnReadable();

  IoSink* sink_;
  UniqueFd fd_;
  Mapping rings_;
  Mapping entries_map_;
  io_uring_sqe* entries_ = nullptr;
  unsigned* submit_tail_ = nullptr;
  unsigned submit_mask_ = 0;
  unsigned* complete_head_ = nullptr;
  unsigned* complete_tail_ = nullptr;
  unsigned complete_mask_ = 0;
  io_uring_cqe* completions_ = nullptr;
  unsigned unsubmitted_ = 0;
  unsigned in_flight_ = 0;
  bool finishing_ = false;
  // Last, so that the loop stops watching before the descriptor is closed.
  UvHandle<uv_poll_t> poll_;
  UvHandle<uv_timer_t> retry_;
};

}  // namespace longhorn

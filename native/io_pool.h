// File I/O on a thread pool, for systems that refuse io_uring. Threads start when there is work for
// them; they make system calls and touch neither JavaScript nor libuv except uv_async_send.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "io_backend.h"
#include "uv_handle.h"

namespace longhorn {

class IoPool final : public IoBackend {
 public:
  /** Null, with an errno in *error, when not even one thread can be started. */
  static std::unique_ptr<IoPool> Create(uv_loop_t* loop, IoSink* sink, int* error);
  ~IoPool() override;

  const char* name() const override { return "threads"; }
  void Start(IoRequest* request) override;
  void Flush() override;
  void SetActive(bool active) override { wake_.SetReferenced(active); }
  void Finish() override;

 private:
  /** First in, first out, linked through IoRequest::next. */
  struct List {
    IoRequest* first = nullptr;
    IoRequest* last = nullptr;
    unsigned count = 0;
    void Push(IoRequest* request);
    IoRequest* Pop();
    void Append(List* other);
  };

  explicit IoPool(IoSink* sink) : sink_(sink) {}

  /** 0 or an errno. More threads are welcome, the first one is needed. */
  int StartThread();
  void RunThread();
  void OnWake();

  IoSink* sink_;
  List staged_;
  std::vector<uv_thread_t> threads_;
  UvHandle<uv_async_t> wake_;

  std::mutex mutex_;
  std::condition_variable work_ready_;
  // Guarded by mutex_.
  List queued_;
  List finished_;
  unsigned idle_threads_ = 0;
  bool stopping_ = false;
};

}  // namespace longhorn

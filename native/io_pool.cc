// See io_pool.h.
#include "io_pool.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace longhorn {

namespace {

constexpr unsigned kThreads = 16;

int64_t CallOnce(const IoRequest& request) {
  char* data = request.data + request.done;
  const size_t length = static_cast<size_t>(request.length - request.done);
  const off_t offset = static_cast<off_t>(request.offset + request.done);
  int64_t result = 0;
  switch (request.op) {
    case IoOp::kRead:
      result = ::pread(request.fd, data, length, offset);
      break;
    case IoOp::kWrite:
      result = ::pwrite(request.fd, data, length, offset);
      break;
    case IoOp::kSync:
      result = ::fdatasync(request.fd);
      break;
    case IoOp::kPunchHole:
    case IoOp::kZeroRange:
      result = ::fallocate(request.fd, FallocateMode(request.op), offset,
                           static_cast<off_t>(request.length));
      break;
    case IoOp::kFail:
      break;
  }
  return result < 0 ? -errno : result;
}

}  // namespace

void IoPool::List::Push(IoRequest* request) {
  request->next = nullptr;
  (last == nullptr ? first : last->next) = request;
  last = request;
  count++;
}

IoRequest* IoPool::List::Pop() {
  IoRequest* request = first;
  if (request == nullptr) return nullptr;
  first = request->next;
  if (first == nullptr) last = nullptr;
  count--;
  return request;
}

void IoPool::List::Append(List* other) {
  if (other->first == nullptr) return;
  (last == nullptr ? first : last->next) = other->first;
  last = other->last;
  count += other->count;
  *other = List();
}

std::unique_ptr<IoPool> IoPool::Create(uv_loop_t* loop, IoSink* sink, int* error) {
  std::unique_ptr<IoPool> pool(new IoPool(sink));
  *error = -pool->wake_.Open(pool.get(), [&](uv_async_t* async) {
    return uv_async_init(loop, async,
                         [](uv_async_t* handle) { static_cast<IoPool*>(handle->data)->OnWake(); });
  });
  if (*error != 0) return nullptr;
  pool->wake_.SetReferenced(false);
  *error = pool->StartThread();
  if (*error != 0) return nullptr;
  return pool;
}

int IoPool::StartThread() {
  uv_thread_t thread;
  const int error = uv_thread_create(
      &thread, [](void* pool) { static_cast<IoPool*>(pool)->RunThread(); }, this);
  if (error == 0) threads_.push_back(thread);
  return -error;
}

IoPool::~IoPool() { Finish(); }

void IoPool::Start(IoRequest* request) { staged_.Push(request); }

void IoPool::Flush() {
  if (staged_.count == 0) return;
  unsigned starting = 0;
  unsigned waking = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    queued_.Append(&staged_);
    waking = queued_.count < idle_threads_ ? queued_.count : idle_threads_;
    const unsigned unserved = queued_.count - waking;
    const unsigned startable = kThreads - static_cast<unsigned>(threads_.size());
    starting = unserved < startable ? unserved : startable;
  }
  for (unsigned i = 0; i < waking; i++) work_ready_.notify_one();
  while (starting > 0 && StartThread() == 0) starting--;
}

void IoPool::Finish() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    queued_ = List();
  }
  work_ready_.notify_all();
  for (uv_thread_t& thread : threads_) uv_thread_join(&thread);
  threads_.clear();
}

void IoPool::RunThread() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    IoRequest* request = queued_.Pop();
    if (request == nullptr) {
      idle_threads_++;
      work_ready_.wait(lock);
      idle_threads_--;
      continue;
    }
    lock.unlock();
    while (NeedsAnotherCall(request, CallOnce(*request))) {
    }
    lock.lock();
    finished_.Push(request);
    // The first of a batch wakes the loop, which takes all that have finished by then.
    if (finished_.count == 1) uv_async_send(wake_.get());
  }
}

void IoPool::OnWake() {
  List finished;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    finished.Append(&finished_);
  }
  while (IoRequest* request = finished.Pop()) sink_->IoDone(request);
  sink_->IoBatchDone();
}

}  // namespace longhorn

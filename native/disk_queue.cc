// See disk_queue.h.
#include "disk_queue.h"

#include <cerrno>
#include <cstring>
#include <string>

#include "addon.h"
#include "file_ops.h"
#include "io_pool.h"
#include "io_ring.h"

namespace longhorn {

namespace {

// Layout of the shared memory in 32-bit words; JavaScript reads it from `diskQueueLayout`.
constexpr uint32_t kSlots = 1024;
constexpr uint32_t kPendingCountWord = 0;
constexpr uint32_t kDeliveredCountWord = 1;
constexpr uint32_t kPendingWord = 16;
constexpr uint32_t kEntriesWord = kPendingWord + kSlots;
constexpr uint32_t kEntryWords = 8;
constexpr uint32_t kCompletionsWord = kEntriesWord + kSlots * kEntryWords;
constexpr uint32_t kWords = kCompletionsWord + kSlots * 2;

constexpr uint64_t kOffsetMax = INT64_MAX;
/** Results are counts in 32 bits. */
constexpr uint64_t kTransferMax = INT32_MAX;

uint64_t Join(int32_t low, int32_t high) {
  return static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 | static_cast<uint32_t>(low);
}

// An environment that ends waits for its async cleanup hooks; this one is done when the loop has
// closed the queue's handles, because a loop with open handles cannot be freed.
void RemoveHookWhenClosed(uv_loop_t* loop, napi_async_cleanup_hook_handle hook) {
  auto* fence = new uv_idle_t;
  uv_idle_init(loop, fence);
  fence->data = hook;
  uv_close(reinterpret_cast<uv_handle_t*>(fence), [](uv_handle_t* handle) {
    napi_remove_async_cleanup_hook(static_cast<napi_async_cleanup_hook_handle>(handle->data));
    delete reinterpret_cast<uv_idle_t*>(handle);
  });
}

uv_loop_t* LoopOf(Napi::Env env) {
  uv_loop_t* loop = nullptr;
  napi_get_uv_event_loop(env, &loop);
  return loop;
}

}  // namespace

void DiskQueue::Export(Napi::Env env, Napi::Object exports) {
  exports.Set("DiskQueue", DefineClass(env, "DiskQueue",
                                       {InstanceAccessor<&DiskQueue::GetBackend>("backend"),
                                        InstanceAccessor<&DiskQueue::GetMemory>("memory"),
                                        InstanceMethod<&DiskQueue::SetActive>("setActive"),
                                        InstanceMethod<&DiskQueue::Flush>("flush"),
                                        InstanceMethod<&DiskQueue::Shutdown>("shutdown")}));
  Napi::Object layout = Napi::Object::New(env);
  layout.Set("slots", kSlots);
  layout.Set("pendingCountWord", kPendingCountWord);
  layout.Set("deliveredCountWord", kDeliveredCountWord);
  layout.Set("pendingWord", kPendingWord);
  layout.Set("entriesWord", kEntriesWord);
  layout.Set("entryWords", kEntryWords);
  layout.Set("completionsWord", kCompletionsWord);
  exports.Set("diskQueueLayout", layout);
}

DiskQueue::DiskQueue(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  Napi::Env env = info.Env();
  slab_ = Slab::FromValue(info[0]);
  files_ = FilesOf(info[1]);
  if (slab_ == nullptr || files_ == nullptr || !info[2].IsString() || !info[3].IsFunction()) {
    Napi::TypeError::New(env, "DiskQueue needs (slab, file table, backend, callback)")
        .ThrowAsJavaScriptException();
    return;
  }
  shared_ = Slab::Allocate(kWords * sizeof(int32_t));
  if (shared_ == nullptr || !Open(env, info[2].As<Napi::String>())) {
    if (!env.IsExceptionPending()) {
      Napi::Error::New(env, "no memory for the disk queue").ThrowAsJavaScriptException();
    }
    return;
  }
  Napi::Value memory = Slab::ToArrayBuffer(env, shared_);
  if (env.IsExceptionPending()) {
    Stop();
    return;
  }
  memory_ = Napi::Persistent(memory.As<Napi::Object>());
  completed_ = Napi::Persistent(info[3].As<Napi::Function>());
  async_context_ = std::make_unique<Napi::AsyncContext>(env, "longhorn.DiskQueue");
  requests_ = std::unique_ptr<IoRequest[]>(new IoRequest[kSlots]);
  napi_add_async_cleanup_hook(
      env,
      [](napi_async_cleanup_hook_handle hook, void* self) {
        auto* queue = static_cast<DiskQueue*>(self);
        uv_loop_t* loop = LoopOf(queue->Env());
        queue->cleanup_hook_ = nullptr;
        queue->Stop();
        RemoveHookWhenClosed(loop, hook);
      },
      this, &cleanup_hook_);
  // An open queue is not garbage: the loop calls it.
  Ref();
}

DiskQueue::~DiskQueue() { Stop(); }

bool DiskQueue::Open(Napi::Env env, const std::string& backend) {
  uv_loop_t* loop = LoopOf(env);
  int error = EINVAL;
  if (backend == "io_uring" || backend == "auto") {
    backend_ = IoRing::Create(loop, kSlots, this, &error);
  }
  if (backend_ == nullptr && (backend == "threads" || backend == "auto")) {
    backend_ = IoPool::Create(loop, this, &error);
  }
  if (backend_ == nullptr) {
    Napi::Error::New(env,
                     "disk backend '" + backend + "' cannot be used here: " + std::strerror(error))
        .ThrowAsJavaScriptException();
    return false;
  }
  before_wait_.Open(this, [&](uv_prepare_t* handle) { return uv_prepare_init(loop, handle); });
  uv_prepare_start(before_wait_.get(), [](uv_prepare_t* handle) {
    static_cast<DiskQueue*>(handle->data)->StartPending();
  });
  before_wait_.SetReferenced(false);
  return true;
}

Napi::Value DiskQueue::GetBackend(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), backend_ == nullptr ? "none" : backend_->name());
}

Napi::Value DiskQueue::GetMemory(const Napi::CallbackInfo&) { return memory_.Value(); }

void DiskQueue::SetActive(const Napi::CallbackInfo& info) {
  if (backend_ != nullptr) backend_->SetActive(info[0].ToBoolean());
}

void DiskQueue::Flush(const Napi::CallbackInfo&) {
  if (backend_ != nullptr) StartPending();
}

void DiskQueue::Shutdown(const Napi::CallbackInfo&) {
  stop_requested_ = true;
  // In a completion callback the backend is still on the stack: IoBatchDone stops it.
  if (!announcing_) Stop();
}

void DiskQueue::StartPending() {
  auto* words = reinterpret_cast<int32_t*>(shared_->data());
  const uint32_t count = static_cast<uint32_t>(words[kPendingCountWord]);
  if (count == 0) return;
  words[kPendingCountWord] = 0;
  for (uint32_t i = 0; i < count && i < kSlots; i++) {
    const uint32_t slot = static_cast<uint32_t>(words[kPendingWord + i]) % kSlots;
    IoRequest* request = &requests_[slot];
    ReadEntry(slot, request);
    backend_->Start(request);
  }
  backend_->Flush();
}

void DiskQueue::ReadEntry(uint32_t slot, IoRequest* request) {
  const int32_t* entry =
      reinterpret_cast<int32_t*>(shared_->data()) + kEntriesWord + slot * kEntryWords;
  const uint32_t buffer_offset = static_cast<uint32_t>(entry[2]);
  request->op = static_cast<IoOp>(entry[0]);
  request->file = entry[1];
  request->slot = slot;
  request->length = Join(entry[3], entry[4]);
  request->offset = Join(entry[5], entry[6]);
  request->done = 0;
  request->data = nullptr;

  int error = 0;
  request->fd = files_->Acquire(request->file);
  if (request->fd < 0) {
    error = request->fd;
    request->file = -1;
  } else if (request->length > kOffsetMax || request->offset > kOffsetMax - request->length) {
    error = -EINVAL;
  } else if (request->op == IoOp::kRead || request->op == IoOp::kWrite) {
    if (request->length <= kTransferMax && slab_->Contains(buffer_offset, request->length)) {
      request->data = slab_->data() + buffer_offset;
    } else {
      error = -EFAULT;
    }
  } else if (request->op != IoOp::kSync && request->op != IoOp::kPunchHole &&
             request->op != IoOp::kZeroRange) {
    error = -EINVAL;
  }
  if (error != 0) {
    request->op = IoOp::kFail;
    request->result = error;
  }
}

void DiskQueue::IoDone(IoRequest* request) {
  if (request->file >= 0) files_->Release(request->file);
  int32_t* completion = reinterpret_cast<int32_t*>(shared_->data()) + kCompletionsWord +
                        static_cast<uint32_t>(completed_count_) * 2;
  completion[0] = static_cast<int32_t>(request->slot);
  completion[1] = request->result;
  completed_count_++;
}

void DiskQueue::IoBatchDone() {
  if (completed_count_ > 0) {
    Napi::Env env = Env();
    Napi::HandleScope scope(env);
    auto* words = reinterpret_cast<int32_t*>(shared_->data());
    napi_value receiver = Value();
    napi_value count = Napi::Number::New(env, completed_count_);
    completed_count_ = 0;
    words[kDeliveredCountWord] = 0;
    announcing_ = true;
    int32_t delivered = -1;
    // A request whose owner throws must not swallow the completions behind it: JavaScript notes how
    // far it came, and is called again for the rest. No progress means that it cannot run any more.
    while (napi_make_callback(env, *async_context_, receiver, completed_.Value(), 1, &count,
                              nullptr) != napi_ok) {
      bool pending = false;
      napi_value exception = nullptr;
      napi_is_exception_pending(env, &pending);
      if (pending && napi_get_and_clear_last_exception(env, &exception) == napi_ok) {
        napi_fatal_exception(env, exception);
      }
      if (words[kDeliveredCountWord] <= delivered) break;
      delivered = words[kDeliveredCountWord];
    }
    announcing_ = false;
  }
  if (stop_requested_) {
    Stop();
  } else {
    StartPending();
  }
}

void DiskQueue::Stop() {
  if (backend_ == nullptr) return;
  before_wait_.Close();
  backend_->Finish();
  backend_.reset();
  if (cleanup_hook_ != nullptr) {
    napi_remove_async_cleanup_hook(cleanup_hook_);
    cleanup_hook_ = nullptr;
  }
  // Not in the destructor, which runs when the count is gone already.
  if (!IsEmpty() && async_context_ != nullptr) Unref();
}

void ExportDiskQueue(Napi::Env env, Napi::Object exports) { DiskQueue::Export(env, exports); }

}  // namespace longhorn

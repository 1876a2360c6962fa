// Batched file I/O for JavaScript. Requests and completions pass through shared memory, so an I/O
// costs no call between the languages: JavaScript fills entries and lists their slots as pending;
// once per event-loop turn all of them are started together; finished ones are listed as
// completions and announced by one call for the whole batch.
#pragma once

#include <napi.h>

#include <memory>

#include "file_table.h"
#include "io_backend.h"
#include "slab.h"
#include "uv_handle.h"

namespace longhorn {

class DiskQueue final : public Napi::ObjectWrap<DiskQueue>, private IoSink {
 public:
  static void Export(Napi::Env env, Napi::Object exports);
  explicit DiskQueue(const Napi::CallbackInfo& info);
  ~DiskQueue() override;

 private:
  // JavaScript's methods; see src/addon/addon.ts.
  Napi::Value GetBackend(const Napi::CallbackInfo& info);
  Napi::Value GetMemory(const Napi::CallbackInfo& info);
  void SetActive(const Napi::CallbackInfo& info);
  void Flush(const Napi::CallbackInfo& info);
  void Shutdown(const Napi::CallbackInfo& info);

  bool Open(Napi::Env env, const std::string& backend);
  void StartPending();
  /** Makes a request of what JavaScript wrote; one that is not valid becomes kFail. */
  void ReadEntry(uint32_t slot, IoRequest* request);
  void IoDone(IoRequest* request) override;
  void IoBatchDone() override;
  /** Waits for what is in flight and lets go of the event loop. Idempotent. */
  void Stop();

  std::shared_ptr<Slab> slab_;
  std::shared_ptr<FileTable> files_;
  std::shared_ptr<Slab> shared_;
  Napi::ObjectReference memory_;
  Napi::FunctionReference completed_;
  std::unique_ptr<Napi::AsyncContext> async_context_;
  std::unique_ptr<IoRequest[]> requests_;
  std::unique_ptr<IoBackend> backend_;
  UvHandle<uv_prepare_t> before_wait_;
  napi_async_cleanup_hook_handle cleanup_hook_ = nullptr;
  int32_t completed_count_ = 0;
  bool announcing_ = false;
  bool stop_requested_ = false;
};

}  // namespace longhorn

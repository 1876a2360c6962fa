// One control operation: a system call on libuv's pool, its outcome as a promise.
#pragma once

#include <napi.h>

#include <memory>

namespace longhorn {

class FileTask {
 public:
  explicit FileTask(napi_env env);
  virtual ~FileTask() = default;
  FileTask(const FileTask&) = delete;
  FileTask& operator=(const FileTask&) = delete;

  napi_value promise() const { return promise_; }
  /** Runs the task; it deletes itself when its promise is settled or the environment ends. */
  static void Queue(std::unique_ptr<FileTask> task);

 protected:
  /** On a pool thread: system calls only, no Napi. */
  virtual void Run() = 0;
  /** On the JavaScript thread: the value for the promise. */
  virtual napi_value Result(napi_env env) = 0;

 private:
  static void Complete(napi_env env, napi_status status, void* self);

  napi_env env_;
  napi_deferred deferred_ = nullptr;
  napi_value promise_ = nullptr;
  napi_async_work work_ = nullptr;
};

/** A promise that is fulfilled already. */
napi_value Fulfilled(napi_env env, int32_t value);

}  // namespace longhorn

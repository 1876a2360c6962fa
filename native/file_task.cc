// See file_task.h. Statuses are ignored where they can only mean that the environment is ending:
// then nobody waits for the promise, and throwing would abort the process.
#include "file_task.h"

namespace longhorn {

FileTask::FileTask(napi_env env) : env_(env) { napi_create_promise(env, &deferred_, &promise_); }

void FileTask::Queue(std::unique_ptr<FileTask> task) {
  napi_env env = task->env_;
  Napi::HandleScope scope(env);
  napi_value name = nullptr;
  napi_create_string_utf8(env, "longhorn.FileTask", NAPI_AUTO_LENGTH, &name);
  const napi_status created = napi_create_async_work(
      env, nullptr, name, [](napi_env, void* self) { static_cast<FileTask*>(self)->Run(); },
      Complete, task.get(), &task->work_);
  if (created != napi_ok) return;
  if (napi_queue_async_work(env, task->work_) != napi_ok) {
    napi_delete_async_work(env, task->work_);
    return;
  }
  task.release();
}

void FileTask::Complete(napi_env env, napi_status status, void* self) {
  std::unique_ptr<FileTask> task(static_cast<FileTask*>(self));
  napi_delete_async_work(env, task->work_);
  if (status != napi_ok) return;
  napi_value result = task->Result(env);
  if (result != nullptr) napi_resolve_deferred(env, task->deferred_, result);
}

napi_value Fulfilled(napi_env env, int32_t value) {
  napi_deferred deferred = nullptr;
  napi_value promise = nullptr;
  napi_value number = nullptr;
  napi_create_promise(env, &deferred, &promise);
  napi_create_int32(env, value, &number);
  napi_resolve_deferred(env, deferred, number);
  return promise;
}

}  // namespace longhorn

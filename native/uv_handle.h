// Owner of a libuv handle. The handle's memory outlives its owner until the loop has closed it, so
// an owner may be destroyed at any time on the loop's thread, also from the handle's own callback.
#pragma once

#include <uv.h>

namespace longhorn {

template <typename T>
class UvHandle {
 public:
  UvHandle() = default;
  UvHandle(const UvHandle&) = delete;
  UvHandle& operator=(const UvHandle&) = delete;
  ~UvHandle() { Close(); }

  /** init(T*) calls uv_*_init; returns its result. owner becomes the handle's data. */
  template <typename Init>
  int Open(void* owner, Init init) {
    T* handle = new T;
    const int error = init(handle);
    if (error != 0) {
      delete handle;
      return error;
    }
    handle->data = owner;
    handle_ = handle;
    return 0;
  }

  void Close() {
    if (handle_ == nullptr) return;
    uv_close(reinterpret_cast<uv_handle_t*>(handle_),
             [](uv_handle_t* handle) { delete reinterpret_cast<T*>(handle); });
    handle_ = nullptr;
  }

  T* get() const { return handle_; }

  /** Whether the handle keeps the loop alive. */
  void SetReferenced(bool referenced) {
    auto* handle = reinterpret_cast<uv_handle_t*>(handle_);
    if (referenced) {
      uv_ref(handle);
    } else {
      uv_unref(handle);
    }
  }

 private:
  T* handle_ = nullptr;
};

}  // namespace longhorn

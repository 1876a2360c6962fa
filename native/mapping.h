// Sole owner of a memory mapping.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <utility>

namespace longhorn {

class Mapping {
 public:
  Mapping() = default;
  /** Takes what mmap returned, also MAP_FAILED. */
  Mapping(void* data, size_t size) : data_(data == MAP_FAILED ? nullptr : data), size_(size) {}
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (data_ != nullptr) ::munmap(data_, size_);
  }

  bool valid() const { return data_ != nullptr; }
  size_t size() const { return size_; }
  template <typename T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + offset);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace longhorn

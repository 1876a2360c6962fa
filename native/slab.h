// Page-aligned memory shared with JavaScript as one external ArrayBuffer. It must stay mapped while
// JavaScript or the kernel can reach it: the ArrayBuffer and every native user hold a reference.
#pragma once

#include <napi.h>

#include <memory>

#include "mapping.h"

namespace longhorn {

class Slab {
 public:
  /** Zeroed memory that costs nothing until touched; null when the system refuses. */
  static std::shared_ptr<Slab> Allocate(size_t bytes);
  /** The slab behind an ArrayBuffer of ToArrayBuffer(); null for any other value. */
  static std::shared_ptr<Slab> FromValue(Napi::Value value);
  /** Call at most once per slab. Empty with a pending exception on failure. */
  static Napi::Value ToArrayBuffer(Napi::Env env, std::shared_ptr<Slab> slab);

  explicit Slab(Mapping mapping) : mapping_(std::move(mapping)) {}

  char* data() const { return mapping_.at<char>(0); }
  size_t size() const { return mapping_.size(); }
  bool Contains(uint64_t offset, uint64_t length) const {
    return length <= size() && offset <= size() - length;
  }

 private:
  Mapping mapping_;
};

}  // namespace longhorn

// See slab.h.
#include "slab.h"

#include "addon.h"

namespace longhorn {

namespace {

// Marks the ArrayBuffers that wrap a slab; random.
constexpr napi_type_tag kSlabTag = {0x6b1de0a95f3c4e27, 0x9a0c7b24d18e53f6};

using Holder = std::shared_ptr<Slab>;

void DropMemory(napi_env, void*, void* holder) { delete static_cast<Holder*>(holder); }
void DropWrapped(napi_env, void* holder, void*) { delete static_cast<Holder*>(holder); }

Napi::Value AllocateSlab(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const double bytes = info[0].IsNumber() ? info[0].As<Napi::Number>().DoubleValue() : -1;
  if (!(bytes >= 1 && bytes <= 4294967296.0)) {
    Napi::TypeError::New(env, "allocateSlab needs a size of at most 4 GiB")
        .ThrowAsJavaScriptException();
    return env.Undefined();
  }
  auto slab = Slab::Allocate(static_cast<size_t>(bytes));
  if (slab == nullptr) {
    Napi::Error::New(env, "the system refuses memory for the slab").ThrowAsJavaScriptException();
    return env.Undefined();
  }
  return Slab::ToArrayBuffer(env, std::move(slab));
}

}  // namespace

std::shared_ptr<Slab> Slab::Allocate(size_t bytes) {
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  Mapping mapping(data, bytes);
  if (!mapping.valid()) return nullptr;
  // One touched buffer must cost a page, not a huge page.
  ::madvise(data, bytes, MADV_NOHUGEPAGE);
  // A child process must not share these pages: copy on write during direct I/O could send what the
  // disk delivers to the wrong copy (open(2), O_DIRECT).
  ::madvise(data, bytes, MADV_DONTFORK);
  return std::make_shared<Slab>(std::move(mapping));
}

std::shared_ptr<Slab> Slab::FromValue(Napi::Value value) {
  bool tagged = false;
  if (!value.IsArrayBuffer()) return nullptr;
  if (napi_check_object_type_tag(value.Env(), value, &kSlabTag, &tagged) != napi_ok || !tagged) {
    return nullptr;
  }
  void* holder = nullptr;
  if (napi_unwrap(value.Env(), value, &holder) != napi_ok) return nullptr;
  return *static_cast<Holder*>(holder);
}

Napi::Value Slab::ToArrayBuffer(Napi::Env env, std::shared_ptr<Slab> slab) {
  napi_value buffer = nullptr;
  auto* owner = new Holder(slab);
  const napi_status created =
      napi_create_external_arraybuffer(env, slab->data(), slab->size(), DropMemory, owner, &buffer);
  if (created != napi_ok) {
    delete owner;
  } else {
    auto* wrapped = new Holder(std::move(slab));
    if (napi_wrap(env, buffer, wrapped, DropWrapped, nullptr, nullptr) != napi_ok) {
      delete wrapped;
    } else if (napi_type_tag_object(env, buffer, &kSlabTag) == napi_ok) {
      return Napi::Value(env, buffer);
    }
  }
  Napi::Error::New(env, "Node refuses an ArrayBuffer over the slab").ThrowAsJavaScriptException();
  return env.Undefined();
}

void ExportSlab(Napi::Env env, Napi::Object exports) {
  exports.Set("allocateSlab", Napi::Function::New<AllocateSlab>(env, "allocateSlab"));
}

}  // namespace longhorn

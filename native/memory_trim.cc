#include "memory_trim.h"

#include <malloc.h>
#include <sys/mman.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>

#include "addon.h"

namespace longhorn {

namespace {

/** One mapping of /proc/self/smaps, as far as it has been read. */
struct Mapping {
  uintptr_t begin = 0;
  uintptr_t end = 0;
  bool is_program_file = false;
  size_t resident_kib = 0;
};

/** True for a read-only private mapping of a file: `begin-end r-?p offset dev inode /path`. */
bool ParseHeader(const char* line, Mapping* mapping) {
  char permissions[5] = {};
  char path[2] = {};
  uint64_t inode = 0;
  const int fields = std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s %*s %*s %" SCNu64 " %1s",
                                 &mapping->begin, &mapping->end, permissions, &inode, path);
  if (fields < 4) return false;
  mapping->is_program_file = fields == 5 && inode != 0 && path[0] == '/' &&
                             permissions[0] == 'r' && permissions[1] == '-' &&
                             permissions[3] == 'p';
  mapping->resident_kib = 0;
  return true;
}

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

}  // namespace

size_t TrimMemory() {
  malloc_trim(0);
  const std::unique_ptr<std::FILE, FileCloser> smaps(std::fopen("/proc/self/smaps", "re"));
  if (!smaps) return 0;
  size_t released = 0;
  Mapping mapping;
  char line[512];
  while (std::fgets(line, sizeof line, smaps.get()) != nullptr) {
    size_t kib = 0;
    if (std::sscanf(line, "Rss: %zu kB", &kib) == 1) {
      mapping.resident_kib = kib;
    } else if (std::sscanf(line, "Anonymous: %zu kB", &kib) == 1) {
      // Private pages (relocated data) would be lost for good: only wholly clean mappings may go.
      if (kib != 0 || !mapping.is_program_file || mapping.resident_kib == 0) continue;
      void* const begin = reinterpret_cast<void*>(mapping.begin);
      if (::madvise(begin, mapping.end - mapping.begin, MADV_DONTNEED) == 0) {
        released += mapping.resident_kib * 1024;
      }
    } else {
      ParseHeader(line, &mapping);
    }
  }
  return released;
}

void ExportMemoryTrim(Napi::Env env, Napi::Object exports) {
  exports.Set("trimMemory", Napi::Function::New(env, [](const Napi::CallbackInfo& info) {
                return Napi::Number::New(info.Env(), static_cast<double>(TrimMemory()));
              }));
}

}  // namespace longhorn

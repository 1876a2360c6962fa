// The addon: memory, files and sockets for the data path. It knows nothing of volumes or protocols.
#include "addon.h"

namespace {

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  longhorn::ExportSlab(env, exports);
  longhorn::ExportDiskQueue(env, exports);
  longhorn::ExportFileOps(env, exports);
  longhorn::ExportDataSocket(env, exports);
  longhorn::ExportMemoryTrim(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(longhorn, Init)

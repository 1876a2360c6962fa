// Entry points of the addon's parts. Each part keeps its state in objects that JavaScript owns or
// in its own per-environment instance data; nothing is static, so worker threads can load it too.
#pragma once

#include <napi.h>

namespace longhorn {

/** allocateSlab(bytes): ArrayBuffer over page-aligned anonymous memory. */
void ExportSlab(Napi::Env env, Napi::Object exports);
/** class DiskQueue: batched file I/O on io_uring or a thread pool. */
void ExportDiskQueue(Napi::Env env, Napi::Object exports);
/** open, close, truncate, extents, punch and friends as promises. */
void ExportFileOps(Napi::Env env, Napi::Object exports);
/** class SocketSet: batched data sockets on the event loop. */
void ExportDataSocket(Napi::Env env, Napi::Object exports);
/** trimMemory(): gives back what only the start needed; see memory_trim.h. */
void ExportMemoryTrim(Napi::Env env, Napi::Object exports);

}  // namespace longhorn

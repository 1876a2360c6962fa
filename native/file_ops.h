// The control side of files: open, close, size, space, extents, locks. System calls run on libuv's
// pool; their results reach JavaScript as values, never as exceptions.
#pragma once

#include <napi.h>

#include <memory>

#include "file_table.h"

namespace longhorn {

/** The files behind JavaScript's FileTable object; null for any other value. */
std::shared_ptr<FileTable> FilesOf(Napi::Value value);

}  // namespace longhorn

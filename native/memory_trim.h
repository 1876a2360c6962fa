// Gives memory back that a process needed only to start.
#pragma once

#include <cstddef>

namespace longhorn {

/**
 * Returns free heap pages to the kernel and unmaps clean pages of program files: code that only
 * ran at start. What is needed again comes back from the page cache by a minor fault. Mappings
 * that hold anything private are left alone. Returns the bytes of file mappings it let go.
 */
size_t TrimMemory();

}  // namespace longhorn

// Where a file has extents (FIEMAP): allocated, unwritten and delayed ones alike, or unwritten only.
#pragma once

#include <cstdint>
#include <vector>

namespace longhorn {

enum class ExtentKind { kAny, kUnwritten };

/**
 * Appends begin and end of up to `extents_max` extents of [begin, end), ascending, clipped,
 * adjacent ones merged. Blocks. Returns 0 or a negative errno.
 */
int ListExtents(int fd, ExtentKind kind, uint64_t begin, uint64_t end, uint64_t extents_max,
                std::vector<double>* edges);

}  // namespace longhorn

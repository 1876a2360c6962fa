// See extent_map.h.
#include "extent_map.h"

#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace longhorn {

namespace {

constexpr unsigned kBatch = 1024;

int CallFiemap(int fd, fiemap* map) {
  int status;
  do {
    status = ::ioctl(fd, FS_IOC_FIEMAP, map);
  } while (status != 0 && errno == EINTR);
  return status == 0 ? 0 : -errno;
}

}  // namespace

int ListExtents(int fd, ExtentKind kind, uint64_t begin, uint64_t end, uint64_t extents_max,
                std::vector<double>* edges) {
  const size_t bytes = sizeof(fiemap) + kBatch * sizeof(fiemap_extent);
  std::unique_ptr<fiemap, decltype(&std::free)> map(static_cast<fiemap*>(std::malloc(bytes)),
                                                    &std::free);
  if (map == nullptr) return -ENOMEM;
  while (begin < end) {
    std::memset(map.get(), 0, sizeof(fiemap));
    map->fm_start = begin;
    map->fm_length = end - begin;
    map->fm_flags = FIEMAP_FLAG_SYNC;
    map->fm_extent_count = kBatch;
    const int error = CallFiemap(fd, map.get());
    if (error != 0) return error;
    if (map->fm_mapped_extents == 0) return 0;
    for (unsigned i = 0; i < map->fm_mapped_extents; i++) {
      const fiemap_extent& extent = map->fm_extents[i];
      const uint64_t extent_begin = std::max<uint64_t>(extent.fe_logical, begin);
      const uint64_t extent_end = std::min<uint64_t>(extent.fe_logical + extent.fe_length, end);
      const bool is_unwritten = (extent.fe_flags & FIEMAP_EXTENT_UNWRITTEN) != 0;
      if (extent_end > extent_begin) {
        if (kind == ExtentKind::kUnwritten && !is_unwritten) {
          // Left out.
        } else if (!edges->empty() && edges->back() == static_cast<double>(extent_begin)) {
          edges->back() = static_cast<double>(extent_end);
        } else if (edges->size() >= extents_max * 2) {
          return 0;
        } else {
          edges->push_back(static_cast<double>(extent_begin));
          edges->push_back(static_cast<double>(extent_end));
        }
        begin = extent_end;
      }
      if ((extent.fe_flags & FIEMAP_EXTENT_LAST) != 0) return 0;
    }
  }
  return 0;
}

}  // namespace longhorn

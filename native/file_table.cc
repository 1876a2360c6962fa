// See file_table.h. A number is an index with a generation above it.
#include "file_table.h"

#include <cerrno>

namespace longhorn {

namespace {

constexpr uint32_t kIndexBits = 16;
constexpr uint32_t kIndexMask = (1u << kIndexBits) - 1;
constexpr uint32_t kGenerationMask = 0x7fff;

}  // namespace

int32_t FileTable::Add(UniqueFd fd, bool direct) {
  uint32_t index;
  if (!free_.empty()) {
    index = free_.back();
    free_.pop_back();
  } else {
    if (entries_.size() > kIndexMask) return -ENFILE;
    index = static_cast<uint32_t>(entries_.size());
    entries_.emplace_back();
  }
  Entry& entry = entries_[index];
  entry.fd = std::move(fd);
  entry.direct = direct;
  return static_cast<int32_t>(entry.generation << kIndexBits | index);
}

int FileTable::Acquire(int32_t file) {
  Entry* entry = Find(file);
  if (entry == nullptr || entry->waiter != nullptr) return -EBADF;
  entry->in_flight++;
  return entry->fd.get();
}

void FileTable::Release(int32_t file) {
  Entry* entry = Find(file);
  if (--entry->in_flight == 0 && entry->waiter != nullptr) FinishClose(file, entry);
}

bool FileTable::IsDirect(int32_t file) {
  const Entry* entry = Find(file);
  return entry != nullptr && entry->direct;
}

int FileTable::Close(int32_t file, std::unique_ptr<CloseWaiter> waiter) {
  Entry* entry = Find(file);
  if (entry == nullptr || entry->waiter != nullptr) return -EBADF;
  entry->waiter = std::move(waiter);
  if (entry->in_flight == 0) FinishClose(file, entry);
  return 0;
}

FileTable::Entry* FileTable::Find(int32_t file) {
  const uint32_t number = static_cast<uint32_t>(file);
  if (file < 0 || (number & kIndexMask) >= entries_.size()) return nullptr;
  Entry* entry = &entries_[number & kIndexMask];
  return entry->fd.valid() && entry->generation == number >> kIndexBits ? entry : nullptr;
}

void FileTable::FinishClose(int32_t file, Entry* entry) {
  UniqueFd fd = std::move(entry->fd);
  std::unique_ptr<CloseWaiter> waiter = std::move(entry->waiter);
  entry->generation = (entry->generation + 1) & kGenerationMask;
  free_.push_back(static_cast<uint32_t>(file) & kIndexMask);
  waiter.release()->FileIdle(std::move(fd));
}

}  // namespace longhorn

// The open files of an environment, known to JavaScript by number. A file is closed only after
// everything in flight on it has finished, and a number of a closed file never means another one.
// All methods run on the JavaScript thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "unique_fd.h"

namespace longhorn {

/** Told once when a closing file has nothing in flight any more; then deletes itself. */
class CloseWaiter {
 public:
  virtual ~CloseWaiter() = default;
  virtual void FileIdle(UniqueFd fd) = 0;
};

class FileTable {
 public:
  /** Number of the new file, or -ENFILE. */
  int32_t Add(UniqueFd fd, bool direct);
  /** Descriptor, in use until Release(); or -EBADF. */
  int Acquire(int32_t file);
  void Release(int32_t file);
  bool IsDirect(int32_t file);
  /** Refuses Acquire() from now on and tells the waiter when the file is idle; 0 or -EBADF. */
  int Close(int32_t file, std::unique_ptr<CloseWaiter> waiter);

 private:
  struct Entry {
    UniqueFd fd;
    uint32_t generation = 0;
    uint32_t in_flight = 0;
    bool direct = false;
    std::unique_ptr<CloseWaiter> waiter;
  };

  Entry* Find(int32_t file);
  void FinishClose(int32_t file, Entry* entry);

  std::vector<Entry> entries_;
  std::vector<uint32_t> free_;
};

/** A file held open while an operation runs on it. */
class FileLease {
 public:
  FileLease(std::shared_ptr<FileTable> table, int32_t file)
      : table_(std::move(table)), file_(file), fd_(table_->Acquire(file)) {}
  FileLease(const FileLease&) = delete;
  FileLease& operator=(const FileLease&) = delete;
  ~FileLease() {
    if (fd_ >= 0) table_->Release(file_);
  }

  /** Descriptor or -EBADF. */
  int fd() const { return fd_; }

 private:
  std::shared_ptr<FileTable> table_;
  int32_t file_;
  int fd_;
};

}  // namespace longhorn

// See file_ops.h.
#include "file_ops.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>

#include "addon.h"
#include "extent_map.h"
#include "file_task.h"

namespace longhorn {

namespace {

// Marks FileTable objects; random.
constexpr napi_type_tag kFilesTag = {0x2f47d1c09be85a13, 0xc3f2a4960e7d18bb};
constexpr double kSafeIntegerMax = 9007199254740991.0;

template <typename Call>
int64_t Retry(Call call) {
  int64_t result;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result < 0 ? -errno : result;
}

/** A copy for JavaScript; null when the environment is ending. */
template <typename T>
napi_value TypedArray(napi_env env, napi_typedarray_type type, const T* items, size_t count) {
  void* data = nullptr;
  napi_value buffer = nullptr;
  napi_value array = nullptr;
  if (napi_create_arraybuffer(env, count * sizeof(T), &data, &buffer) != napi_ok) return nullptr;
  if (count > 0) std::memcpy(data, items, count * sizeof(T));
  return napi_create_typedarray(env, type, count, buffer, 0, &array) == napi_ok ? array : nullptr;
}

class OpenTask final : public FileTask {
 public:
  OpenTask(napi_env env, std::shared_ptr<FileTable> files, std::string path, int flags, mode_t mode,
           bool direct)
      : FileTask(env),
        files_(std::move(files)),
        path_(std::move(path)),
        flags_(flags),
        mode_(mode),
        direct_(direct) {}

 private:
  void Run() override {
    const int64_t fd = Retry([&] { return ::open(path_.c_str(), flags_ | O_CLOEXEC, mode_); });
    if (fd < 0) {
      error_ = static_cast<int>(fd);
      return;
    }
    fd_ = UniqueFd(static_cast<int>(fd));
    // Asking afterwards instead of in open(): where O_DIRECT is refused, an exclusive open would
    // have created the file all the same.
    if (direct_ && ::fcntl(fd_.get(), F_SETFL, ::fcntl(fd_.get(), F_GETFL) | O_DIRECT) != 0) {
      direct_ = false;
      if (errno != EINVAL) {
        error_ = -errno;
        fd_.Reset();
      }
    }
  }

  napi_value Result(napi_env env) override {
    const int32_t file = error_ != 0 ? error_ : files_->Add(std::move(fd_), direct_);
    return Napi::Number::New(env, file);
  }

  std::shared_ptr<FileTable> files_;
  std::string path_;
  int flags_;
  mode_t mode_;
  bool direct_;
  int error_ = 0;
  UniqueFd fd_;
};

/** Swaps what two names stand for, in one step. */
class ExchangeTask final : public FileTask {
 public:
  ExchangeTask(napi_env env, std::string one, std::string other)
      : FileTask(env), one_(std::move(one)), other_(std::move(other)) {}

 private:
  void Run() override {
    result_ = Retry([&] {
      return ::syscall(SYS_renameat2, AT_FDCWD, one_.c_str(), AT_FDCWD, other_.c_str(),
                       RENAME_EXCHANGE);
    });
  }

  napi_value Result(napi_env env) override {
    return Napi::Number::New(env, static_cast<double>(result_));
  }

  std::string one_;
  std::string other_;
  int64_t result_ = 0;
};

class CloseTask final : public FileTask, public CloseWaiter {
 public:
  using FileTask::FileTask;

  void FileIdle(UniqueFd fd) override {
    fd_ = std::move(fd);
    FileTask::Queue(std::unique_ptr<FileTask>(this));
  }

 private:
  void Run() override {
    // Never retried: Linux frees the descriptor also when close() is interrupted.
    if (::close(fd_.Release()) != 0 && errno != EINTR) error_ = -errno;
  }

  napi_value Result(napi_env env) override { return Napi::Number::New(env, error_); }

  UniqueFd fd_;
  int error_ = 0;
};

/** An operation whose result is one number. */
class NumberTask final : public FileTask {
 public:
  using Call = std::function<int64_t(int fd)>;
  NumberTask(napi_env env, std::unique_ptr<FileLease> lease, Call call)
      : FileTask(env), lease_(std::move(lease)), call_(std::move(call)) {}

 private:
  void Run() override {
    result_ = Retry([&] { return call_(lease_->fd()); });
  }
  napi_value Result(napi_env env) override {
    return Napi::Number::New(env, static_cast<double>(result_));
  }

  std::unique_ptr<FileLease> lease_;
  Call call_;
  int64_t result_ = 0;
};

class StatTask final : public FileTask {
 public:
  StatTask(napi_env env, std::unique_ptr<FileLease> lease)
      : FileTask(env), lease_(std::move(lease)) {}

 private:
  static int64_t Nanoseconds(const timespec& time) {
    return static_cast<int64_t>(time.tv_sec) * 1000000000 + time.tv_nsec;
  }

  void Run() override {
    struct stat status;
    if (::fstat(lease_->fd(), &status) != 0) {
      error_ = -errno;
      return;
    }
    facts_[0] = status.st_size;
    facts_[1] = static_cast<int64_t>(status.st_blocks) * 512;
    facts_[2] = Nanoseconds(status.st_mtim);
    facts_[3] = Nanoseconds(status.st_ctim);
  }

  napi_value Result(napi_env env) override {
    if (error_ != 0) return Napi::Number::New(env, error_);
    return TypedArray(env, napi_bigint64_array, facts_, 4);
  }

  std::unique_ptr<FileLease> lease_;
  int error_ = 0;
  int64_t facts_[4] = {};
};

class ExtentsTask final : public FileTask {
 public:
  ExtentsTask(napi_env env, std::unique_ptr<FileLease> lease, ExtentKind kind, uint64_t begin,
              uint64_t end, uint64_t extents_max)
      : FileTask(env),
        lease_(std::move(lease)),
        kind_(kind),
        begin_(begin),
        end_(end),
        extents_max_(extents_max) {}

 private:
  void Run() override {
    error_ = ListExtents(lease_->fd(), kind_, begin_, end_, extents_max_, &edges_);
  }

  napi_value Result(napi_env env) override {
    if (error_ != 0) return Napi::Number::New(env, error_);
    return TypedArray(env, napi_float64_array, edges_.data(), edges_.size());
  }

  std::unique_ptr<FileLease> lease_;
  ExtentKind kind_;
  uint64_t begin_;
  uint64_t end_;
  uint64_t extents_max_;
  int error_ = 0;
  std::vector<double> edges_;
};

/** JavaScript's FileTable; see src/addon/addon.ts. */
class FileTableObject final : public Napi::ObjectWrap<FileTableObject> {
 public:
  static void Export(Napi::Env env, Napi::Object exports) {
    using Self = FileTableObject;
    exports.Set(
        "FileTable",
        DefineClass(
            env, "FileTable",
            {InstanceMethod<&Self::Open>("open"), InstanceMethod<&Self::IsDirect>("isDirect"),
             InstanceMethod<&Self::Close>("close"), InstanceMethod<&Self::Truncate>("truncate"),
             InstanceMethod<&Self::Sync>("sync"), InstanceMethod<&Self::Allocate>("allocate"),
             InstanceMethod<&Self::Stat>("stat"), InstanceMethod<&Self::Extents>("extents"),
             InstanceMethod<&Self::UnwrittenExtents>("unwrittenExtents"),
             InstanceMethod<&Self::TryLock>("tryLock"),
             InstanceMethod<&Self::Exchange>("exchange")}));
  }

  explicit FileTableObject(const Napi::CallbackInfo& info)
      : ObjectWrap(info), files_(std::make_shared<FileTable>()) {
    napi_type_tag_object(info.Env(), info.This(), &kFilesTag);
  }

  const std::shared_ptr<FileTable>& files() const { return files_; }

 private:
  Napi::Value Open(const Napi::CallbackInfo& info) {
    if (!info[0].IsString()) {
      Napi::TypeError::New(info.Env(), "the path is not a string").ThrowAsJavaScriptException();
      return info.Env().Undefined();
    }
    if (!AreIntegers(info, 1, 2)) return info.Env().Undefined();
    auto task = std::make_unique<OpenTask>(
        info.Env(), files_, info[0].As<Napi::String>(), info[1].As<Napi::Number>().Int32Value(),
        info[2].As<Napi::Number>().Uint32Value(), info[3].ToBoolean());
    return Start(info, std::move(task));
  }

  Napi::Value IsDirect(const Napi::CallbackInfo& info) {
    if (!AreIntegers(info, 0, 1)) return info.Env().Undefined();
    return Napi::Boolean::New(info.Env(), files_->IsDirect(FileOf(info)));
  }

  Napi::Value Close(const Napi::CallbackInfo& info) {
    if (!AreIntegers(info, 0, 1)) return info.Env().Undefined();
    auto task = std::make_unique<CloseTask>(info.Env());
    napi_value promise = task->promise();
    const int error = files_->Close(FileOf(info), std::move(task));
    return Napi::Value(info.Env(), error == 0 ? promise : Fulfilled(info.Env(), error));
  }

  Napi::Value Truncate(const Napi::CallbackInfo& info) {
    if (!AreIntegers(info, 0, 2)) return info.Env().Undefined();
    const int64_t size = Integer(info, 1);
    return Number(info, [size](int fd) { return ::ftruncate(fd, size); });
  }

  Napi::Value Sync(const Napi::CallbackInfo& info) {
    if (!AreIntegers(info, 0, 1)) return info.Env().Undefined();
    const bool data_only = info[1].ToBoolean();
    return Number(info, [data_only](int fd) { return data_only ? ::fdatasync(fd) : ::fsync(fd); });
  }

  Napi::Value Allocate(const Napi::CallbackInfo& info) {
    if (!AreIntegers(info, 0, 3)) return info.Env().Undefined();
    const int64_t offset = Integer(info, 1);
    const int64_t length = Integer(info, 2);
    return Number(info, [offset, length](int fd) { return ::fallocate(fd, 0, offset, length); });
  }

  Napi::Value Stat(const Napi::CallbackInfo& info) {
    if (!AreIntegers(info, 0, 1)) return info.Env().Undefined();
    auto lease = std::make_unique<FileLease>(files_, FileOf(info));
    if (lease->fd() < 0) return Napi::Value(info.Env(), Fulfilled(info.Env(), lease->fd()));
    return Start(info, std::make_unique<StatTask>(info.Env(), std::move(lease)));
  }

  Napi::Value Extents(const Napi::CallbackInfo& info) {
    return ListOf(info, ExtentKind::kAny);
  }

  Napi::Value UnwrittenExtents(const Napi::CallbackInfo& info) {
    return ListOf(info, ExtentKind::kUnwritten);
  }

  Napi::Value ListOf(const Napi::CallbackInfo& info, ExtentKind kind) {
    if (!AreIntegers(info, 0, 4)) return info.Env().Undefined();
    auto lease = std::make_unique<FileLease>(files_, FileOf(info));
    if (lease->fd() < 0) return Napi::Value(info.Env(), Fulfilled(info.Env(), lease->fd()));
    return Start(info,
                 std::make_unique<ExtentsTask>(info.Env(), std::move(lease), kind, Integer(info, 1),
                                               Integer(info, 2), Integer(info, 3)));
  }

  Napi::Value TryLock(const Napi::CallbackInfo& info) {
    if (!AreIntegers(info, 0, 1)) return info.Env().Undefined();
    return Number(info, [](int fd) { return ::flock(fd, LOCK_EX | LOCK_NB); });
  }

  Napi::Value Exchange(const Napi::CallbackInfo& info) {
    if (!info[0].IsString() || !info[1].IsString()) {
      Napi::TypeError::New(info.Env(), "a path is not a string").ThrowAsJavaScriptException();
      return info.Env().Undefined();
    }
    return Start(info, std::make_unique<ExchangeTask>(info.Env(), info[0].As<Napi::String>(),
                                                      info[1].As<Napi::String>()));
  }

  /** Throws a TypeError and returns false unless the arguments are non-negative safe integers. */
  static bool AreIntegers(const Napi::CallbackInfo& info, size_t first, size_t count) {
    for (size_t i = first; i < first + count; i++) {
      const double value = info[i].IsNumber() ? info[i].As<Napi::Number>().DoubleValue() : -1;
      if (value >= 0 && value <= kSafeIntegerMax && value == std::floor(value)) continue;
      Napi::TypeError::New(info.Env(), "argument " + std::to_string(i) + " is not a whole number")
          .ThrowAsJavaScriptException();
      return false;
    }
    return true;
  }

  static int64_t Integer(const Napi::CallbackInfo& info, size_t index) {
    return info[index].As<Napi::Number>().Int64Value();
  }

  static int32_t FileOf(const Napi::CallbackInfo& info) {
    return info[0].As<Napi::Number>().Int32Value();
  }

  static Napi::Value Start(const Napi::CallbackInfo& info, std::unique_ptr<FileTask> task) {
    Napi::Value promise(info.Env(), task->promise());
    FileTask::Queue(std::move(task));
    return promise;
  }

  Napi::Value Number(const Napi::CallbackInfo& info, NumberTask::Call call) {
    auto lease = std::make_unique<FileLease>(files_, FileOf(info));
    if (lease->fd() < 0) return Napi::Value(info.Env(), Fulfilled(info.Env(), lease->fd()));
    return Start(info, std::make_unique<NumberTask>(info.Env(), std::move(lease), std::move(call)));
  }

  std::shared_ptr<FileTable> files_;
};

}  // namespace

std::shared_ptr<FileTable> FilesOf(Napi::Value value) {
  bool tagged = false;
  if (!value.IsObject()) return nullptr;
  if (napi_check_object_type_tag(value.Env(), value, &kFilesTag, &tagged) != napi_ok || !tagged) {
    return nullptr;
  }
  return FileTableObject::Unwrap(value.As<Napi::Object>())->files();
}

void ExportFileOps(Napi::Env env, Napi::Object exports) { FileTableObject::Export(env, exports); }

}  // namespace longhorn

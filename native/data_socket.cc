#include "data_socket.h"

#include <cerrno>
#include <string>
#include <utility>

#include "addon.h"

namespace longhorn {

namespace {

/** Calls the methods of the events object that JavaScript gave. */
class JsSocketEvents : public SocketEvents {
 public:
  JsSocketEvents(Napi::Object events, Napi::ArrayBuffer memory)
      : env_(events.Env()),
        receiver_(Napi::Persistent(events)),
        memory_(Napi::Persistent(memory)),
        connected_(Method(events, "connected")),
        accepted_(Method(events, "accepted")),
        received_(Method(events, "received")),
        sent_(Method(events, "sent")),
        closed_(Method(events, "closed")) {}

  bool IsComplete() const {
    return !connected_.IsEmpty() && !accepted_.IsEmpty() && !received_.IsEmpty() &&
           !sent_.IsEmpty() && !closed_.IsEmpty();
  }

  void Connected(int id, int error) override { CallWith(connected_, id, error); }
  void Received(int id, int bytes) override { CallWith(received_, id, bytes); }
  void Closed(int id, int error) override { CallWith(closed_, id, error); }

  void Sent() override {
    const Napi::HandleScope scope(env_);
    Call(sent_, 0, nullptr);
  }

  void Accepted(int listener_id, int id, const std::string& peer) override {
    const Napi::HandleScope scope(env_);
    const napi_value arguments[] = {Napi::Number::New(env_, listener_id),
                                    Napi::Number::New(env_, id), Napi::String::New(env_, peer)};
    Call(accepted_, 3, arguments);
  }

 private:
  static Napi::FunctionReference Method(const Napi::Object& events, const char* name) {
    const Napi::Value method = events.Get(name);
    if (!method.IsFunction()) return {};
    return Napi::Persistent(method.As<Napi::Function>());
  }

  void CallWith(const Napi::FunctionReference& method, int first, int second) {
    const Napi::HandleScope scope(env_);
    const napi_value arguments[] = {Napi::Number::New(env_, first),
                                    Napi::Number::New(env_, second)};
    Call(method, 2, arguments);
  }

  void Call(const Napi::FunctionReference& method, size_t count, const napi_value* arguments) {
    napi_value result = nullptr;
    const napi_status status = napi_make_callback(env_, nullptr, receiver_.Value(), method.Value(),
                                                  count, arguments, &result);
    if (status == napi_ok) return;
    // Left pending, the exception would hang the connection without a word.
    bool is_pending = false;
    napi_is_exception_pending(env_, &is_pending);
    if (!is_pending) return;  // the environment is ending
    napi_value exception = nullptr;
    napi_get_and_clear_last_exception(env_, &exception);
    napi_fatal_exception(env_, exception);
  }

  const Napi::Env env_;
  Napi::ObjectReference receiver_;
  Napi::Reference<Napi::ArrayBuffer> memory_;  // the hub writes into it
  Napi::FunctionReference connected_;
  Napi::FunctionReference accepted_;
  Napi::FunctionReference received_;
  Napi::FunctionReference sent_;
  Napi::FunctionReference closed_;
};

/** Argument of a cleanup hook; frees itself when the hub is gone. */
struct CleanupHook {
  std::shared_ptr<SocketHub> hub;
  napi_async_cleanup_hook_handle handle = nullptr;
};

void CloseWithEnvironment(Napi::Env env, const std::shared_ptr<SocketHub>& hub) {
  auto* hook = new CleanupHook{hub};
  napi_add_async_cleanup_hook(
      env,
      [](napi_async_cleanup_hook_handle, void* argument) {
        const std::shared_ptr<SocketHub> ending = static_cast<CleanupHook*>(argument)->hub;
        ending->Shutdown();
        // Now, because the references to JavaScript must not outlive the environment.
        ending->DropEvents();
      },
      hook, &hook->handle);
  // The environment waits for this; after an earlier Shutdown() it only forgets the hook.
  hub->OnGone([hook] {
    const std::unique_ptr<CleanupHook> last(hook);
    napi_remove_async_cleanup_hook(last->handle);
  });
}

int IntAt(const Napi::CallbackInfo& info, size_t index) {
  return info[index].IsNumber() ? info[index].As<Napi::Number>().Int32Value() : -1;
}

std::string StringAt(const Napi::CallbackInfo& info, size_t index) {
  return info[index].IsString() ? info[index].As<Napi::String>().Utf8Value() : std::string();
}

/** Arguments of the constructor, the events object and the loop excepted. */
bool ReadOptions(const Napi::CallbackInfo& info, SocketHubOptions* options) {
  if (!info[0].IsArrayBuffer() || !info[4].IsObject()) return false;
  auto memory = info[0].As<Napi::ArrayBuffer>();
  const int lists_offset = IntAt(info, 1);
  const int sockets_max = IntAt(info, 2);
  const int buffer_bytes = IntAt(info, 3);
  if (sockets_max <= 0 || buffer_bytes <= 0 || lists_offset < 0 || lists_offset % 4 != 0) {
    return false;
  }
  const size_t lists_bytes = sizeof(SocketLists) + size_t{2} * sockets_max * sizeof(int32_t);
  if (memory.ByteLength() < lists_offset + lists_bytes) return false;
  options->memory = static_cast<uint8_t*>(memory.Data());
  options->memory_bytes = memory.ByteLength();
  options->lists_offset = static_cast<size_t>(lists_offset);
  options->sockets_max = sockets_max;
  options->buffer_bytes = buffer_bytes;
  return true;
}

}  // namespace

Napi::Function SocketSet::Define(Napi::Env env) {
  return DefineClass(
      env, "SocketSet",
      {InstanceMethod<&SocketSet::ConnectTcp>("connectTcp"),
       InstanceMethod<&SocketSet::ConnectUnix>("connectUnix"),
       InstanceMethod<&SocketSet::ListenTcp>("listenTcp"),
       InstanceMethod<&SocketSet::ListenUnix>("listenUnix"),
       InstanceMethod<&SocketSet::ListenerPort>("listenerPort"),
       InstanceMethod<&SocketSet::CloseListener>("closeListener"),
       InstanceMethod<&SocketSet::Attach>("attach"), InstanceMethod<&SocketSet::Start>("start"),
       InstanceMethod<&SocketSet::Resume>("resume"), InstanceMethod<&SocketSet::Close>("close"),
       InstanceMethod<&SocketSet::Shutdown>("shutdown")});
}

SocketSet::SocketSet(const Napi::CallbackInfo& info) : Napi::ObjectWrap<SocketSet>(info) {
  const Napi::Env env = info.Env();
  SocketHubOptions options{};
  if (!ReadOptions(info, &options)) {
    Napi::TypeError::New(env, "bad memory, list offset or sizes").ThrowAsJavaScriptException();
    return;
  }
  auto events =
      std::make_unique<JsSocketEvents>(info[4].As<Napi::Object>(), info[0].As<Napi::ArrayBuffer>());
  if (!events->IsComplete() || napi_get_uv_event_loop(env, &options.loop) != napi_ok) {
    Napi::TypeError::New(env, "the events object lacks a method").ThrowAsJavaScriptException();
    return;
  }
  hub_ = SocketHub::Create(options, std::move(events));
  CloseWithEnvironment(env, hub_);
}

Napi::Value SocketSet::ConnectTcp(const Napi::CallbackInfo& info) {
  SocketAddress address;
  const int rc = TcpAddress(StringAt(info, 0), IntAt(info, 1), &address);
  return Napi::Number::New(info.Env(), rc != 0 ? rc : hub_->Connect(address));
}

Napi::Value SocketSet::ConnectUnix(const Napi::CallbackInfo& info) {
  SocketAddress address;
  const int rc = UnixAddress(StringAt(info, 0), &address);
  return Napi::Number::New(info.Env(), rc != 0 ? rc : hub_->Connect(address));
}

Napi::Value SocketSet::ListenTcp(const Napi::CallbackInfo& info) {
  SocketAddress address;
  const int rc = TcpAddress(StringAt(info, 0), IntAt(info, 1), &address);
  return Napi::Number::New(info.Env(), rc != 0 ? rc : hub_->Listen(address, ""));
}

Napi::Value SocketSet::ListenUnix(const Napi::CallbackInfo& info) {
  SocketAddress address;
  const std::string path = StringAt(info, 0);
  const int rc = UnixAddress(path, &address);
  return Napi::Number::New(info.Env(), rc != 0 ? rc : hub_->Listen(address, path));
}

Napi::Value SocketSet::ListenerPort(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), hub_->ListenerPort(IntAt(info, 0)));
}

void SocketSet::CloseListener(const Napi::CallbackInfo& info) {
  hub_->CloseListener(IntAt(info, 0));
}

void SocketSet::Attach(const Napi::CallbackInfo& info) {
  const int offset = IntAt(info, 1);
  if (offset >= 0 && hub_->Attach(IntAt(info, 0), static_cast<size_t>(offset))) return;
  Napi::RangeError::New(info.Env(), "no such connection or memory").ThrowAsJavaScriptException();
}

void SocketSet::Start(const Napi::CallbackInfo& info) { hub_->Start(IntAt(info, 0)); }

void SocketSet::Resume(const Napi::CallbackInfo& info) { hub_->Resume(IntAt(info, 0)); }

void SocketSet::Close(const Napi::CallbackInfo& info) { hub_->Close(IntAt(info, 0)); }

void SocketSet::Shutdown(const Napi::CallbackInfo&) { hub_->Shutdown(); }

void ExportDataSocket(Napi::Env env, Napi::Object exports) {
  exports.Set("SocketSet", SocketSet::Define(env));
}

}  // namespace longhorn

// SocketSet: SocketHub for JavaScript. Checks arguments, carries events over, and closes
// everything when the environment ends.
#pragma once

#include <napi.h>

#include <memory>

#include "socket_hub.h"

namespace longhorn {

class SocketSet : public Napi::ObjectWrap<SocketSet> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit SocketSet(const Napi::CallbackInfo& info);

 private:
  Napi::Value ConnectTcp(const Napi::CallbackInfo& info);
  Napi::Value ConnectUnix(const Napi::CallbackInfo& info);
  Napi::Value ListenTcp(const Napi::CallbackInfo& info);
  Napi::Value ListenUnix(const Napi::CallbackInfo& info);
  Napi::Value ListenerPort(const Napi::CallbackInfo& info);
  void CloseListener(const Napi::CallbackInfo& info);
  void Attach(const Napi::CallbackInfo& info);
  void Start(const Napi::CallbackInfo& info);
  void Resume(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);
  void Shutdown(const Napi::CallbackInfo& info);

  std::shared_ptr<SocketHub> hub_;
};

}  // namespace longhorn

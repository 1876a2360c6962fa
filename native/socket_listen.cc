// The listening half of SocketHub.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "socket_hub.h"
#include "socket_hub_sockets.h"

namespace longhorn {

namespace {

constexpr int kAcceptsPerTurnMax = 16;
constexpr uint64_t kAcceptRetryMs = 100;

}  // namespace

int SocketHub::Listen(const SocketAddress& address, const std::string& unix_path) {
  if (is_shut_down_) return -ECANCELED;
  auto listener = std::make_unique<Listener>();
  if (int rc = StartListen(address, options_.buffer_bytes, &listener->fd); rc != 0) return rc;
  if (address.family() == AF_UNIX) listener->file = UnixSocketFile(unix_path);
  if (int rc = uv_poll_init(options_.loop, &listener->poll, listener->fd.get()); rc != 0) {
    listener->file.Remove();
    return rc;
  }
  open_handles_++;
  listener->poll.data = listener.get();
  listener->hub = this;
  listener->family = address.family();
  const auto free_slot = std::find(listeners_.begin(), listeners_.end(), nullptr);
  listener->id = static_cast<int>(free_slot - listeners_.begin());
  if (free_slot == listeners_.end()) listeners_.emplace_back();
  const int id = listener->id;
  listeners_[id] = std::move(listener);
  PollListener(listeners_[id].get());
  return id;
}

void SocketHub::PollListener(Listener* listener) {
  uv_poll_start(&listener->poll, UV_READABLE, [](uv_poll_t* poll, int, int) {
    auto* polled = static_cast<Listener*>(poll->data);
    polled->hub->OnAccept(polled);
  });
}

int SocketHub::ListenerPort(int listener_id) const {
  const bool exists = listener_id >= 0 && listener_id < static_cast<int>(listeners_.size()) &&
                      listeners_[listener_id] != nullptr;
  return exists ? LocalPort(listeners_[listener_id]->fd.get()) : 0;
}

void SocketHub::CloseListener(int listener_id) {
  if (listener_id < 0 || listener_id >= static_cast<int>(listeners_.size())) return;
  std::unique_ptr<Listener>& listener = listeners_[listener_id];
  if (listener == nullptr) return;
  listener->is_closed = true;
  listener->file.Remove();
  CloseHandle(std::move(listener));
}

void SocketHub::OnAccept(Listener* listener) {
  for (int accepts = 0; accepts < kAcceptsPerTurnMax && !listener->is_closed; ++accepts) {
    if (!AcceptOne(listener)) return;
  }
}

bool SocketHub::AcceptOne(Listener* listener) {
  SocketAddress peer;
  peer.length = sizeof(peer.storage);
  auto* name = reinterpret_cast<sockaddr*>(&peer.storage);
  UniqueFd fd(::accept4(listener->fd.get(), name, &peer.length, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd.valid()) {
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      SuspendAccepting(listener);
      return false;
    }
    return errno == EINTR || errno == ECONNABORTED;
  }
  SetStreamOptions(fd.get(), listener->family, options_.buffer_bytes);
  const int id = Add(std::move(fd), false);
  // Beyond the limit the socket is closed by now; the peer sees an orderly end.
  if (id >= 0) events_->Accepted(listener->id, id, DescribePeer(peer));
  return true;
}

void SocketHub::SuspendAccepting(Listener* listener) {
  // Out of descriptors: the waiting peer keeps the listener readable, polling on would spin.
  listener->is_suspended = true;
  uv_poll_stop(&listener->poll);
  uv_timer_start(
      &accept_timer_,
      [](uv_timer_t* timer) { static_cast<SocketHub*>(timer->data)->ResumeAccepting(); },
      kAcceptRetryMs, 0);
}

void SocketHub::ResumeAccepting() {
  for (auto& listener : listeners_) {
    if (listener == nullptr || !listener->is_suspended) continue;
    listener->is_suspended = false;
    PollListener(listener.get());
  }
}

}  // namespace longhorn

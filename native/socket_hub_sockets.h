// The sockets a SocketHub holds; private to its two source files.
#pragma once

#include <memory>
#include <utility>

#include "socket_hub.h"

namespace longhorn {

struct SocketHub::Connection {
  uv_poll_t poll;
  SocketHub* hub;
  UniqueFd fd;
  int id;
  ConnectionBlock* block = nullptr;
  /** Bytes of the first unsent segment that were sent already. */
  size_t partial_bytes = 0;
  /** Events the loop polls for now. */
  int polled_events = 0;
  bool is_connecting = false;
  bool is_started = false;
  bool is_released = false;
  /** The kernel took no more; waits for UV_WRITABLE. */
  bool is_output_blocked = false;
  /** Our half was shut down after the last byte. */
  bool is_output_ended = false;
  /** The peer sends no more; while paused, unread bytes may be left. */
  bool is_input_ended = false;
  /** Paused, and the peer is gone for good: polling would report it without end. */
  bool is_hung_up = false;

  bool ReadsInput() const {
    if (!is_started) return false;
    return block->is_ending ? !is_input_ended : !block->is_paused;
  }
};

struct SocketHub::Listener {
  uv_poll_t poll;
  SocketHub* hub;
  UniqueFd fd;
  int id;
  int family = 0;
  UnixSocketFile file;
  bool is_closed = false;
  bool is_suspended = false;
};

template <typename Owner>
void SocketHub::CloseHandle(std::unique_ptr<Owner> owner) {
  auto* handle = reinterpret_cast<uv_handle_t*>(&owner->poll);
  uv_poll_stop(&owner->poll);
  owner->fd.Reset();
  (void)owner.release();  // until the loop has let go of the handle
  uv_close(handle, [](uv_handle_t* closed) {
    const std::unique_ptr<Owner> last(static_cast<Owner*>(closed->data));
    last->hub->HandleClosed();
  });
}

}  // namespace longhorn

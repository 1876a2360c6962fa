// All data sockets of one environment on its event loop. Received bytes go straight to slab memory
// and queued slab ranges leave in one sendmsg per connection and turn; JavaScript and this class
// share the queues as plain memory, so that nothing crosses N-API per frame. It never calls
// JavaScript itself: SocketEvents does. Everything runs on the loop's thread.
#pragma once

#include <sys/uio.h>
#include <uv.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "socket_address.h"
#include "unique_fd.h"

namespace longhorn {

constexpr uint32_t kSegmentsMax = 4096;

/** A slab range to send; the token is JavaScript's business. */
struct Segment {
  int32_t offset;
  int32_t length;
  int32_t token;
};

/** Shared memory of one connection, in the slab; mirrored by src/transport/connection-memory.ts. */
struct ConnectionBlock {
  int32_t receive_begin;  // free part of the receive buffer
  int32_t receive_end;
  int32_t target_begin;  // where the next target_bytes go instead
  int32_t target_bytes;
  int32_t is_paused;
  int32_t is_ending;      // send what is queued, then close
  uint32_t sent_count;    // segments handed to the kernel, ever; written here
  uint32_t queued_count;  // segments queued, ever
  int32_t is_dirty;       // listed in SocketLists::dirty
  int32_t unused[7];
  Segment ring[kSegmentsMax];
};
static_assert(offsetof(ConnectionBlock, ring) == 64);

/** Head of the set's shared lists, in the slab; the two lists of socket numbers follow. */
struct SocketLists {
  int32_t dirty_count;  // connections to flush; above the maximum: look at all of them
  int32_t sent_count;   // connections that finished segments
  int32_t ids[];        // sockets_max dirty ones, then sockets_max sent ones
};

/** What happens on the sockets. Calls may close any socket, but never wait for the loop. */
class SocketEvents {
 public:
  virtual ~SocketEvents() = default;
  virtual void Connected(int id, int error) = 0;
  virtual void Accepted(int listener_id, int id, const std::string& peer) = 0;
  /** bytes arrived: first in the target, then in the receive buffer. */
  virtual void Received(int id, int bytes) = 0;
  /** SocketLists::sent says which connections finished segments. */
  virtual void Sent() = 0;
  /** The socket is closed already; error 0: the peer's or our own orderly end. */
  virtual void Closed(int id, int error) = 0;
};

struct SocketHubOptions {
  uv_loop_t* loop;
  uint8_t* memory;
  size_t memory_bytes;
  size_t lists_offset;
  int sockets_max;
  int buffer_bytes;
};

class SocketHub {
 public:
  /** Lives until Shutdown() and the last handle's close, whoever holds it. */
  static std::shared_ptr<SocketHub> Create(const SocketHubOptions& options,
                                           std::unique_ptr<SocketEvents> events);
  ~SocketHub();
  SocketHub(const SocketHub&) = delete;
  SocketHub& operator=(const SocketHub&) = delete;

  /** A connection's number (Connected follows) or a negative errno. */
  int Connect(const SocketAddress& address);
  /** A listener's number or a negative errno. */
  int Listen(const SocketAddress& address, const std::string& unix_path);
  int ListenerPort(int listener_id) const;
  void CloseListener(int listener_id);

  /** Gives a connection its ConnectionBlock; false when there is none or the offset is bad. */
  bool Attach(int id, size_t block_offset);
  /** Begins to read. */
  void Start(int id);
  /** Polls for input again after is_paused was cleared. */
  void Resume(int id);
  /** Closes now; no event follows. */
  void Close(int id);

  /** Closes everything; no event follows. */
  void Shutdown();
  /** `gone` runs after Shutdown(), when the loop holds nothing of the hub any more. */
  void OnGone(std::function<void()> gone) { gone_ = std::move(gone); }
  /** After Shutdown(), when no event is being delivered: frees SocketEvents before the hub. */
  void DropEvents();

 private:
  struct Connection;
  struct Listener;

  SocketHub(const SocketHubOptions& options, std::unique_ptr<SocketEvents> events);

  int Add(UniqueFd fd, bool is_connecting);
  Connection* Find(int id) const;
  void Release(Connection* connection);
  void Fail(Connection* connection, int error);
  template <typename Owner>
  void CloseHandle(std::unique_ptr<Owner> owner);
  void HandleClosed();
  bool InMemory(int64_t offset, int64_t length) const;

  void OnPoll(Connection* connection, int status, int events);
  void FinishConnect(Connection* connection);
  void UpdatePolling(Connection* connection);
  int WantedEvents(const Connection* connection) const;

  void ReadInput(Connection* connection);
  int InputVectors(const ConnectionBlock& block, iovec (&vectors)[2]) const;
  void DiscardInput(Connection* connection);
  void LookAtPausedInput(Connection* connection);

  void FlushDirty();
  void TakeDirty();
  void PollRemaining();
  void Flush(Connection* connection);
  int FillVectors(const Connection* connection);
  void Advance(Connection* connection, size_t bytes);
  void EndIfFlushed(Connection* connection);
  void NoteSent(int id);

  void PollListener(Listener* listener);
  void OnAccept(Listener* listener);
  bool AcceptOne(Listener* listener);
  void SuspendAccepting(Listener* listener);
  void ResumeAccepting();

  const SocketHubOptions options_;
  std::unique_ptr<SocketEvents> events_;
  SocketLists* const lists_;
  std::shared_ptr<SocketHub> self_;
  std::function<void()> gone_;
  int open_handles_ = 0;
  bool is_shut_down_ = false;

  uv_prepare_t flush_hook_;
  uv_timer_t accept_timer_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::vector<int> free_ids_;
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::vector<int> flushing_;
  std::array<iovec, 1024> vectors_;
};

}  // namespace longhorn

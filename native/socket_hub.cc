#include "socket_hub.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "socket_hub_sockets.h"

namespace longhorn {

namespace {

// A busy connection gives way to the others after this many reads.
constexpr int kReadsPerTurnMax = 4;
// Bytes read beyond a target. Little, because the next frame's payload would have to be copied
// out of the receive buffer, while a further read costs about as much as copying this.
constexpr size_t kBeyondTargetBytesMax = 16 * 1024;
// JavaScript may queue more while it learns what was sent; after this the loop polls in between.
constexpr int kFlushRoundsMax = 8;

int SocketError(int fd) {
  int error = 0;
  socklen_t length = sizeof(error);
  return ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 ? error : errno;
}

bool WouldBlock(int error) { return error == EAGAIN || error == EWOULDBLOCK; }

const uint8_t* EndOf(const iovec& vector) {
  return static_cast<const uint8_t*>(vector.iov_base) + vector.iov_len;
}

size_t TotalBytes(const iovec* vectors, int count) {
  size_t total = 0;
  for (int i = 0; i < count; ++i) total += vectors[i].iov_len;
  return total;
}

}  // namespace

SocketHub::SocketHub(const SocketHubOptions& options, std::unique_ptr<SocketEvents> events)
    : options_(options),
      events_(std::move(events)),
      lists_(reinterpret_cast<SocketLists*>(options.memory + options.lists_offset)),
      connections_(options.sockets_max) {
  for (int id = options.sockets_max - 1; id >= 0; --id) free_ids_.push_back(id);
  uv_prepare_init(options.loop, &flush_hook_);
  flush_hook_.data = this;
  uv_prepare_start(&flush_hook_,
                   [](uv_prepare_t* hook) { static_cast<SocketHub*>(hook->data)->FlushDirty(); });
  // Connections keep the loop alive, the hook alone must not.
  uv_unref(reinterpret_cast<uv_handle_t*>(&flush_hook_));
  uv_timer_init(options.loop, &accept_timer_);
  accept_timer_.data = this;
  open_handles_ = 2;
}

SocketHub::~SocketHub() = default;

std::shared_ptr<SocketHub> SocketHub::Create(const SocketHubOptions& options,
                                             std::unique_ptr<SocketEvents> events) {
  std::shared_ptr<SocketHub> hub(new SocketHub(options, std::move(events)));
  hub->self_ = hub;
  return hub;
}

// Life of sockets

int SocketHub::Connect(const SocketAddress& address) {
  UniqueFd fd;
  if (int rc = StartConnect(address, options_.buffer_bytes, &fd); rc != 0) return rc;
  return Add(std::move(fd), true);
}

int SocketHub::Add(UniqueFd fd, bool is_connecting) {
  if (is_shut_down_) return -ECANCELED;
  if (free_ids_.empty()) return -EMFILE;
  auto connection = std::make_unique<Connection>();
  if (int rc = uv_poll_init(options_.loop, &connection->poll, fd.get()); rc != 0) return rc;
  open_handles_++;
  connection->poll.data = connection.get();
  connection->hub = this;
  connection->fd = std::move(fd);
  connection->id = free_ids_.back();
  connection->is_connecting = is_connecting;
  free_ids_.pop_back();
  Connection* added = connection.get();
  connections_[added->id] = std::move(connection);
  UpdatePolling(added);
  return added->id;
}

SocketHub::Connection* SocketHub::Find(int id) const {
  return id >= 0 && id < options_.sockets_max ? connections_[id].get() : nullptr;
}

bool SocketHub::InMemory(int64_t offset, int64_t length) const {
  const auto size = static_cast<int64_t>(options_.memory_bytes);
  return offset >= 0 && length >= 0 && offset <= size - length;
}

bool SocketHub::Attach(int id, size_t block_offset) {
  Connection* connection = Find(id);
  if (connection == nullptr || block_offset % 64 != 0) return false;
  if (!InMemory(static_cast<int64_t>(block_offset), sizeof(ConnectionBlock))) return false;
  connection->block = reinterpret_cast<ConnectionBlock*>(options_.memory + block_offset);
  return true;
}

void SocketHub::Start(int id) {
  Connection* connection = Find(id);
  if (connection == nullptr || connection->block == nullptr) return;
  connection->is_started = true;
  UpdatePolling(connection);
}

void SocketHub::Resume(int id) {
  Connection* connection = Find(id);
  if (connection == nullptr || connection->block == nullptr) return;
  // Reading finds the end again, after the bytes before it.
  connection->is_input_ended = false;
  connection->is_hung_up = false;
  UpdatePolling(connection);
}

void SocketHub::Close(int id) {
  if (Connection* connection = Find(id)) Release(connection);
}

void SocketHub::Release(Connection* connection) {
  connection->is_released = true;
  free_ids_.push_back(connection->id);
  CloseHandle(std::move(connections_[connection->id]));
}

void SocketHub::Fail(Connection* connection, int error) {
  const int id = connection->id;
  Release(connection);
  events_->Closed(id, error);
}

void SocketHub::Shutdown() {
  if (is_shut_down_) return;
  is_shut_down_ = true;
  for (auto& connection : connections_) {
    if (connection != nullptr) Release(connection.get());
  }
  for (size_t id = 0; id < listeners_.size(); ++id) CloseListener(static_cast<int>(id));
  for (auto* handle : {reinterpret_cast<uv_handle_t*>(&flush_hook_),
                       reinterpret_cast<uv_handle_t*>(&accept_timer_)}) {
    uv_close(handle,
             [](uv_handle_t* closed) { static_cast<SocketHub*>(closed->data)->HandleClosed(); });
  }
}

void SocketHub::DropEvents() { events_.reset(); }

void SocketHub::HandleClosed() {
  if (--open_handles_ > 0 || !is_shut_down_) return;
  const std::shared_ptr<SocketHub> last = std::move(self_);
  DropEvents();
  if (gone_) gone_();
}

// Polling

int SocketHub::WantedEvents(const Connection* connection) const {
  if (connection->is_connecting) return UV_WRITABLE;
  const int output = connection->is_output_blocked ? UV_WRITABLE : 0;
  if (!connection->is_started) return output;
  if (connection->ReadsInput()) return output | UV_READABLE;
  if (connection->block->is_ending || connection->is_hung_up) return output;
  // Paused: errors and hang-ups are reported whatever is asked for, but something must be.
  return output | (connection->is_input_ended ? UV_PRIORITIZED : UV_DISCONNECT);
}

void SocketHub::UpdatePolling(Connection* connection) {
  const int wanted = WantedEvents(connection);
  if (wanted == connection->polled_events) return;
  connection->polled_events = wanted;
  uv_poll_start(&connection->poll, wanted, [](uv_poll_t* poll, int status, int events) {
    auto* polled = static_cast<Connection*>(poll->data);
    polled->hub->OnPoll(polled, status, events);
  });
}

void SocketHub::OnPoll(Connection* connection, int status, int events) {
  // After POLLERR libuv has stopped the handle.
  if (status < 0) connection->polled_events = 0;
  if (connection->is_connecting) {
    FinishConnect(connection);
    return;
  }
  if ((events & UV_WRITABLE) != 0) {
    connection->is_output_blocked = false;
    lists_->sent_count = 0;
    Flush(connection);
    if (lists_->sent_count > 0) events_->Sent();
    if (connection->is_released) return;
  }
  if (connection->ReadsInput()) {
    ReadInput(connection);
  } else if (status < 0) {
    const int error = SocketError(connection->fd.get());
    Fail(connection, connection->is_output_ended ? 0 : error != 0 ? error : ECONNRESET);
  } else if ((events & (UV_DISCONNECT | UV_PRIORITIZED)) != 0) {
    LookAtPausedInput(connection);
  }
  if (!connection->is_released) UpdatePolling(connection);
}

void SocketHub::FinishConnect(Connection* connection) {
  const int id = connection->id;
  const int error = SocketError(connection->fd.get());
  connection->is_connecting = false;
  if (error != 0) {
    Release(connection);
  } else {
    UpdatePolling(connection);
  }
  events_->Connected(id, error);
}

// Receiving

int SocketHub::InputVectors(const ConnectionBlock& block, iovec (&vectors)[2]) const {
  int count = 0;
  const auto free_bytes = int64_t{block.receive_end} - block.receive_begin;
  if (!InMemory(block.receive_begin, free_bytes)) return -EFAULT;
  auto buffer_bytes = static_cast<size_t>(free_bytes);
  if (block.target_bytes != 0) {
    if (!InMemory(block.target_begin, block.target_bytes)) return -EFAULT;
    vectors[count++] = {options_.memory + block.target_begin,
                        static_cast<size_t>(block.target_bytes)};
    buffer_bytes = std::min(buffer_bytes, kBeyondTargetBytesMax);
  }
  if (buffer_bytes > 0) vectors[count++] = {options_.memory + block.receive_begin, buffer_bytes};
  return count > 0 ? count : -EFAULT;
}

void SocketHub::ReadInput(Connection* connection) {
  const ConnectionBlock& block = *connection->block;
  for (int reads = 0; reads < kReadsPerTurnMax && connection->ReadsInput(); ++reads) {
    if (block.is_ending) {
      DiscardInput(connection);
      return;
    }
    iovec vectors[2];
    const int count = InputVectors(block, vectors);
    if (count < 0) {
      Fail(connection, -count);
      return;
    }
    msghdr message{};
    message.msg_iov = vectors;
    message.msg_iovlen = count;
    const ssize_t received = ::recvmsg(connection->fd.get(), &message, MSG_DONTWAIT);
    if (received < 0 && errno == EINTR) continue;
    if (received <= 0) {
      const int error = received == 0 ? 0 : errno;
      if (!WouldBlock(error)) Fail(connection, error);
      return;
    }
    events_->Received(connection->id, static_cast<int>(received));
    if (connection->is_released) return;
    if (static_cast<size_t>(received) < TotalBytes(vectors, count)) return;
  }
}

void SocketHub::DiscardInput(Connection* connection) {
  // The peer must be able to finish sending, or it would never read our last bytes.
  std::array<uint8_t, 64 * 1024> waste;
  const ssize_t received = ::recv(connection->fd.get(), waste.data(), waste.size(), MSG_DONTWAIT);
  if (received > 0 || (received < 0 && (WouldBlock(errno) || errno == EINTR))) return;
  if (received < 0 || connection->is_output_ended) {
    Fail(connection, connection->is_output_ended ? 0 : errno);
    return;
  }
  connection->is_input_ended = true;
}

void SocketHub::LookAtPausedInput(Connection* connection) {
  if (const int error = SocketError(connection->fd.get()); error != 0) {
    Fail(connection, error);
    return;
  }
  uint8_t next;
  const ssize_t unread = ::recv(connection->fd.get(), &next, 1, MSG_PEEK | MSG_DONTWAIT);
  if (unread == 0 || (unread < 0 && !WouldBlock(errno) && errno != EINTR)) {
    Fail(connection, unread == 0 ? 0 : errno);
    return;
  }
  // Bytes are left to read before the end: they are, after Resume().
  if (connection->is_input_ended) connection->is_hung_up = true;
  connection->is_input_ended = true;
}

// Sending

void SocketHub::FlushDirty() {
  for (int round = 0; round < kFlushRoundsMax && lists_->dirty_count > 0; ++round) {
    lists_->sent_count = 0;
    TakeDirty();
    for (const int id : flushing_) {
      Connection* connection = Find(id);
      if (connection != nullptr && connection->block != nullptr) Flush(connection);
      if (is_shut_down_) return;
    }
    if (lists_->sent_count > 0) events_->Sent();
    if (is_shut_down_) return;
  }
  if (lists_->dirty_count > 0) PollRemaining();
}

void SocketHub::TakeDirty() {
  flushing_.clear();
  if (lists_->dirty_count <= options_.sockets_max) {
    flushing_.assign(lists_->ids, lists_->ids + lists_->dirty_count);
  } else {
    for (int id = 0; id < options_.sockets_max; ++id) flushing_.push_back(id);
  }
  lists_->dirty_count = 0;
}

void SocketHub::PollRemaining() {
  // Writable sockets end the coming poll at once, so that timers and other handles get their turn.
  TakeDirty();
  for (const int id : flushing_) {
    Connection* connection = Find(id);
    if (connection == nullptr || connection->block == nullptr) continue;
    connection->block->is_dirty = 0;
    connection->is_output_blocked = true;
    UpdatePolling(connection);
  }
}

int SocketHub::FillVectors(const Connection* connection) {
  const ConnectionBlock& block = *connection->block;
  size_t skip = connection->partial_bytes;
  int count = 0;
  for (uint32_t at = block.sent_count; at != block.queued_count; ++at) {
    if (count == static_cast<int>(vectors_.size())) break;
    const Segment& segment = block.ring[at % kSegmentsMax];
    if (!InMemory(segment.offset, segment.length)) return -EFAULT;
    if (static_cast<size_t>(segment.length) <= skip) return -EFAULT;
    uint8_t* begin = options_.memory + segment.offset + skip;
    const size_t bytes = segment.length - skip;
    skip = 0;
    // Headers that follow each other in memory, as those of short replies do, leave as one range.
    if (count > 0 && EndOf(vectors_[count - 1]) == begin) {
      vectors_[count - 1].iov_len += bytes;
    } else {
      vectors_[count++] = {begin, bytes};
    }
  }
  return count;
}

void SocketHub::Advance(Connection* connection, size_t bytes) {
  ConnectionBlock& block = *connection->block;
  size_t done = connection->partial_bytes + bytes;
  while (block.sent_count != block.queued_count) {
    const auto length = static_cast<size_t>(block.ring[block.sent_count % kSegmentsMax].length);
    if (done < length) break;
    done -= length;
    block.sent_count++;
  }
  connection->partial_bytes = done;
}

void SocketHub::Flush(Connection* connection) {
  ConnectionBlock& block = *connection->block;
  block.is_dirty = 0;
  const uint32_t sent_before = block.sent_count;
  int error = 0;
  while (error == 0 && !connection->is_output_blocked && block.sent_count != block.queued_count) {
    const int count = FillVectors(connection);
    if (count < 0) {
      error = -count;
      break;
    }
    msghdr message{};
    message.msg_iov = vectors_.data();
    message.msg_iovlen = count;
    const ssize_t sent = ::sendmsg(connection->fd.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && !WouldBlock(errno)) {
      error = errno;
    } else if (sent < 0) {
      connection->is_output_blocked = true;
    } else {
      Advance(connection, static_cast<size_t>(sent));
      const size_t offered = TotalBytes(vectors_.data(), count);
      connection->is_output_blocked = static_cast<size_t>(sent) < offered;
    }
  }
  if (block.sent_count != sent_before) NoteSent(connection->id);
  if (error != 0) {
    Fail(connection, error);
    return;
  }
  EndIfFlushed(connection);
  if (!connection->is_released) UpdatePolling(connection);
}

void SocketHub::EndIfFlushed(Connection* connection) {
  const ConnectionBlock& block = *connection->block;
  if (!block.is_ending || block.sent_count != block.queued_count) return;
  if (connection->is_output_ended) return;
  ::shutdown(connection->fd.get(), SHUT_WR);
  connection->is_output_ended = true;
  // Closing while the peer still sends would reset the connection, and the peer lose our last
  // bytes: wait for its end, or for JavaScript's patience to run out.
  if (connection->is_input_ended || !connection->is_started) Fail(connection, 0);
}

void SocketHub::NoteSent(int id) {
  if (lists_->sent_count < options_.sockets_max) {
    lists_->ids[options_.sockets_max + lists_->sent_count++] = id;
  }
}

}  // namespace longhorn

// Stream sockets as the data path wants them: non-blocking, no delay, large buffers, keep-alive.
// Functions return 0 or a negative errno value and know nothing of event loops.
#pragma once

#include <sys/socket.h>

#include <string>

#include "unique_fd.h"

namespace longhorn {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }
};

/** A numeric IPv4 or IPv6 address (scope allowed); names are resolved before. */
int TcpAddress(const std::string& ip, int port, SocketAddress* address);
/** -ENAMETOOLONG above 107 bytes. */
int UnixAddress(const std::string& path, SocketAddress* address);

/** Begins a connection; the socket becomes writable when it is decided. */
int StartConnect(const SocketAddress& address, int buffer_bytes, UniqueFd* socket);

/**
 * A listening socket. A unix socket gets mode 0600, and a file that nobody serves any more is
 * replaced; -EADDRINUSE when it is served or is no socket.
 */
int StartListen(const SocketAddress& address, int buffer_bytes, UniqueFd* socket);

/** Accepted sockets inherit neither all options nor buffers on every family: sets them. */
void SetStreamOptions(int fd, int family, int buffer_bytes);

/** Port of a TCP socket, 0 for others. */
int LocalPort(int fd);
/** "ip:port", or "" for a unix socket. */
std::string DescribePeer(const SocketAddress& address);

/** Which file a bound unix socket is, to remove that one and no other when it closes. */
class UnixSocketFile {
 public:
  UnixSocketFile() = default;
  /** The file at this path just after bind(). */
  explicit UnixSocketFile(std::string path);
  void Remove();

 private:
  std::string path_;
  unsigned long long device_ = 0;
  unsigned long long inode_ = 0;
};

}  // namespace longhorn

#include "socket_address.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

namespace longhorn {

namespace {

constexpr int kListenBacklog = 128;
// Longhorn's peers: Go's net package probes after 15 s idle, every 15 s, 9 times.
constexpr int kKeepAliveIdleSeconds = 15;
constexpr int kKeepAliveIntervalSeconds = 15;
constexpr int kKeepAliveProbes = 9;

void SetOption(int fd, int level, int name, int value) {
  // Tuning only: a refused option leaves a slower but correct socket.
  (void)::setsockopt(fd, level, name, &value, sizeof(value));
}

void SetBuffer(int fd, int force_name, int name, int bytes) {
  // The forced kind passes the system's limit, but needs CAP_NET_ADMIN.
  if (::setsockopt(fd, SOL_SOCKET, force_name, &bytes, sizeof(bytes)) != 0) {
    SetOption(fd, SOL_SOCKET, name, bytes);
  }
}

int OpenStream(int family, int buffer_bytes, UniqueFd* socket) {
  UniqueFd fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return -errno;
  SetStreamOptions(fd.get(), family, buffer_bytes);
  *socket = std::move(fd);
  return 0;
}

int Connect(int fd, const SocketAddress& address) {
  int rc;
  do {
    rc = ::connect(fd, address.get(), address.length);
  } while (rc != 0 && errno == EINTR);
  return rc == 0 || errno == EINPROGRESS ? 0 : -errno;
}

const char* PathOf(const SocketAddress& address) {
  return reinterpret_cast<const sockaddr_un*>(&address.storage)->sun_path;
}

/** True when the path is a socket that refuses connections: its server died. */
bool IsStale(const SocketAddress& address) {
  struct stat status;
  if (::lstat(PathOf(address), &status) != 0 || !S_ISSOCK(status.st_mode)) return false;
  UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return probe.valid() && Connect(probe.get(), address) == -ECONNREFUSED;
}

int Bind(int fd, const SocketAddress& address) {
  return ::bind(fd, address.get(), address.length) == 0 ? 0 : -errno;
}

}  // namespace

int TcpAddress(const std::string& ip, int port, SocketAddress* address) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(ip.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return -EINVAL;
  std::memcpy(&address->storage, found->ai_addr, found->ai_addrlen);
  address->length = found->ai_addrlen;
  ::freeaddrinfo(found);
  return 0;
}

int UnixAddress(const std::string& path, SocketAddress* address) {
  auto* unix_address = reinterpret_cast<sockaddr_un*>(&address->storage);
  if (path.size() >= sizeof(unix_address->sun_path)) return -ENAMETOOLONG;
  if (path.empty() || path.find('\0') != std::string::npos) return -EINVAL;
  unix_address->sun_family = AF_UNIX;
  std::memcpy(unix_address->sun_path, path.c_str(), path.size() + 1);
  address->length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
  return 0;
}

int StartConnect(const SocketAddress& address, int buffer_bytes, UniqueFd* socket) {
  UniqueFd fd;
  if (int rc = OpenStream(address.family(), buffer_bytes, &fd); rc != 0) return rc;
  if (int rc = Connect(fd.get(), address); rc != 0) return rc;
  *socket = std::move(fd);
  return 0;
}

int StartListen(const SocketAddress& address, int buffer_bytes, UniqueFd* socket) {
  UniqueFd fd;
  if (int rc = OpenStream(address.family(), buffer_bytes, &fd); rc != 0) return rc;
  const bool is_unix = address.family() == AF_UNIX;
  if (is_unix) {
    // Before bind(), the mode of the socket is the mode its file will get: no moment is open to
    // all.
    if (::fchmod(fd.get(), 0600) != 0) return -errno;
  } else {
    SetOption(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  }
  int rc = Bind(fd.get(), address);
  if (rc == -EADDRINUSE && is_unix && IsStale(address)) {
    if (::unlink(PathOf(address)) != 0 && errno != ENOENT) return -errno;
    rc = Bind(fd.get(), address);
  }
  if (rc != 0) return rc;
  if (::listen(fd.get(), kListenBacklog) != 0) return -errno;
  *socket = std::move(fd);
  return 0;
}

void SetStreamOptions(int fd, int family, int buffer_bytes) {
  SetBuffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, buffer_bytes);
  SetBuffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, buffer_bytes);
  if (family == AF_UNIX) return;
  SetOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  SetOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, kKeepAliveIdleSeconds);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, kKeepAliveIntervalSeconds);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPCNT, kKeepAliveProbes);
}

int LocalPort(int fd) {
  SocketAddress address;
  address.length = sizeof(address.storage);
  auto* name = reinterpret_cast<sockaddr*>(&address.storage);
  if (::getsockname(fd, name, &address.length) != 0) return 0;
  if (address.family() == AF_INET) {
    return ntohs(reinterpret_cast<sockaddr_in*>(&address.storage)->sin_port);
  }
  if (address.family() == AF_INET6) {
    return ntohs(reinterpret_cast<sockaddr_in6*>(&address.storage)->sin6_port);
  }
  return 0;
}

std::string DescribePeer(const SocketAddress& address) {
  if (address.family() != AF_INET && address.family() != AF_INET6) return "";
  char host[NI_MAXHOST];
  char port[NI_MAXSERV];
  const int rc = ::getnameinfo(address.get(), address.length, host, sizeof(host), port,
                               sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV);
  return rc == 0 ? std::string(host) + ":" + port : "";
}

UnixSocketFile::UnixSocketFile(std::string path) : path_(std::move(path)) {
  struct stat status;
  if (::lstat(path_.c_str(), &status) != 0) {
    path_.clear();
    return;
  }
  device_ = status.st_dev;
  inode_ = status.st_ino;
}

void UnixSocketFile::Remove() {
  if (path_.empty()) return;
  struct stat status;
  const bool is_ours =
      ::lstat(path_.c_str(), &status) == 0 && status.st_dev == device_ && status.st_ino == inode_;
  // Another process may have taken the path over since; its socket must stay.
  if (is_ours) ::unlink(path_.c_str());
  path_.clear();
}

}  // namespace longhorn

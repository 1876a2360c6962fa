// See errno_name.h.
#include "errno_name.h"

#include <cerrno>
#include <cstring>

namespace longhorn {

const char* ErrnoName(int error) { return ::strerrorname_np(error); }

}  // namespace longhorn

// Names of errno values, for error details and logs.
#pragma once

namespace longhorn {

/** "ENOSPC" for 28; null when unknown. */
const char* ErrnoName(int error);

}  // namespace longhorn

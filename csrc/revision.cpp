// The sources and the compiler this module was built from, as CMakeLists.txt hashes them.
#include "freehold.h"

namespace fh {

const char* revision() { return FREEHOLD_REVISION; }

}  // namespace fh

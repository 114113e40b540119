// Which kernels run here.
#pragma once

#include "kernels.h"

namespace gdn {

// The kernels of a path (GDN_PATH_BEST: the widest), or null where this build or CPU lacks it.
const Kernels *kernels_for(int64_t path);
int64_t best_path();

}  // namespace gdn

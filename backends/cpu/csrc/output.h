// Rows of the output that no sequence writes.
#pragma once

#include <cstring>

#include "gdn_cpu.h"

namespace gdn {

// Tokens [first, end) of a packed batch; the rows of `out` are contiguous.
inline void zero_output(const gdn_problem &p, int64_t first, int64_t end) {
    const int64_t size = p.out.dtype == GDN_FLOAT32 ? 4 : 2, row = p.out.token * size;
    if (first >= end) return;
    std::memset((char *)p.out.data + first * row, 0, (size_t)((end - first) * row));
}

}  // namespace gdn

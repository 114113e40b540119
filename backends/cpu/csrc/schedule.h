// A call's sequences, cut into shares and handed to threads.
#pragma once

#include <vector>

#include "kernels.h"

namespace gdn {

// What one call works on. The vectors are those of the calling thread and keep their memory.
struct Plan {
    std::vector<Sequence> sequences;
    std::vector<Mark> marks;
    std::vector<LineMark> line_marks;

    void clear() {
        sequences.clear();
        marks.clear();
        line_marks.clear();
    }
};

// Run every sequence of `plan`, which has at least one token each. Returns a gdn_status.
int64_t run(const Kernels &kernels, const Plan &plan, Batch batch);

}  // namespace gdn

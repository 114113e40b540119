// What the scheduler knows of the kernels: what they take, and a table of them for each instruction
// set. Included by code of every instruction set, so it holds data only: an inline function here
// would be compiled several times, and the linker may keep the copy this CPU cannot run.
#pragma once

#include "gdn_cpu.h"

namespace gdn {

constexpr int kChunk = 32;    // bf16 products: 8 to 12 % faster than 64 where it was measured
constexpr int kMaxSteps = 8;  // longest sequence that takes steps rather than a chunk
constexpr int kMaxWidth = 8;  // of the convolution
constexpr int64_t kAlignment = 64;

// Where a sequence's state goes after some of its tokens.
struct Mark {
    int64_t after;  // tokens
    char *state;    // [HV, K, V] in the strides of Batch::target; null: only steps over it
};

// Where W-1 (or, for drafts, more) columns of the convolution's input before a token go.
struct LineMark {
    int64_t after;
    int64_t columns;
    char *line;  // [channel, column]
};

// One sequence of a call.
struct Sequence {
    int64_t batch, start, length;
    bool stepwise;      // token by token; otherwise marks fall on multiples of kChunk and the end
    const char *state;  // before its first token; null: zeros
    const char *line;   // first of the W-1 columns before its first token; null: zeros
    int64_t first_mark, last_mark;            // in Batch::marks, rising
    int64_t first_line_mark, last_line_mark;  // in Batch::line_marks, the line itself last
};

// The causal convolution in front of the recurrence; width 0 where there is none.
struct Convolution {
    int64_t width, silu;
    gdn_tensor weight, bias, lines;
    const float *taps;  // [W, D] followed by bias [D], in order of q | k | v channels
};

struct Batch {
    const gdn_problem *problem;
    Convolution conv;
    gdn_states source, target;  // strides and dtypes of the states read and written
    const Sequence *sequences;
    const Mark *marks;
    const LineMark *line_marks;
    int64_t most_columns;  // of a line mark
    bool from_memory;      // the call's states are more than caches hold
};

// A share of the work: one sequence, one key head, some column panels of its value heads' states; or,
// where it takes steps, all panels of some key heads in a row: at most kChunk tokens of all of them.
struct Share {
    int64_t sequence, key_head, num_key_heads;
    int64_t first_panel, last_panel;  // of each key head
};

struct Kernels {
    const char *name;
    int64_t panel;  // columns of a state that a share can be cut at
    int64_t (*scratch_size)(const Batch *);
    void (*run_chunks)(const Batch *, const Share *, char *scratch);
    void (*run_steps)(const Batch *, const Share *, char *scratch);
    // Taps and bias of one key head's channels as fp32 rows, into conv.taps.
    void (*prepare_taps)(const Batch *, int64_t key_head, float *taps);
    // The lines a sequence leaves behind, channels of one key head.
    void (*save_lines)(const Batch *, int64_t sequence, int64_t key_head, char *scratch);
};

}  // namespace gdn

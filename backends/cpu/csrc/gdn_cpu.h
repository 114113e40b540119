// The C interface of the CPU kernels: pointers, strides and numbers; nothing of Python or torch.
//
// Every member of every struct is eight bytes wide, so that a caller in another language can lay
// one out without knowing this compiler. Strides are in elements. Nothing is kept between calls but
// scratch memory, one block a calling thread, which only grows to the size of the largest call.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GDN_API __attribute__((visibility("default")))

enum gdn_dtype { GDN_ABSENT = 0, GDN_FLOAT32 = 1, GDN_BFLOAT16 = 2, GDN_FLOAT16 = 3 };

// Instruction sets, from the plainest; what a path needs is in dispatch.cpp.
enum gdn_path {
    GDN_PATH_BEST = 0,
    GDN_PATH_PORTABLE = 1,
    GDN_PATH_AVX2 = 2,
    GDN_PATH_AVX512 = 3,
    GDN_PATH_AVX512_BF16 = 4,
};

enum gdn_status {
    GDN_OK = 0,
    GDN_NO_MEMORY = 1,
    GDN_NO_SUCH_PATH = 2,       // compiled without it, or this CPU lacks it
    GDN_BAD_WRITE_SLOT = 3,     // state_indices: `value` is the slot, `limit` the slots there are
    GDN_BAD_READ_SLOT = 4,      // initial_state_indices
    GDN_BAD_CHECKPOINT = 5,     // checkpoint_indices
    GDN_BAD_ACCEPTED = 6,       // num_accepted_tokens: `value` not in 1..`limit`
};

// What went wrong, and where; nothing has been written by then.
typedef struct {
    int64_t row, value, limit;
} gdn_fault;

// A tensor seen as [batch, token, key head, value head of that key head, channel]. Dimensions that
// a tensor does not have are stepped over by no one: q has no fourth, g no fifth.
typedef struct {
    void *data;
    int64_t dtype;
    int64_t batch, token, group, head, channel;
} gdn_tensor;

// A pool or list of states [slot, value head, K, V]; strides of K and V say which comes first.
typedef struct {
    void *data;
    int64_t dtype;
    int64_t slots;
    int64_t slot, head, k, v;
} gdn_states;

// What the recurrence of a call reads, whoever calls it.
typedef struct {
    int64_t num_heads, num_v_heads, head_dim_k, head_dim_v;
    int64_t l2norm;          // normalise q and k over K first
    int64_t beta_is_logit;
    int64_t allow_neg_eigval;
    int64_t recurrent;       // token by token, whatever the length
    int64_t exact;           // no bf16 products, whatever the inputs
    int64_t path;            // gdn_path
    int64_t num_threads;
    double scale;
    gdn_tensor q, k, v;
    gdn_tensor g, beta;      // g: natural-log decay, or the raw gate where A_log is given
    gdn_tensor A_log, dt_bias;
    gdn_tensor out;
} gdn_problem;

// gated_delta_rule: sequences of a dense batch, or packed ones where `starts` is given.
typedef struct {
    gdn_problem problem;
    int64_t num_seqs, num_tokens;  // tokens of each dense sequence; rows of a packed batch
    const int32_t *starts;         // [num_seqs + 1] or null
    gdn_states initial, final;     // one slot a sequence
} gdn_rule_call;

// One integer of each row [N] or [N, columns]; bits is 32 or 64, or 8 for bools; null: not given.
typedef struct {
    const void *data;
    int64_t bits, row, column;
} gdn_row_numbers;

typedef struct {
    gdn_problem problem;           // q, k, v are what the convolution reads
    int64_t num_seqs, num_tokens;  // num_tokens: rows of `out`
    const int32_t *starts;
    const uint8_t *speculative;    // [num_seqs] or null
    gdn_row_numbers write, read, has_initial, accepted;
    int64_t columns;               // of write and read
    int64_t pad_slot;
    int64_t num_checkpoints;
    const int32_t *checkpoint_rows, *checkpoint_offsets, *checkpoint_slots;
    gdn_states states;
    gdn_tensor lines;              // conv lines: batch = slot, channel, token = column
    int64_t line_slots;
    gdn_tensor weight;             // [D, W]: channel, token = tap
    gdn_tensor bias;               // [D]
    int64_t width;                 // W
    int64_t silu;
} gdn_layer_call;

// Chunk tables of some block sizes, and conv tiles.
typedef struct {
    int64_t num_seqs;
    const int64_t *sizes;
    int64_t num_sizes;
    int64_t tile;  // tokens per conv tile; 0: none
} gdn_tables_call;

// Widest instruction set this CPU and this build have, as gdn_path.
GDN_API int64_t gdn_best_path(void);
// Whether a path can be asked for here.
GDN_API int64_t gdn_has_path(int64_t path);
// Tokens a chunk; checkpoints fall on its multiples.
GDN_API int64_t gdn_chunk_size(void);
// Bytes of the structs, for callers that lay them out themselves.
GDN_API int64_t gdn_rule_call_size(void);
GDN_API int64_t gdn_layer_call_size(void);
GDN_API int64_t gdn_tables_call_size(void);

GDN_API int64_t gdn_rule(const gdn_rule_call *call);
GDN_API int64_t gdn_layer(const gdn_layer_call *call, gdn_fault *fault);

// Chunks of every size, then tiles, then sequences that have tokens, into counts[num_sizes + 2].
GDN_API void gdn_count_tables(const gdn_tables_call *call, const int32_t *seq_lens,
                              int64_t *counts);
// `places`: first words in `flat` of chunk_indices of every size, then of chunk_offsets,
// update_chunk_offsets and final_chunk_indices, then of the tiles' sequences and offsets.
GDN_API void gdn_write_tables(const gdn_tables_call *call, const int32_t *seq_lens,
                              const int64_t *places, int32_t *flat);

#ifdef __cplusplus
}
#endif

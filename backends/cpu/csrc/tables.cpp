// Tables of chunks and convolution tiles, as the core's numpy writes them; see
// gdn_dispatch/plan/chunks.py for the formulas.
#include "gdn_cpu.h"

namespace {

int64_t blocks(int64_t length, int64_t size) { return (length + size - 1) / size; }

// Pairs [q, i], i < count, for the q-th sequence that has tokens.
int32_t *write_pairs(int32_t *to, int32_t q, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        to[2 * i] = q;
        to[2 * i + 1] = (int32_t)i;
    }
    return to + 2 * count;
}

// `place`: that of chunk_indices of this size; those of its other tables follow, num_sizes apart.
void write_table(const gdn_tables_call &call, int64_t size, const int64_t *place, int32_t *flat) {
    const int64_t next = call.num_sizes;
    int32_t *indices = flat + place[0], *offsets = flat + place[next];
    int32_t *updates = flat + place[2 * next], *finals = flat + place[3 * next];
    int32_t q = 0;
    int64_t total = 0;
    offsets[0] = updates[0] = 0;
    for (int64_t s = 0; s < call.num_seqs; ++s) {
        const int64_t count = blocks(call.seq_lens[s], size);
        indices = write_pairs(indices, q, count);
        q += count > 0;
        total += count;
        offsets[s + 1] = (int32_t)total;
        updates[s + 1] = (int32_t)(total + s + 1);
        finals[s] = (int32_t)(total + s);
    }
}

void write_tiles(const gdn_tables_call &call, int32_t *sequences, int32_t *offsets) {
    for (int64_t s = 0; s < call.num_seqs; ++s) {
        const int64_t count = blocks(call.seq_lens[s], call.tile);
        for (int64_t i = 0; i < count; ++i) sequences[i] = (int32_t)s;
        for (int64_t i = 0; i < count; ++i) offsets[i] = (int32_t)i;
        sequences += count, offsets += count;
    }
}

}  // namespace

extern "C" void gdn_count_tables(const gdn_tables_call *call, int64_t *counts) {
    for (int64_t b = 0; b < call->num_sizes; ++b) {
        counts[b] = 0;
        for (int64_t s = 0; s < call->num_seqs; ++s)
            counts[b] += blocks(call->seq_lens[s], call->sizes[b]);
    }
    int64_t &tiles = counts[call->num_sizes], &nonempty = counts[call->num_sizes + 1];
    tiles = nonempty = 0;
    for (int64_t s = 0; s < call->num_seqs; ++s) {
        if (call->tile) tiles += blocks(call->seq_lens[s], call->tile);
        nonempty += call->seq_lens[s] > 0;
    }
}

extern "C" void gdn_write_tables(const gdn_tables_call *call, const int64_t *places,
                                 int32_t *flat) {
    for (int64_t b = 0; b < call->num_sizes; ++b)
        write_table(*call, call->sizes[b], places + b, flat);
    const int64_t *tiles = places + 4 * call->num_sizes;
    if (call->tile) write_tiles(*call, flat + tiles[0], flat + tiles[1]);
}

extern "C" int64_t gdn_tables_call_size(void) { return sizeof(gdn_tables_call); }

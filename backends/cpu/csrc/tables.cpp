// Tables of chunks and convolution tiles, as the core's numpy writes them; see
// gdn_dispatch/plan/chunks.py for the formulas.
#include "gdn_cpu.h"

namespace {

// ceil(length / size) without a division: exact for 32-bit numbers (Lemire, Kaser and Kurz, "Faster
// remainder by direct computation", arXiv 1902.01961).
class Blocks {
public:
    explicit Blocks(int64_t size)
        : most_((uint64_t)size - 1), reciprocal_(size > 1 ? UINT64_MAX / (uint64_t)size + 1 : 0) {}

    int64_t of(int32_t length) const {
        const uint64_t n = (uint64_t)length + most_;
        return (int64_t)(reciprocal_ ? (uint64_t)((unsigned __int128)reciprocal_ * n >> 64) : n);
    }

private:
    uint64_t most_, reciprocal_;
};

int64_t count_blocks(const gdn_tables_call &call, const int32_t *seq_lens, int64_t size) {
    int64_t count = 0;
    if ((size & (size - 1)) == 0) {  // a loop of shifts takes vectors, one of long products none
        const uint32_t most = (uint32_t)size - 1;
        const int bits = __builtin_ctzll((uint64_t)size);
        for (int64_t s = 0; s < call.num_seqs; ++s) count += ((uint32_t)seq_lens[s] + most) >> bits;
        return count;
    }
    const Blocks blocks(size);
    for (int64_t s = 0; s < call.num_seqs; ++s) count += blocks.of(seq_lens[s]);
    return count;
}

// Four words at a time, past the last one too where the next row or table entry comes over it: most
// rows have a few chunks, and loops of one word for what is left of a vector would cost the most. As
// many as most rows have are written without asking how many there are: nothing to predict wrongly.
typedef int32_t Four __attribute__((vector_size(16)));

inline void put(int32_t *to, Four words) { __builtin_memcpy(to, &words, sizeof words); }

// Pairs [q, i], i < count; `end`: of the table.
inline void write_pairs(int32_t *to, const int32_t *end, int32_t q, int64_t count) {
    constexpr int64_t always = 8;
    if (end - to < 2 * (count > always ? count : always) + 2) {
        for (int32_t i = 0; i < count; ++i) to[2 * i] = q, to[2 * i + 1] = i;
        return;
    }
    Four pairs = {q, 0, q, 1};
    for (int64_t i = 0; i < always; i += 2, pairs += Four{0, 2, 0, 2}) put(to + 2 * i, pairs);
    for (int64_t i = always; i < count; i += 2, pairs += Four{0, 2, 0, 2}) put(to + 2 * i, pairs);
}

// Tiles [s, i], i < count, as two arrays; `left`: words to their ends.
inline void write_row(int32_t *sequences, int32_t *offsets, int64_t left, int32_t s,
                      int64_t count) {
    constexpr int64_t always = 32;
    if (left < (count > always ? count : always) + 3) {
        for (int32_t i = 0; i < count; ++i) sequences[i] = s, offsets[i] = i;
        return;
    }
    const Four same = {s, s, s, s};
    Four numbers = {0, 1, 2, 3};
    for (int64_t i = 0; i < always; i += 4, numbers += 4) {
        put(sequences + i, same);
        put(offsets + i, numbers);
    }
    for (int64_t i = always; i < count; i += 4, numbers += 4) {
        put(sequences + i, same);
        put(offsets + i, numbers);
    }
}

// `place`: that of chunk_indices of this size; those of its other tables follow, num_sizes apart.
void write_table(const gdn_tables_call &call, const int32_t *seq_lens, int64_t size,
                 const int64_t *place, int32_t *flat) {
    const int64_t next = call.num_sizes;
    const Blocks blocks(size);
    int32_t *indices = flat + place[0], *offsets = flat + place[next];
    int32_t *updates = flat + place[2 * next], *finals = flat + place[3 * next];
    const int32_t *end = indices + 2 * count_blocks(call, seq_lens, size);
    int32_t q = 0;  // number among the sequences that have tokens
    int64_t total = 0;
    offsets[0] = updates[0] = 0;
    for (int64_t s = 0; s < call.num_seqs; ++s) {
        const int64_t count = blocks.of(seq_lens[s]);
        write_pairs(indices + 2 * total, end, q, count);
        q += count > 0;
        total += count;
        offsets[s + 1] = (int32_t)total;
        updates[s + 1] = (int32_t)(total + s + 1);
        finals[s] = (int32_t)(total + s);
    }
}

void write_tiles(const gdn_tables_call &call, const int32_t *seq_lens, int32_t *sequences,
                 int32_t *offsets) {
    const Blocks blocks(call.tile);
    int64_t left = count_blocks(call, seq_lens, call.tile);
    for (int64_t s = 0; s < call.num_seqs; ++s) {
        const int64_t count = blocks.of(seq_lens[s]);
        write_row(sequences, offsets, left, (int32_t)s, count);
        sequences += count, offsets += count, left -= count;
    }
}

}  // namespace

extern "C" void gdn_count_tables(const gdn_tables_call *call, const int32_t *seq_lens,
                                 int64_t *counts) {
    for (int64_t b = 0; b < call->num_sizes; ++b)
        *counts++ = count_blocks(*call, seq_lens, call->sizes[b]);
    *counts++ = call->tile ? count_blocks(*call, seq_lens, call->tile) : 0;
    *counts = 0;
    for (int64_t s = 0; s < call->num_seqs; ++s) *counts += seq_lens[s] > 0;
}

extern "C" void gdn_write_tables(const gdn_tables_call *call, const int32_t *seq_lens,
                                 const int64_t *places, int32_t *flat) {
    for (int64_t b = 0; b < call->num_sizes; ++b)
        write_table(*call, seq_lens, call->sizes[b], places + b, flat);
    const int64_t *tiles = places + 4 * call->num_sizes;
    if (call->tile) write_tiles(*call, seq_lens, flat + tiles[0], flat + tiles[1]);
}

extern "C" int64_t gdn_tables_call_size(void) { return sizeof(gdn_tables_call); }

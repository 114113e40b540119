// Scratch memory of the chunk form, and operands laid out for its register tiles.
//
// `Single` takes fp32 operands, `Pairs` words of two bf16 numbers; see products.h.
#pragma once

#include "inputs.h"
#include "products.h"

namespace gdn {
namespace GDN_PATH {

// Row coefficients of one value head in one chunk, [kChunk] each.
struct Coefficients {
    float beta[kChunk];
    float from_state[kChunk];   // of (K S)_i in X: -beta 2^G, and what normalises the key
    float from_query[kChunk];   // of (Q S)_i in O: 2^G, scale, and what normalises the query
    float to_end[kChunk];       // of X_j in S: 2^(G_C - G_j), and what normalises the key
    float whole;                // 2^G_C
};

template <class Kind>
struct ChunkScratch {
    typedef typename Kind::Element Element;
    Block block;
    Element *keys, *queries;    // [kChunk / kLanes][width / kTerms][kLanes]: tokens innermost
    Element *key_rows;          // [kChunk / kTerms][width]
    Element *state;             // [panel][width / kTerms][kPanel]; with Single the state itself
    Element *update;            // [kChunk / kTerms][kPanel]
    float *master;              // [panel][width][kPanel]: the state
    float *key_dots, *query_dots;     // [kChunk][kChunk] K K^T and scale Q K^T
    float *system, *attention;        // [value head][kChunk][kChunk] -A and P
    Coefficients *coefficients;       // [value head]
};

GDN_INLINE void pack_rows(const float *rows, int64_t width, int64_t tokens, float *packed) {
    for (int64_t t = 0; t < tokens; t += kLanes, packed += width * kLanes)
        for (int64_t k = 0; k < width; k += kLanes)
            transpose_tile(rows + t * width + k, width, packed + k * kLanes, kLanes);
}

GDN_STAGE inline void pack(ChunkScratch<Single> &s, int64_t tokens) {
    pack_rows(s.block.keys, s.block.width, tokens, s.keys);
    pack_rows(s.block.queries, s.block.width, tokens, s.queries);
    s.key_rows = s.block.keys;
}

GDN_INLINE void pack_state(ChunkScratch<Single> &, int64_t) {}

// Rows of X weighted by what of them survives to the end of the chunk; none past its n tokens.
GDN_INLINE void store_update(ChunkScratch<Single> &s, const Tile<2> &x, const Coefficients &c,
                             int64_t row, int64_t) {
    GDN_UNROLL
    for (int m = 0; m < kRows; ++m)
        GDN_UNROLL
        for (int v = 0; v < 2; ++v)
            store(s.update + (row + m) * kPanel + v * kLanes, x.sums[m][v] * c.to_end[row + m]);
}

// Rows of a panel's state, from `row` on.
GDN_INLINE void store_state(ChunkScratch<Single> &s, const Tile<2> &rows, int64_t panel,
                            int64_t row) {
    rows.store_rows(s.master + (panel * s.block.width + row) * kPanel, kPanel);
}

#if defined(__AVX512BF16__)
inline void pack_rows(float *rows, int64_t width, int64_t tokens, uint32_t *packed) {
    // Rows of words first, in place; the numbers are bf16 numbers, so nothing is lost.
    const int64_t words = width / 2;
    uint32_t *narrow = (uint32_t *)rows;
    for (int64_t i = 0; i < tokens * words; i += kLanes) {
        const __m512 low = _mm512_loadu_ps(rows + 2 * i), high = _mm512_loadu_ps(rows + 2 * i + 16);
        store(narrow + i, (Words)_mm512_cvtne2ps_pbh(high, low));
    }
    for (int64_t t = 0; t < tokens; t += kLanes, packed += words * kLanes)
        for (int64_t k = 0; k < words; k += kLanes)
            transpose_tile(narrow + t * words + k, words, packed + k * kLanes, kLanes);
}

GDN_STAGE inline void pack(ChunkScratch<Pairs> &s, int64_t tokens) {
    const int64_t width = s.block.width;
    for (int64_t t = 0; t < tokens; t += 2)
        for (int64_t k = 0; k < width; k += kLanes)
            store(s.key_rows + t / 2 * width + k, pair(load(s.block.keys + t * width + k),
                                                       load(s.block.keys + (t + 1) * width + k)));
    pack_rows(s.block.keys, width, tokens, s.keys);
    pack_rows(s.block.queries, width, tokens, s.queries);
}

GDN_STAGE inline void pack_state(ChunkScratch<Pairs> &s, int64_t panel) {
    const float *from = s.master + panel * s.block.width * kPanel;
    uint32_t *to = s.state + panel * s.block.width / 2 * kPanel;
    for (int64_t k = 0; k < s.block.width; k += 2)
        for (int64_t v = 0; v < kPanel; v += kLanes)
            store(to + k / 2 * kPanel + v,
                  pair(load(from + k * kPanel + v), load(from + (k + 1) * kPanel + v)));
}

GDN_INLINE void store_update(ChunkScratch<Pairs> &s, const Tile<2> &x, const Coefficients &c,
                             int64_t row, int64_t n) {
    GDN_UNROLL
    for (int m = 0; m < kRows; m += 2)
        GDN_UNROLL
        for (int v = 0; v < 2; ++v) {
            const Floats even = x.sums[m][v] * c.to_end[row + m];
            const Floats odd = row + m + 1 < n ? x.sums[m + 1][v] * c.to_end[row + m + 1] : Floats{};
            store(s.update + (row + m) / 2 * kPanel + v * kLanes, pair(even, odd));
        }
}

GDN_INLINE void store_state(ChunkScratch<Pairs> &s, const Tile<2> &rows, int64_t panel,
                            int64_t row) {
    rows.store_rows(s.master + (panel * s.block.width + row) * kPanel, kPanel);
    uint32_t *pairs = s.state + (panel * s.block.width + row) / 2 * kPanel;
    GDN_UNROLL
    for (int m = 0; m < kRows; m += 2)
        GDN_UNROLL
        for (int v = 0; v < 2; ++v)
            store(pairs + m / 2 * kPanel + v * kLanes, pair(rows.sums[m][v], rows.sums[m + 1][v]));
}
#endif

}  // namespace GDN_PATH
}  // namespace gdn

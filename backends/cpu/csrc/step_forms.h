// One token's work on a strip of a state, in the two orders states lie in.
//
//     [m; p] = [k; q] S      d = beta (v - e^g m)      o = e^g p + (q . k) d      S = e^g S + k d^T
//
// The state is by far the largest operand: it is read from memory once for both products, and once
// more from cache to be updated.
#pragma once

#include "simd.h"

namespace gdn {
namespace GDN_PATH {

// Some columns of a state (of V), as rows `row` apart: rows of V, or rows of K.
struct Rows {
    float *data;  // null: zeros to read, nothing to write
    int64_t row;
};

// One token as a strip of N vectors of columns sees it.
template <int N>
struct Token {
    const float *key, *query;  // normalised, the query times scale
    float decay, beta, key_query;
    Floats value[N];
};

// V innermost: N vectors of columns down K rows. N sums for each product stay in registers.
template <int N>
struct RowsOfV {
    static constexpr int kVectors = N;

    static int64_t scratch_row(int64_t) { return N * kLanes; }

    static GDN_INLINE void step(const Rows &from, const Rows &to, int64_t K, const Token<N> &token,
                                Floats (&output)[N]) {
        Floats memory[N] = {}, answer[N] = {}, d[N];
        if (from.data)
            for (int64_t k = 0; k < K; ++k)
                GDN_UNROLL
                for (int n = 0; n < N; ++n) {
                    const Floats s = load(from.data + k * from.row + n * kLanes);
                    memory[n] = fma(token.key[k], s, memory[n]);
                    answer[n] = fma(token.query[k], s, answer[n]);
                }
        GDN_UNROLL
        for (int n = 0; n < N; ++n) {
            d[n] = token.beta * fma(-token.decay, memory[n], token.value[n]);
            output[n] = fma(token.decay, answer[n], token.key_query * d[n]);
        }
        if (!to.data) return;
        for (int64_t k = 0; k < K; ++k)
            GDN_UNROLL
            for (int n = 0; n < N; ++n) {
                Floats next = token.key[k] * d[n];
                if (from.data)
                    next = fma(token.decay, load(from.data + k * from.row + n * kLanes), next);
                store(to.data + k * to.row + n * kLanes, next);
            }
    }
};

// K innermost, a multiple of kLanes: kLanes rows at a time, whose sums become vectors of V. With
// Width vectors a row, key and query stay in registers; 0: any number, and they are loaded again.
template <int Width>
struct RowsOfK {
    static constexpr int kVectors = 2;

    static int64_t scratch_row(int64_t width) { return width; }

    // A row of K numbers, in registers where there is room for it.
    struct Row {
        const float *from;
        Floats held[Width ? Width : 1];

        explicit GDN_INLINE Row(const float *numbers) : from(numbers) {
            GDN_UNROLL
            for (int i = 0; i < Width; ++i) held[i] = load(from + i * kLanes);
        }
        GDN_INLINE Floats at(int64_t i) const { return Width ? held[i] : load(from + i * kLanes); }
    };

    // Row by row, as they lie in memory: rows side by side would load key and query less often, but
    // states come from memory, and its prefetchers follow one stream.
    static GDN_INLINE void dots(const float *state, int64_t row, int64_t vectors, const Row &key,
                                const Row &query, Floats (&memory)[kLanes],
                                Floats (&answer)[kLanes]) {
        for (int i = 0; i < kLanes; ++i) {
            Floats m{}, a{};
            GDN_UNROLL
            for (int64_t k = 0; k < (Width ? Width : vectors); ++k) {
                const Floats s = load(state + i * row + k * kLanes);
                m = fma(key.at(k), s, m);
                a = fma(query.at(k), s, a);
            }
            memory[i] = m, answer[i] = a;
        }
    }

    static GDN_INLINE void step(const Rows &from, const Rows &to, int64_t K, const Token<2> &token,
                                Floats (&output)[2]) {
        const int64_t vectors = K / kLanes;
        const Row key(token.key);
        for (int n = 0; n < 2; ++n) {
            const float *old = from.data ? from.data + n * kLanes * from.row : nullptr;
            Floats memory[kLanes] = {}, answer[kLanes] = {};
            if (old) dots(old, from.row, vectors, key, Row(token.query), memory, answer);
            const Floats d = token.beta * fma(-token.decay, sums(memory), token.value[n]);
            output[n] = fma(token.decay, sums(answer), token.key_query * d);
            if (!to.data) continue;
            for (int i = 0; i < kLanes; ++i) {
                float *next = to.data + (n * kLanes + i) * to.row;
                GDN_UNROLL
                for (int64_t k = 0; k < (Width ? Width : vectors); ++k) {
                    Floats s = key.at(k) * d[i];
                    if (old) s = fma(token.decay, load(old + i * from.row + k * kLanes), s);
                    store(next + k * kLanes, s);
                }
            }
        }
    }
};

}  // namespace GDN_PATH
}  // namespace gdn

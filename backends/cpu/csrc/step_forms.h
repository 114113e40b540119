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

    static GDN_INLINE void step(const Rows &from, const Rows &to, bool from_memory, int64_t K,
                                const Token<N> &token, Floats (&output)[N]) {
        Floats memory[N] = {}, answer[N] = {}, d[N];
        if (from.data)
            for (int64_t k = 0; k < K; ++k) {
                // A few lines of pages to come: hardware prefetchers, which stop where a page ends,
                // fetch the others. States in a cache lose by it.
                if (from_memory)
                    for (int n = 0; n < N && n < 2; ++n)
                        __builtin_prefetch(from.data + (k + 16) * from.row + n * kLanes, 0, 2);
                const Floats key = keep(splat(token.key[k])), query = keep(splat(token.query[k]));
                GDN_UNROLL
                for (int n = 0; n < N; ++n) {
                    const Floats s = keep(load(from.data + k * from.row + n * kLanes));
                    memory[n] = fma(key, s, memory[n]);
                    answer[n] = fma(query, s, answer[n]);
                }
            }
        GDN_UNROLL
        for (int n = 0; n < N; ++n) {
            d[n] = token.beta * fma(-token.decay, memory[n], token.value[n]);
            output[n] = fma(token.decay, answer[n], token.key_query * d[n]);
        }
        if (!to.data) return;
        for (int64_t k = 0; k < K; ++k) {
            const Floats key = keep(splat(token.key[k]));
            GDN_UNROLL
            for (int n = 0; n < N; ++n) {
                Floats next = key * d[n];
                if (from.data)
                    next = fma(token.decay, load(from.data + k * from.row + n * kLanes), next);
                store(to.data + k * to.row + n * kLanes, next);
            }
        }
    }
};

// K innermost, a multiple of kLanes: kLanes rows at a time, whose sums become vectors of V. With
// Width vectors a row, key and query stay in registers; 0: any number, and they are loaded again.
template <int Width, int N>
struct RowsOfK {
    static constexpr int kVectors = N;

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

    struct Sums {
        Floats memory, answer;
    };

    // Sums over the lanes of 2^Level rows, row by row as they lie in memory, merged as they come.
    template <int Level>
    static GDN_INLINE Sums dots(const float *state, int64_t row, int64_t vectors, const Row &key,
                                const Row &query) {
        if constexpr (Level == 0) {
            Sums s = {};
            GDN_UNROLL
            for (int64_t k = 0; k < (Width ? Width : vectors); ++k) {
                const Floats x = keep(load(state + k * kLanes));
                s.memory = fma(key.at(k), x, s.memory);
                s.answer = fma(query.at(k), x, s.answer);
            }
            return s;
        } else {
            constexpr int half = 1 << (Level - 1);
            const Sums a = dots<Level - 1>(state, row, vectors, key, query);
            const Sums b = dots<Level - 1>(state + half * row, row, vectors, key, query);
            return {merge<Level - 1>(a.memory, b.memory), merge<Level - 1>(a.answer, b.answer)};
        }
    }

    static GDN_INLINE void step(const Rows &from, const Rows &to, bool, int64_t K,
                                const Token<N> &token, Floats (&output)[N]) {
        const int64_t vectors = K / kLanes;
        const Row key(token.key);
        for (int n = 0; n < N; ++n) {
            const float *old = from.data ? from.data + n * kLanes * from.row : nullptr;
            Sums s = {};
            if (old) s = dots<kLevels>(old, from.row, vectors, key, Row(token.query));
            const Floats d = token.beta * fma(-token.decay, s.memory, token.value[n]);
            output[n] = fma(token.decay, s.answer, token.key_query * d);
            if (!to.data) continue;
            for (int i = 0; i < kLanes; ++i) {
                float *next = to.data + (n * kLanes + i) * to.row;
                const Floats change = keep(splat(d[i]));
                // The rows behind these, or the next head's: an update has loads to spare, and
                // hardware prefetchers stop where a page ends: every eighth row of 512 bytes.
                if (old)
                    GDN_UNROLL
                    for (int64_t k = 0; k < Width; ++k)
                        __builtin_prefetch(old + (kLanes + i) * from.row + k * kLanes, 0, 3);
                GDN_UNROLL
                for (int64_t k = 0; k < (Width ? Width : vectors); ++k) {
                    Floats s = key.at(k) * change;
                    if (old) s = fma(token.decay, load(old + i * from.row + k * kLanes), s);
                    store(next + k * kLanes, s);
                }
            }
        }
    }
};

}  // namespace GDN_PATH
}  // namespace gdn

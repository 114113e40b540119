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

// K innermost, a multiple of kLanes: kLanes rows at a time, whose sums become vectors of V.
struct RowsOfK {
    static constexpr int kVectors = 2;

    static int64_t scratch_row(int64_t width) { return width; }

    // Lane i of the result is the sum over the lanes of sums[i]: a transposition that adds.
    static GDN_INLINE Floats add_up(Floats (&sums)[kLanes]) {
        add_pairs<1>(sums);
        add_pairs<2>(sums);
        if constexpr (kLanes > 4) add_pairs<4>(sums);
        if constexpr (kLanes > 8) add_pairs<8>(sums);
        return sums[0];
    }

    template <int Step>
    static GDN_INLINE void add_pairs(Floats (&sums)[kLanes]) {
        GDN_UNROLL
        for (int i = 0; i < kLanes / (2 * Step); ++i) {
            Floats a = sums[2 * i], b = sums[2 * i + 1];
            exchange<Step>(a, b, std::make_integer_sequence<int, kLanes>{});
            sums[i] = a + b;
        }
    }

    // Row by row, as they lie in memory: rows side by side would load key and query less often, but
    // states come from memory, and its prefetchers follow one stream.
    static GDN_INLINE void dots(const float *state, int64_t row, int64_t K, const Token<2> &token,
                                Floats (&memory)[kLanes], Floats (&answer)[kLanes]) {
        for (int i = 0; i < kLanes; ++i) {
            Floats m{}, a{};
            for (int64_t k = 0; k < K && state; k += kLanes) {
                const Floats s = load(state + i * row + k);
                m = fma(load(token.key + k), s, m);
                a = fma(load(token.query + k), s, a);
            }
            memory[i] = m, answer[i] = a;
        }
    }

    static GDN_INLINE void step(const Rows &from, const Rows &to, int64_t K, const Token<2> &token,
                                Floats (&output)[2]) {
        for (int n = 0; n < 2; ++n) {
            const float *old = from.data ? from.data + n * kLanes * from.row : nullptr;
            Floats memory[kLanes], answer[kLanes];
            dots(old, from.row, K, token, memory, answer);
            const Floats d = token.beta * fma(-token.decay, add_up(memory), token.value[n]);
            output[n] = fma(token.decay, add_up(answer), token.key_query * d);
            if (!to.data) continue;
            for (int i = 0; i < kLanes; ++i) {
                float *next = to.data + (n * kLanes + i) * to.row;
                for (int64_t k = 0; k < K; k += kLanes) {
                    Floats s = load(token.key + k) * d[i];
                    if (old) s = fma(token.decay, load(old + i * from.row + k), s);
                    store(next + k, s);
                }
            }
        }
    }
};

}  // namespace GDN_PATH
}  // namespace gdn

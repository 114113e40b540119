// Register tiles: kRows x N vectors of sums, kept in registers over the whole of a product.
//
// Operands come in one of two kinds. `Single` multiplies fp32 numbers. `Pairs` multiplies words of
// two bf16 numbers that are neighbours in the reduced dimension, two products an element
// (VDPBF16PS): products of bf16 numbers are exact in fp32, so what a product loses is only what
// rounding its operands to bf16 lost before.
#pragma once

#include "simd.h"

namespace gdn {
namespace GDN_PATH {

struct Single {
    typedef float Element;
    static constexpr int kTerms = 1;  // terms of a sum in an element
    static GDN_INLINE Floats add(Floats sums, float a, Floats b) { return fma(a, b, sums); }
    static GDN_INLINE Floats operand(const float *b) { return load(b); }
};

#if defined(__AVX512BF16__)
struct Pairs {
    typedef uint32_t Element;
    static constexpr int kTerms = 2;
    static GDN_INLINE Floats add(Floats sums, uint32_t a, Words b) {
        return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)splat(a), (__m512bh)b);
    }
    static GDN_INLINE Words operand(const uint32_t *b) { return load<Words>(b); }
};

// Numbers of halves 0, 16, 1, 17, ...
GDN_INLINE __m512i interleaved() {
    return (__m512i)(lane_numbers() + ((lane_numbers() + kLanes) << 16));
}

// Words of pairs: `even` rounded to bf16 in the lower halves, `odd` in the upper.
GDN_INLINE Words pair(Floats even, Floats odd) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
    return (Words)_mm512_permutexvar_epi16(interleaved(), both);
}
#endif

template <int N>
struct Tile {
    Floats sums[kRows][N];

    GDN_INLINE void clear() {
        GDN_UNROLL
        for (int i = 0; i < kRows; ++i)
            GDN_UNROLL
            for (int n = 0; n < N; ++n) sums[i][n] = Floats{};
    }

    // sums[i] += sum over t of a[i * Row + t * a_term] * b[t * b_term], t < terms.
    template <class Kind, int Row>
    GDN_INLINE void add(const typename Kind::Element *a, ptrdiff_t a_term,
                        const typename Kind::Element *b, ptrdiff_t b_term, ptrdiff_t terms) {
        for (ptrdiff_t t = 0; t < terms; ++t) {
            decltype(Kind::operand(b)) columns[N];
            GDN_UNROLL
            for (int n = 0; n < N; ++n) columns[n] = Kind::operand(b + n * kLanes);
            GDN_UNROLL
            for (int i = 0; i < kRows; ++i)
                GDN_UNROLL
                for (int n = 0; n < N; ++n)
                    sums[i][n] = Kind::add(sums[i][n], a[i * Row], columns[n]);
            a += a_term;
            b += b_term;
        }
    }

    GDN_INLINE void scale(const float *rows) {
        GDN_UNROLL
        for (int i = 0; i < kRows; ++i)
            GDN_UNROLL
            for (int n = 0; n < N; ++n) sums[i][n] *= rows[i];
    }

    GDN_INLINE void load_rows(const float *from, ptrdiff_t row) {
        GDN_UNROLL
        for (int i = 0; i < kRows; ++i)
            GDN_UNROLL
            for (int n = 0; n < N; ++n) sums[i][n] = load(from + i * row + n * kLanes);
    }

    GDN_INLINE void store_rows(float *to, ptrdiff_t row) const {
        GDN_UNROLL
        for (int i = 0; i < kRows; ++i)
            GDN_UNROLL
            for (int n = 0; n < N; ++n) store(to + i * row + n * kLanes, sums[i][n]);
    }
};

}  // namespace GDN_PATH
}  // namespace gdn

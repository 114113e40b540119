// Vectors of the compiler's own kind, as wide as the instruction set this file is compiled for.
//
// Every kernel file is compiled once per instruction set into a namespace of its own (GDN_PATH),
// and uses no function that is not in it or in a C library: see kernels.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <utility>  // integer_sequence, a type: no code comes of it

#include "kernels.h"

#if defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define GDN_INLINE inline __attribute__((always_inline))
// A stage of the work: not inlined, so that a profile shows it.
#define GDN_STAGE __attribute__((noinline))
#define GDN_UNROLL _Pragma("GCC unroll 16")

namespace gdn {
namespace GDN_PATH {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRows = 8;  // rows of a register tile: 2 * kRows accumulators and three operands
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRows = 4;
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kRows = 4;
#else
constexpr int kLanes = 4;
constexpr int kRows = 4;
#endif
constexpr int kPanel = 2 * kLanes;  // columns of a register tile

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

template <class V, class T>
GDN_INLINE V load(const T *from) {
    V v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

GDN_INLINE Floats load(const float *from) { return load<Floats>(from); }

template <class V, class T>
GDN_INLINE void store(T *to, V v) {
    __builtin_memcpy(to, &v, sizeof v);
}

GDN_INLINE Floats splat(float x) { return x - Floats{}; }
GDN_INLINE Words splat(uint32_t x) { return x - Words{}; }

// The same number, in a register: compilers otherwise fold a load into every instruction that uses
// it, and a core loads no more vectors of 512 bits than it multiplies.
GDN_INLINE Floats keep(Floats v) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(v));
#endif
    return v;
}

// a * b + c in one rounding where the instruction set has it. Nothing else is ever contracted: a
// compiler's own choice may differ from one use of a function to the next, and the bits with it.
GDN_INLINE Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}
GDN_INLINE Floats fma(float a, Floats b, Floats c) { return fma(splat(a), b, c); }

GDN_INLINE Floats sqrt(Floats v) {
#if defined(__AVX512F__)
    return (Floats)_mm512_sqrt_ps((__m512)v);
#elif defined(__FMA__)
    return (Floats)_mm256_sqrt_ps((__m256)v);
#else
    for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrtf(v[i]);
    return v;
#endif
}

// Lanes of `yes` where the mask is set, of `no` elsewhere. Masks are all ones or zeros.
GDN_INLINE Floats select(Ints mask, Floats yes, Floats no) { return mask ? yes : no; }

template <int Step, int... I>
GDN_INLINE Floats rotated(Floats v, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(v, v, ((I + Step) % kLanes)...);
}

// Neighbours first, as in `sums`: a row's sum has the same bits whichever of the two it comes from.
template <int Step = 1>
GDN_INLINE float sum(Floats v) {
    if constexpr (Step == kLanes)
        return v[0];
    else
        return sum<2 * Step>(v + rotated<Step>(v, std::make_integer_sequence<int, kLanes>{}));
}

GDN_INLINE Ints lane_numbers() {
    Ints v;
    for (int i = 0; i < kLanes; ++i) v[i] = i;
    return v;
}

// ---- transposition of kLanes x kLanes tiles of 32-bit elements --------------------------------

template <int Step, class V, int... I>
GDN_INLINE void exchange(V &a, V &b, std::integer_sequence<int, I...>) {
    V low = __builtin_shufflevector(a, b, ((I & Step) ? kLanes + I - Step : I)...);
    V high = __builtin_shufflevector(a, b, ((I & Step) ? kLanes + I : I + Step)...);
    a = low, b = high;
}

template <int Step, class V>
GDN_INLINE void exchange_rows(V (&rows)[kLanes]) {
    GDN_UNROLL
    for (int i = 0; i < kLanes; ++i)
        if (!(i & Step))
            exchange<Step>(rows[i], rows[i + Step], std::make_integer_sequence<int, kLanes>{});
}

template <class V>
GDN_INLINE void transpose(V (&rows)[kLanes]) {
    exchange_rows<1>(rows);
    exchange_rows<2>(rows);
    if constexpr (kLanes > 4) exchange_rows<4>(rows);
    if constexpr (kLanes > 8) exchange_rows<8>(rows);
}

// Of two vectors in units of `Unit` lanes: every second unit of groups of `Group` units, those of a
// before those of b. One shuffle, with its places in the instruction where groups are of four.
template <int Unit, int Group, int First, int... I>
GDN_INLINE Floats every_second(Floats a, Floats b, std::integer_sequence<int, I...>) {
    constexpr int half = Unit * Group / 2;
    return __builtin_shufflevector(
        a, b,
        (I / (2 * half) * 2 * half + I % half / Unit * 2 * Unit + First * Unit + I % Unit +
         (I & half ? kLanes : 0))...);
}

template <int Unit, int Group>
GDN_INLINE Floats add_neighbours(Floats a, Floats b) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
    return every_second<Unit, Group, 0>(a, b, lanes) + every_second<Unit, Group, 1>(a, b, lanes);
}

// A level of a transposition that adds: vectors that hold sums of 2^Level lanes of as many rows to
// one of twice as many.
template <int Level>
GDN_INLINE Floats merge(Floats a, Floats b) {
    if constexpr (Level < 2)
        return add_neighbours<1, 4>(a, b);
    else
        return add_neighbours<4, kLanes == 8 ? 2 : 4>(a, b);
}

// Lane i of the result is the sum over the lanes of row(first + i), i < 2^Level; from Level 4, 3 or
// 2 on, that of kLanes.
template <int Level, class F>
GDN_INLINE Floats sums_of(F row, int first) {
    if constexpr (Level == 0)
        return row(first);
    else
        return merge<Level - 1>(sums_of<Level - 1>(row, first),
                                sums_of<Level - 1>(row, first + (1 << (Level - 1))));
}

constexpr int kLevels = kLanes == 16 ? 4 : kLanes == 8 ? 3 : 2;

GDN_INLINE Floats sums(const Floats (&rows)[kLanes]) {
    return sums_of<kLevels>([&](int i) { return rows[i]; }, 0);
}

// [kLanes][from_row] to [kLanes][to_row], elements of 32 bits.
template <class T>
GDN_INLINE void transpose_tile(const T *from, ptrdiff_t from_row, T *to, ptrdiff_t to_row) {
    Words rows[kLanes];
    GDN_UNROLL
    for (int i = 0; i < kLanes; ++i) rows[i] = load<Words>(from + i * from_row);
    transpose(rows);
    GDN_UNROLL
    for (int i = 0; i < kLanes; ++i) store(to + i * to_row, rows[i]);
}

// ---- 16-bit formats ---------------------------------------------------------------------------

// GCC converts vectors of 512 bits in two halves where one instruction does.
#if defined(__AVX512F__)
GDN_INLINE Words widen(Halves v) { return (Words)_mm512_cvtepu16_epi32((__m256i)v); }
GDN_INLINE Halves narrow(Words v) { return (Halves)_mm512_cvtepi32_epi16((__m512i)v); }
#else
GDN_INLINE Words widen(Halves v) { return __builtin_convertvector(v, Words); }
GDN_INLINE Halves narrow(Words v) { return __builtin_convertvector(v, Halves); }
#endif

GDN_INLINE Floats from_bfloat16(Halves v) { return (Floats)(widen(v) << 16); }

#if defined(__AVX512BF16__)
GDN_INLINE Halves to_bfloat16(Floats v) { return (Halves)_mm512_cvtneps_pbh((__m512)v); }
#else
GDN_INLINE Words round_bfloat16(Floats v) {
    // To nearest, ties to even, in the upper half; a NaN keeps a bit that rounding cannot carry.
    Words bits = (Words)v;
    Words rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    return (v == v) ? rounded : (bits | 0x400000u);
}

GDN_INLINE Halves to_bfloat16(Floats v) { return narrow(round_bfloat16(v) >> 16); }
#endif

GDN_INLINE Floats from_float16(Halves v) {
    Words wide = widen(v);
    Words sign = (wide & 0x8000u) << 16, rest = (wide & 0x7fffu) << 13;
    // The exponent moves from bias 15 to 127 by a product, which normalises subnormals too.
    Floats number = (Floats)rest * splat(0x1p112f);
    Words special = rest | 0x7f800000u;  // infinities and NaNs
    Words bits = (rest >= 0x0f800000u) ? special : (Words)number;
    return (Floats)(bits | sign);
}

GDN_INLINE Halves to_float16(Floats v) {
    Words bits = (Words)v, sign = bits & 0x80000000u, rest = bits ^ sign;
    // Normal numbers: rebias and round to nearest even on the 13 bits that go.
    Words normal = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13;
    // Subnormal ones: adding 0.5 leaves them, rounded, in the last bits.
    Words tiny = (Words)((Floats)rest + splat(0.5f)) - 0x3f000000u;
    Words half = (rest < 0x38800000u) ? tiny : normal;
    half = (rest >= 0x477ff000u) ? splat(0x7c00u) : half;
    half = (rest > 0x7f800000u) ? splat(0x7e00u) : half;
    return narrow(half | (sign >> 16));
}

// ---- arrays in any of the three formats -------------------------------------------------------

template <int64_t Type>
struct Format;

template <>
struct Format<GDN_FLOAT32> {
    typedef float Element;
    static Floats load(const float *p) { return GDN_PATH::load(p); }
    static Floats splat(const float *p) { return GDN_PATH::splat(*p); }
    static void store(float *p, Floats v) { GDN_PATH::store(p, v); }
};

template <>
struct Format<GDN_BFLOAT16> {
    typedef uint16_t Element;
    static Floats load(const uint16_t *p) { return from_bfloat16(GDN_PATH::load<Halves>(p)); }
    static Floats splat(const uint16_t *p) { return from_bfloat16(*p - Halves{}); }
    static void store(uint16_t *p, Floats v) { GDN_PATH::store(p, to_bfloat16(v)); }
};

template <>
struct Format<GDN_FLOAT16> {
    typedef uint16_t Element;
    static Floats load(const uint16_t *p) { return from_float16(GDN_PATH::load<Halves>(p)); }
    static Floats splat(const uint16_t *p) { return from_float16(*p - Halves{}); }
    static void store(uint16_t *p, Floats v) { GDN_PATH::store(p, to_float16(v)); }
};

// Call `function(Format<...>{})` for a dtype known at run time.
template <class F>
GDN_INLINE void with_format(int64_t dtype, F function) {
    if (dtype == GDN_FLOAT32)
        function(Format<GDN_FLOAT32>{});
    else if (dtype == GDN_BFLOAT16)
        function(Format<GDN_BFLOAT16>{});
    else
        function(Format<GDN_FLOAT16>{});
}

GDN_INLINE int64_t element_size(int64_t dtype) { return dtype == GDN_FLOAT32 ? 4 : 2; }

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
GDN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace GDN_PATH
}  // namespace gdn

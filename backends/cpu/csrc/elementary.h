// exp, exp2, log1p and what gates are made of: a vector of arguments at a time, to a few ulps.
//
// Every lane is computed alike and there is no scalar form, so a number does not depend on where it
// stands.
#pragma once

#include "simd.h"

namespace gdn {
namespace GDN_PATH {

constexpr double kLog2E = 1.4426950408889634074;

// x * 2^n for integral n in [-252, 128], in two steps that underflow gradually.
GDN_INLINE Floats scale_by_power(Floats x, Floats n) {
    Ints whole = __builtin_convertvector(n, Ints);
    Ints half = whole >> 1, rest = whole - half;
    return x * (Floats)((half + 127) << 23) * (Floats)((rest + 127) << 23);
}

GDN_INLINE Floats nearest(Floats x) {
    // Adding 1.5 * 2^23 leaves no bits for a fraction; |x| < 2^22 here.
    Floats shift = splat(12582912.0f);
    return (x + shift) - shift;
}

GDN_INLINE Floats clamp(Floats x, float low, float high) {  // NaN stays
    x = (x < low) ? splat(low) : x;
    return (x > high) ? splat(high) : x;
}

// 2^(whole + fraction) for integral `whole`; the sum is never formed, so nothing of it is rounded.
GDN_INLINE Floats exp2(Floats whole, Floats fraction) {
    Floats n = nearest(fraction), f = fraction - n;
    // Taylor's series of 2^f, |f| <= 1/2; the first term left out is below 6e-9.
    Floats p = splat(1.52527338e-5f);
    p = fma(p, f, splat(1.54035304e-4f));
    p = fma(p, f, splat(1.33335581e-3f));
    p = fma(p, f, splat(9.61812911e-3f));
    p = fma(p, f, splat(5.55041087e-2f));
    p = fma(p, f, splat(2.40226507e-1f));
    p = fma(p, f, splat(6.93147181e-1f));
    p = fma(p, f, splat(1.0f));
    return scale_by_power(p, clamp(whole + n, -252.0f, 128.0f));
}

GDN_INLINE Floats exp(Floats x) {
    x = clamp(x, -174.0f, 89.0f);
    Floats n = nearest(x * (float)kLog2E);
    // ln 2 in two parts, the first short enough that n times it is exact.
    const Floats f = fma(2.12194440e-4f, n, fma(-0.693359375f, n, x));
    Floats p = splat(1.98412698e-4f);
    p = fma(p, f, splat(1.38888889e-3f));
    p = fma(p, f, splat(8.33333333e-3f));
    p = fma(p, f, splat(4.16666667e-2f));
    p = fma(p, f, splat(1.66666667e-1f));
    p = fma(p, f, splat(0.5f));
    p = fma(p, f, splat(1.0f));
    p = fma(p, f, splat(1.0f));
    return scale_by_power(p, n);
}

// log(1 + x) for x >= 0.
GDN_INLINE Floats log1p(Floats x) {
    Floats u = x + 1.0f;
    // u = m * 2^n with m in [sqrt(1/2), sqrt(2)); log m = 2 artanh((m-1)/(m+1)).
    Ints bits = (Ints)u - 0x3f3504f3;
    Ints exponent = bits >> 23;
    Floats m = (Floats)((bits & 0x7fffff) + 0x3f3504f3);
    Floats n = __builtin_convertvector(exponent, Floats);
    Floats s = (m - 1.0f) / (m + 1.0f), z = s * s;
    Floats p = splat(2.0f / 9.0f);
    p = fma(p, z, splat(2.0f / 7.0f));
    p = fma(p, z, splat(2.0f / 5.0f));
    p = fma(p, z, splat(2.0f / 3.0f));
    p = fma(p, z, splat(2.0f));
    Floats lost = (x - (u - 1.0f)) / u;  // what the sum 1 + x rounded away
    return fma(0.693147181f, n, fma(p, s, lost));
}

GDN_INLINE Floats softplus(Floats x) {
    Floats curve = log1p(exp(clamp(x, -174.0f, 20.0f)));
    return (x > 20.0f) ? x : curve;  // equal to the last bit from there on
}

GDN_INLINE Floats sigmoid(Floats x) { return 1.0f / (1.0f + exp(-clamp(x, -80.0f, 89.0f))); }

GDN_INLINE Floats silu(Floats x) { return x / (1.0f + exp(-x)); }

}  // namespace GDN_PATH
}  // namespace gdn

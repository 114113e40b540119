// States between an engine's pool and the kernels' panels.
//
// A panel is kPanel columns of one value head's state, fp32, [rows][kPanel]: what a register tile
// walks down. Rows past K and columns past V are zeros. A pool may hold K x V or V x K matrices in
// any format; both are copied by tiles.
#pragma once

#include "simd.h"

namespace gdn {
namespace GDN_PATH {

// A state matrix of one value head, as it lies in a pool.
struct Matrix {
    char *data;
    int64_t dtype, k, v;  // strides in elements
};

GDN_INLINE Matrix head_matrix(const gdn_states &states, const char *state, int64_t value_head) {
    char *data = const_cast<char *>(state);
    return {data + value_head * states.head * element_size(states.dtype), states.dtype, states.k,
            states.v};
}

template <class F>
inline void load_panel(F, const Matrix &from, int64_t K, int64_t column, int64_t columns,
                       float *panel) {
    typedef typename F::Element Element;
    const Element *data = (const Element *)from.data + column * from.v;
    if (from.v == 1 && columns == kPanel) {
        for (int64_t k = 0; k < K; ++k) {
            store(panel + k * kPanel, F::load(data + k * from.k));
            store(panel + k * kPanel + kLanes, F::load(data + k * from.k + kLanes));
        }
        return;
    }
    int64_t k = 0;
    if (from.k == 1) {
        for (; k + kLanes <= K; k += kLanes)
            for (int64_t v = 0; v < kPanel; v += kLanes) {
                Floats rows[kLanes];
                for (int i = 0; i < kLanes; ++i)
                    rows[i] = v + i < columns ? F::load(data + (v + i) * from.v + k) : Floats{};
                transpose(rows);
                for (int i = 0; i < kLanes; ++i) store(panel + (k + i) * kPanel + v, rows[i]);
            }
    }
    Element padded[kLanes] = {};
    for (; k < K; ++k)
        for (int64_t v = 0; v < kPanel; v += kLanes) {
            for (int64_t i = 0; i < kLanes; ++i)
                padded[i] = v + i < columns ? data[k * from.k + (v + i) * from.v] : Element{};
            store(panel + k * kPanel + v, F::load(padded));
        }
}

template <class F>
inline void store_panel(F, const Matrix &to, int64_t K, int64_t column, int64_t columns,
                        const float *panel) {
    typedef typename F::Element Element;
    Element *data = (Element *)to.data + column * to.v;
    if (to.v == 1 && columns == kPanel) {
        for (int64_t k = 0; k < K; ++k) {
            F::store(data + k * to.k, load(panel + k * kPanel));
            F::store(data + k * to.k + kLanes, load(panel + k * kPanel + kLanes));
        }
        return;
    }
    int64_t k = 0;
    if (to.k == 1) {
        for (; k + kLanes <= K; k += kLanes)
            for (int64_t v = 0; v < columns; v += kLanes) {
                Floats rows[kLanes];
                for (int i = 0; i < kLanes; ++i) rows[i] = load(panel + (k + i) * kPanel + v);
                transpose(rows);
                for (int i = 0; i < kLanes && v + i < columns; ++i)
                    F::store(data + (v + i) * to.v + k, rows[i]);
            }
    }
    Element padded[kLanes];
    for (; k < K; ++k)
        for (int64_t v = 0; v < columns; v += kLanes) {
            F::store(padded, load(panel + k * kPanel + v));
            for (int64_t i = 0; i < kLanes && v + i < columns; ++i)
                data[k * to.k + (v + i) * to.v] = padded[i];
        }
}

// Columns [column, column + columns) of a state, or zeros where there is none.
inline void read_state(const Matrix &from, int64_t K, int64_t rows, int64_t column, int64_t columns,
                       float *panel) {
    int64_t filled = 0;
    if (from.data) {
        with_format(from.dtype, [&](auto f) { load_panel(f, from, K, column, columns, panel); });
        filled = K;
    }
    __builtin_memset(panel + filled * kPanel, 0, (size_t)(rows - filled) * kPanel * sizeof(float));
}

inline void write_state(const Matrix &to, int64_t K, int64_t column, int64_t columns,
                        const float *panel) {
    with_format(to.dtype, [&](auto f) { store_panel(f, to, K, column, columns, panel); });
}

}  // namespace GDN_PATH
}  // namespace gdn

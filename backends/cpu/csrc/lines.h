// The convolution's taps, and the lines of past inputs that sequences leave behind.
#pragma once

#include "inputs.h"

namespace gdn {
namespace GDN_PATH {

// Channels of one key head: its query, its key and the values of its value heads.
struct Channels {
    const gdn_tensor *x;
    int64_t group, head;  // of x
    int64_t first, count;
};

template <class F>
inline void for_channels(const gdn_problem &p, int64_t h, F function) {
    const int64_t K = p.head_dim_k, V = p.head_dim_v, r = p.num_v_heads / p.num_heads;
    function(Channels{&p.q, h, 0, h * K, K});
    function(Channels{&p.k, h, 0, (p.num_heads + h) * K, K});
    for (int64_t j = 0; j < r; ++j)
        function(Channels{&p.v, h, j, 2 * p.num_heads * K + (h * r + j) * V, V});
}

template <class F>
inline void widen_row(F, const gdn_tensor &x, int64_t token, int64_t first, int64_t count,
                      float *to) {
    typedef typename F::Element Element;
    const Element *from = (const Element *)x.data + token * x.token + first * x.channel;
    for (int64_t c = 0; c < count; c += kLanes) {
        Element lanes[kLanes] = {};
        const int64_t some = smaller(kLanes, count - c);
        for (int64_t i = 0; i < some; ++i) lanes[i] = from[(c + i) * x.channel];
        float wide[kLanes];
        store(wide, F::load(lanes));
        __builtin_memcpy(to + c, wide, (size_t)some * sizeof(float));
    }
}

template <int First, int... I>
GDN_INLINE Floats every_other(Floats a, Floats b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (2 * I + First)...);
}

// Rows of four taps a channel to four rows of channels: two rounds of pulling even and odd apart.
template <class F>
inline void widen_fours(F, const gdn_tensor &weight, int64_t first, int64_t count, float *to,
                        int64_t to_row) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
    const auto *from = (const typename F::Element *)weight.data + first * 4;
    for (int64_t c = 0; c < count; c += kLanes) {
        const Floats x0 = F::load(from + c * 4), x1 = F::load(from + c * 4 + kLanes);
        const Floats x2 = F::load(from + c * 4 + 2 * kLanes);
        const Floats x3 = F::load(from + c * 4 + 3 * kLanes);
        const Floats low = every_other<0>(x0, x1, lanes), high = every_other<0>(x2, x3, lanes);
        store(to + c, every_other<0>(low, high, lanes));
        store(to + 2 * to_row + c, every_other<1>(low, high, lanes));
        const Floats odd_low = every_other<1>(x0, x1, lanes);
        const Floats odd_high = every_other<1>(x2, x3, lanes);
        store(to + to_row + c, every_other<0>(odd_low, odd_high, lanes));
        store(to + 3 * to_row + c, every_other<1>(odd_low, odd_high, lanes));
    }
}

inline void prepare_taps(const Batch &batch, int64_t key_head, float *taps) {
    const gdn_problem &p = *batch.problem;
    const Convolution &conv = batch.conv;
    const int64_t D = 2 * p.num_heads * p.head_dim_k + p.num_v_heads * p.head_dim_v;
    for_channels(p, key_head, [&](const Channels &c) {
        const gdn_tensor &weight = conv.weight;
        const bool fours = conv.width == 4 && weight.token == 1 && weight.channel == 4 &&
                           c.count % kLanes == 0;
        if (fours)
            with_format(weight.dtype, [&](auto f) {
                widen_fours(f, weight, c.first, c.count, taps + c.first, D);
            });
        for (int64_t w = 0; w < conv.width && !fours; ++w)
            with_format(conv.weight.dtype, [&](auto f) {
                widen_row(f, conv.weight, w, c.first, c.count, taps + w * D + c.first);
            });
        float *bias = taps + conv.width * D + c.first;
        if (conv.bias.dtype)
            with_format(conv.bias.dtype,
                        [&](auto f) { widen_row(f, conv.bias, 0, c.first, c.count, bias); });
        else
            __builtin_memset(bias, 0, (size_t)c.count * sizeof(float));
    });
}

template <class T>
inline void copy(const T *from, int64_t step, int64_t count, T *to) {
    if (step == 1)
        __builtin_memcpy(to, from, (size_t)count * sizeof(T));
    else
        for (int64_t i = 0; i < count; ++i) to[i] = from[i * step];
}

// The last `columns` of [W-1 columns of the line | x] before token `after`, [column][channel].
template <class T>
inline void gather_line(const Batch &batch, const Sequence &sequence, const Channels &c,
                        int64_t after, int64_t columns, T *to) {
    const Convolution &conv = batch.conv;
    const T *x = (const T *)element(*c.x, sequence.batch, sequence.start, c.group, c.head);
    const T *line = (const T *)sequence.line;
    for (int64_t i = 0; i < columns; ++i, to += c.count) {
        const int64_t token = after - columns + i, past = token + conv.width - 1;
        if (token >= 0)
            copy(x + token * c.x->token, c.x->channel, c.count, to);
        else if (line)
            copy(line + past * conv.lines.token + c.first * conv.lines.channel, conv.lines.channel,
                 c.count, to);
        else
            __builtin_memset(to, 0, (size_t)c.count * sizeof(T));
    }
}

template <class T>
inline void save_line(const Batch &batch, const Sequence &sequence, const Channels &c,
                      const LineMark &mark, T *scratch) {
    const gdn_tensor &lines = batch.conv.lines;
    // All is read before any is written: the line read may be the one written.
    gather_line(batch, sequence, c, mark.after, mark.columns, scratch);
    T *line = (T *)mark.line + c.first * lines.channel;
    if (lines.channel == 1) {
        for (int64_t i = 0; i < mark.columns; ++i)
            __builtin_memcpy(line + i * lines.token, scratch + i * c.count,
                             (size_t)c.count * sizeof(T));
        return;
    }
    for (int64_t j = 0; j < c.count; ++j)
        for (int64_t i = 0; i < mark.columns; ++i)
            line[j * lines.channel + i * lines.token] = scratch[i * c.count + j];
}

inline void save_lines(const Batch &batch, int64_t number, int64_t key_head, char *scratch) {
    const Sequence &sequence = batch.sequences[number];
    for_channels(*batch.problem, key_head, [&](const Channels &c) {
        for (int64_t m = sequence.first_line_mark; m < sequence.last_line_mark; ++m)
            if (element_size(batch.conv.lines.dtype) == 4)
                save_line(batch, sequence, c, batch.line_marks[m], (uint32_t *)scratch);
            else
                save_line(batch, sequence, c, batch.line_marks[m], (uint16_t *)scratch);
    });
}

}  // namespace GDN_PATH
}  // namespace gdn

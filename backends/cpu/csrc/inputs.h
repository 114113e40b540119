// A block of tokens of one sequence and one key head, as the kernels take it: fp32 rows of queries,
// keys and values, the factors that normalise them, and gates. Values come from q, k and v as they
// are, or through the causal convolution in front of them; nothing in between goes to memory.
//
//     conv   c_t = act(bias + sum_i w_i h_{t+i}),  h = [W-1 columns of the line, or 0 | x]
//     gates  g = -exp(A_log) softplus(a + dt_bias),  beta = sigmoid(b), doubled by allow_neg_eigval
#pragma once

#include "elementary.h"
#include "simd.h"

namespace gdn {
namespace GDN_PATH {

// Scratch of one block.
struct Block {
    int64_t tokens;
    int64_t rows;             // tokens, and the rows of zeros behind them that the kernel wants
    int64_t width;            // of key and query rows: K, rounded up to kPanel
    float *keys, *queries;    // [kChunk][width]
    float *values;            // [panel of the key head][kChunk][kPanel]
    float *key_factor;        // [kChunk]
    float *query_factor;      // [kChunk], times scale
    float *decay, *beta;      // [value head of the key head][kChunk]; decay: natural logarithm
    float *window;            // [kMaxWidth - 1 + kChunk][kPanel]
};

// `count` rows of up to kPanel columns each, as fp32, zeros behind the last column.
template <class F>
inline void copy_rows(F, const char *from, int64_t row, int64_t column, int64_t count,
                      int64_t columns, float *to, int64_t to_row) {
    typedef typename F::Element Element;
    const Element *x = (const Element *)from;
    if (column == 1 && columns == kPanel) {
        for (int64_t t = 0; t < count; ++t)
            for (int64_t c = 0; c < kPanel; c += kLanes)
                store(to + t * to_row + c, F::load(x + t * row + c));
        return;
    }
    for (int64_t t = 0; t < count; ++t) {
        Element padded[kPanel] = {};
        for (int64_t c = 0; c < columns; ++c) padded[c] = x[t * row + c * column];
        for (int64_t c = 0; c < kPanel; c += kLanes)
            store(to + t * to_row + c, F::load(padded + c));
    }
}

inline void zero_rows(int64_t count, float *to, int64_t to_row) {
    for (int64_t t = 0; t < count; ++t)
        for (int64_t c = 0; c < kPanel; c += kLanes) store(to + t * to_row + c, Floats{});
}

// The same for rows of whole panels, `to_panel` apart: a row is read in one go, not panel by panel.
template <class F>
inline void copy_panels(F, const char *from, int64_t row, int64_t count, int64_t panels, float *to,
                        int64_t to_row, int64_t to_panel) {
    const typename F::Element *x = (const typename F::Element *)from;
    for (int64_t t = 0; t < count; ++t)
        for (int64_t panel = 0; panel < panels; ++panel)
            for (int64_t c = 0; c < kPanel; c += kLanes)
                store(to + panel * to_panel + t * to_row + c,
                      F::load(x + t * row + panel * kPanel + c));
}

// Some columns of one of q, k and v, of one sequence.
struct Strip {
    const char *x;       // its first token
    const gdn_tensor *strides;
    int64_t channel;     // of the convolution
    int64_t columns;     // at most kPanel
};

// What the convolution reads for tokens [offset, offset + n): rows of the line, then of x.
template <class F>
inline void fill_window(F f, const Convolution &conv, const char *line, const Strip &strip,
                        int64_t offset, int64_t n, float *window) {
    const int64_t past = conv.width - 1, size = (int64_t)sizeof(typename F::Element);
    const int64_t from_line = smaller(n + past, offset < past ? past - offset : 0);
    const int64_t at = offset * conv.lines.token + strip.channel * conv.lines.channel;
    if (from_line && line)
        copy_rows(f, line + at * size, conv.lines.token, conv.lines.channel, from_line,
                  strip.columns, window, kPanel);
    else
        zero_rows(from_line, window, kPanel);
    const int64_t first = offset + from_line - past;
    copy_rows(f, strip.x + first * strip.strides->token * size, strip.strides->token,
              strip.strides->channel, n + past - from_line, strip.columns,
              window + from_line * kPanel, kPanel);
}

// One vector of channels down the rows of a window. Taps in fp32, `stride` apart, the bias last;
// Width where it is known, 0 otherwise.
template <int Width, class F>
inline void convolve(F, const Convolution &conv, const float *taps, int64_t stride, int64_t columns,
                     const float *window, int64_t n, float *to, int64_t to_row) {
    const Ints inside = lane_numbers() < (int32_t)columns;
    const int64_t width = Width ? Width : conv.width;
    Floats tap[Width ? Width : kMaxWidth];
    for (int64_t i = 0; i < width; ++i) tap[i] = load(taps + i * stride);
    const Floats bias = load(taps + width * stride);
    for (int64_t t = 0; t < n; ++t) {
        Floats total = bias;
        for (int64_t i = 0; i < width; ++i)
            total = fma(tap[i], load(window + (t + i) * kPanel), total);
        if (conv.silu) total = silu(total);
        typename F::Element rounded[kLanes];  // the model hands on activations
        F::store(rounded, total);
        store(to + t * to_row, select(inside, F::load(rounded), Floats{}));
    }
}

inline void load_strip(const Batch &batch, const Strip &strip, const char *line, int64_t offset,
                       int64_t n, float *window, float *to, int64_t to_row) {
    const gdn_tensor &x = *strip.strides;
    with_format(x.dtype, [&](auto f) {
        if (!batch.conv.width) {
            const char *rows = strip.x + offset * x.token * element_size(x.dtype);
            copy_rows(f, rows, x.token, x.channel, n, strip.columns, to, to_row);
            return;
        }
        const gdn_problem &p = *batch.problem;
        const int64_t D = 2 * p.num_heads * p.head_dim_k + p.num_v_heads * p.head_dim_v;
        fill_window(f, batch.conv, line, strip, offset, n, window);
        const auto run =
            batch.conv.width == 4 ? convolve<4, decltype(f)> : convolve<0, decltype(f)>;
        for (int64_t c = 0; c < kPanel; c += kLanes)
            run(f, batch.conv, batch.conv.taps + strip.channel + c, D, strip.columns - c,
                window + c, n, to + c, to_row);
    });
}

// Columns of some panels of one of q, k and v: panel after panel in `to`, to_panel apart.
inline void load_columns(const Batch &batch, const Sequence &sequence, const Strip &first,
                         int64_t columns, int64_t offset, const Block &block, float *to,
                         int64_t to_row, int64_t to_panel) {
    const gdn_tensor &x = *first.strides;
    const int64_t size = element_size(x.dtype), n = block.tokens;
    const bool whole = !batch.conv.width && x.channel == 1 && columns % kPanel == 0;
    if (whole)
        with_format(x.dtype, [&](auto f) {
            copy_panels(f, first.x + offset * x.token * size, x.token, n, columns / kPanel, to,
                        to_row, to_panel);
        });
    for (int64_t c = 0; c < columns; c += kPanel, to += to_panel) {
        const Strip strip = {first.x + c * x.channel * size, &x, first.channel + c,
                             smaller(kPanel, columns - c)};
        if (!whole) load_strip(batch, strip, sequence.line, offset, n, block.window, to, to_row);
        zero_rows(block.rows - n, to + n * to_row, to_row);
    }
}

GDN_INLINE const char *element(const gdn_tensor &x, int64_t b, int64_t t, int64_t group,
                               int64_t head) {
    const int64_t at = b * x.batch + t * x.token + group * x.group + head * x.head;
    return (const char *)x.data + at * element_size(x.dtype);
}

GDN_INLINE float scalar(int64_t dtype, const char *x) {
    float value = 0;
    with_format(dtype, [&](auto f) {
        typename decltype(f)::Element lanes[kLanes] = {};
        __builtin_memcpy(lanes, x, sizeof lanes[0]);
        value = f.load(lanes)[0];
    });
    return value;
}

// 1 / sqrt(sum of squares + 1e-6) of each row, times `factor`; `factor` alone without l2norm.
inline void row_factors(const float *rows, int64_t width, int64_t n, bool l2norm, float factor,
                        float *to) {
    for (int64_t t = 0; t < kChunk; ++t) to[t] = factor;
    if (!l2norm) return;
    const auto squares = [&](int64_t t) {
        Floats total{};
        for (int64_t c = 0; c < width; c += kLanes) {
            const Floats x = load(rows + t * width + c);
            total = fma(x, x, total);
        }
        return total;
    };
    int64_t t = 0;
    for (; t + kLanes <= n; t += kLanes) {
        Floats some[kLanes];
        for (int i = 0; i < kLanes; ++i) some[i] = squares(t + i);
        store(to + t, factor / sqrt(sums(some) + 1e-6f));
    }
    for (; t < n; ++t) to[t] = factor / __builtin_sqrtf(sum(squares(t)) + 1e-6f);
}

// One number a token, fp32; zeros from n on.
inline void load_numbers(const gdn_tensor &x, const char *from, int64_t n, float *to) {
    with_format(x.dtype, [&](auto f) {
        typedef typename decltype(f)::Element Element;
        for (int64_t t = 0; t < kChunk; t += kLanes) {
            Element lanes[kLanes] = {};
            for (int64_t i = 0; i < kLanes && t + i < n; ++i)
                lanes[i] = ((const Element *)from)[(t + i) * x.token];
            store(to + t, f.load(lanes));
        }
    });
}

inline void load_gates(const Batch &batch, const Sequence &sequence, int64_t group, int64_t head,
                       int64_t offset, int64_t n, float *decay, float *beta) {
    const gdn_problem &p = *batch.problem;
    const int64_t t0 = sequence.start + offset;
    load_numbers(p.g, element(p.g, sequence.batch, t0, group, head), n, decay);
    load_numbers(p.beta, element(p.beta, sequence.batch, t0, group, head), n, beta);
    if (p.A_log.dtype) {
        const float bias =
            p.dt_bias.dtype ? scalar(p.dt_bias.dtype, element(p.dt_bias, 0, 0, group, head)) : 0;
        const float log_rate = scalar(p.A_log.dtype, element(p.A_log, 0, 0, group, head));
        const Floats rate = -exp(splat(log_rate));
        for (int64_t t = 0; t < kChunk; t += kLanes)
            store(decay + t, rate * softplus(load(decay + t) + bias));
    }
    if (p.beta_is_logit)
        for (int64_t t = 0; t < kChunk; t += kLanes) store(beta + t, sigmoid(load(beta + t)));
    if (p.allow_neg_eigval)
        for (int64_t t = 0; t < kChunk; t += kLanes) store(beta + t, load(beta + t) * 2.0f);
    for (int64_t t = n; t < kChunk; ++t) decay[t] = beta[t] = 0;  // tokens that change nothing
}

// Everything of tokens [offset, offset + n) that a share of the key head needs; rows of zeros up to
// the next multiple of `multiple`.
inline void load_block(const Batch &batch, const Share &share, int64_t offset, int64_t n,
                       int64_t multiple, Block &block) {
    const gdn_problem &p = *batch.problem;
    const Sequence &sequence = batch.sequences[share.sequence];
    const int64_t K = p.head_dim_k, V = p.head_dim_v, r = p.num_v_heads / p.num_heads;
    const int64_t h = share.key_head, panels = round_up(V, kPanel) / kPanel;
    block.tokens = n;
    block.rows = round_up(n, multiple);
    const Strip q = {element(p.q, sequence.batch, sequence.start, h, 0), &p.q, h * K, K};
    const Strip k = {element(p.k, sequence.batch, sequence.start, h, 0), &p.k,
                     (p.num_heads + h) * K, K};
    load_columns(batch, sequence, q, K, offset, block, block.queries, block.width, kPanel);
    load_columns(batch, sequence, k, K, offset, block, block.keys, block.width, kPanel);
    row_factors(block.queries, block.width, n, p.l2norm, (float)p.scale, block.query_factor);
    row_factors(block.keys, block.width, n, p.l2norm, 1.0f, block.key_factor);
    for (int64_t panel = share.first_panel; panel < share.last_panel;) {
        const int64_t head = panel / panels, c = panel % panels * kPanel;
        const int64_t last = smaller(share.last_panel, (head + 1) * panels);
        const Strip v = {element(p.v, sequence.batch, sequence.start, h, head) +
                             c * p.v.channel * element_size(p.v.dtype),
                         &p.v, 2 * p.num_heads * K + (h * r + head) * V + c, 0};
        load_columns(batch, sequence, v, smaller((last - panel) * kPanel, V - c), offset, block,
                     block.values + panel * kChunk * kPanel, kPanel, kChunk * kPanel);
        load_gates(batch, sequence, h, head, offset, n, block.decay + head * kChunk,
                   block.beta + head * kChunk);
        panel = last;
    }
}

}  // namespace GDN_PATH
}  // namespace gdn

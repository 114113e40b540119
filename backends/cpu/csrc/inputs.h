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
    float *values;            // [panel of the key head][kChunk][kPanel], or closer together
    int64_t values_panel;     // from panel to panel
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

// A vector of numbers at strides of the tensor: of `count` tokens, then of as many of the next value
// head, and so on from number `first` on, up to `end`; zeros from there.
inline Floats load_numbers(const gdn_tensor &x, const char *from, int64_t r, int64_t count,
                           int64_t first, int64_t end) {
    Floats numbers{};
    with_format(x.dtype, [&](auto f) {
        typedef typename decltype(f)::Element Element;
        Element lanes[kLanes] = {};
        int64_t head = first / count, t = first % count;
        for (int64_t i = 0; i < kLanes && first + i < end; ++i) {
            lanes[i] = ((const Element *)from)[head / r * x.group + head % r * x.head + t * x.token];
            if (++t == count) t = 0, ++head;
        }
        numbers = f.load(lanes);
    });
    return numbers;
}

// Gates of n tokens of some value heads from `head` of key head `group` on, [value head][n]; up to
// the end of a vector past the last one.
inline void load_gates(const Batch &batch, const Sequence &sequence, int64_t group, int64_t head,
                       int64_t heads, int64_t offset, int64_t n, float *decay, float *beta) {
    const gdn_problem &p = *batch.problem;
    const int64_t t0 = sequence.start + offset, r = p.num_v_heads / p.num_heads;
    for (int64_t i = 0; i < heads * n; i += kLanes) {
        const auto numbers = [&](const gdn_tensor &x, int64_t b, int64_t t) {
            return load_numbers(x, element(x, b, t, group, head), r, n, i, heads * n);
        };
        Floats g = numbers(p.g, sequence.batch, t0), w = numbers(p.beta, sequence.batch, t0);
        if (p.A_log.dtype) {
            if (p.dt_bias.dtype) g += numbers(p.dt_bias, 0, 0);
            g = -exp(numbers(p.A_log, 0, 0)) * softplus(g);
        }
        if (p.beta_is_logit) w = sigmoid(w);
        if (p.allow_neg_eigval) w *= 2.0f;
        store(decay + i, g);
        store(beta + i, w);
    }
}

// Rows of q, k and v of block.tokens tokens from `offset` on; rows of zeros up to block.rows.
inline void load_rows(const Batch &batch, const Share &share, int64_t h, int64_t offset,
                      const Block &block) {
    const gdn_problem &p = *batch.problem;
    const Sequence &sequence = batch.sequences[share.sequence];
    const int64_t K = p.head_dim_k, V = p.head_dim_v, r = p.num_v_heads / p.num_heads;
    const int64_t panels = round_up(V, kPanel) / kPanel;
    const Strip q = {element(p.q, sequence.batch, sequence.start, h, 0), &p.q, h * K, K};
    const Strip k = {element(p.k, sequence.batch, sequence.start, h, 0), &p.k,
                     (p.num_heads + h) * K, K};
    load_columns(batch, sequence, q, K, offset, block, block.queries, block.width, kPanel);
    load_columns(batch, sequence, k, K, offset, block, block.keys, block.width, kPanel);
    for (int64_t panel = share.first_panel; panel < share.last_panel;) {
        const int64_t head = panel / panels, c = panel % panels * kPanel;
        const int64_t last = smaller(share.last_panel, (head + 1) * panels);
        const Strip v = {element(p.v, sequence.batch, sequence.start, h, head) +
                             c * p.v.channel * element_size(p.v.dtype),
                         &p.v, 2 * p.num_heads * K + (h * r + head) * V + c, 0};
        load_columns(batch, sequence, v, smaller((last - panel) * kPanel, V - c), offset, block,
                     block.values + panel * block.values_panel, kPanel, block.values_panel);
        panel = last;
    }
}

// Everything of tokens [offset, offset + n) that a share of one key head needs; rows of zeros up to
// the next multiple of `multiple`.
inline void load_block(const Batch &batch, const Share &share, int64_t offset, int64_t n,
                       int64_t multiple, Block &block) {
    const gdn_problem &p = *batch.problem;
    const int64_t panels = round_up(p.head_dim_v, kPanel) / kPanel;
    block.tokens = n;
    block.rows = round_up(n, multiple);
    load_rows(batch, share, share.key_head, offset, block);
    row_factors(block.queries, block.width, n, p.l2norm, (float)p.scale, block.query_factor);
    row_factors(block.keys, block.width, n, p.l2norm, 1.0f, block.key_factor);
    for (int64_t head = share.first_panel / panels; head * panels < share.last_panel; ++head) {
        float *decay = block.decay + head * kChunk, *beta = block.beta + head * kChunk;
        load_gates(batch, batch.sequences[share.sequence], share.key_head, head, 1, offset, n, decay,
                   beta);
        for (int64_t t = n; t < kChunk; ++t) decay[t] = beta[t] = 0;  // tokens that change nothing
    }
}

}  // namespace GDN_PATH
}  // namespace gdn

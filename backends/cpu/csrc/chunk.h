// The gated delta rule in chunks of kChunk tokens.
//
// The form is that of Yang et al., "Gated Delta Networks" (arXiv 2412.06464), with neither W nor U
// of its WY form and without an inverse. Per chunk and value head, with G the cumulative base-2
// decay, D_ij = 2^(G_i - G_j) for i >= j, and rows of K and Q shared by the value heads of a key
// head:
//
//     A = strictly_lower(beta_i D K K^T)     P = D (scale Q) K^T
//     X = (I + A)^-1 beta (V - 2^G (K S))    by forward substitution, kRows tokens at a time
//     O = 2^G (scale Q S) + P X
//     S = 2^G_C S + K^T (2^(G_C - G) X)
//
// Columns of V, X, O and S do not meet each other, so all of this runs panel by panel: a panel of S
// and one of X stay in the first-level cache, and a block of kRows tokens goes from K S to O
// without leaving registers. q and k enter as they are; what normalises them is multiplied into
// results.
//
// With `Pairs` the three products with K or Q and S take bf16 operands: q and k are bf16 already, S
// and X are rounded where they are used. The state itself, A, P and the substitution stay fp32.
//
// G is kept as an integer and a fraction. A plain fp32 sum loses the differences after a reset
// (g = -1e4); integers subtract exactly. Decay below 2^-1000 is zero in fp32 and counts as that.
#pragma once

#include "ahead.h"
#include "chunk_operands.h"
#include "states.h"

namespace gdn {
namespace GDN_PATH {

constexpr double kFloor = -1000;

// ---- what does not involve the state ----------------------------------------------------------

// K K^T and scale Q K^T on and below the diagonal, normalised.
template <class Kind>
GDN_STAGE void dots(ChunkScratch<Kind> &s, int64_t rows) {
    // Keys that resemble each other give sums of positive terms near one, and what a long sum
    // rounds away the substitution carries to every later token: short sums keep more of it.
    const int64_t terms = s.block.width / Kind::kTerms, part = 32 / Kind::kTerms;
    const int64_t tile = terms * kLanes;
    for (int64_t i = 0; i < rows; i += kRows)
        for (int64_t j = 0; j < i + kRows; j += kLanes) {
            const int64_t row = i / kLanes * tile + i % kLanes, column = j / kLanes * tile;
            Tile<1> kk, qk;
            kk.clear(), qk.clear();
            for (int64_t t = 0; t < terms; t += part) {
                const int64_t count = smaller(part, terms - t);
                Tile<1> a, b;
                a.clear(), b.clear();
                const int64_t at = t * kLanes;
                const typename Kind::Element *columns = s.keys + column + at;
                a.template add<Kind, 1>(s.keys + row + at, kLanes, columns, kLanes, count);
                b.template add<Kind, 1>(s.queries + row + at, kLanes, columns, kLanes, count);
                GDN_UNROLL
                for (int m = 0; m < kRows; ++m)
                    kk.sums[m][0] += a.sums[m][0], qk.sums[m][0] += b.sums[m][0];
            }
            const Floats factor = load(s.block.key_factor + j);
            for (int m = 0; m < kRows; ++m) {
                kk.sums[m][0] *= factor * s.block.key_factor[i + m];
                qk.sums[m][0] *= factor * s.block.query_factor[i + m];
            }
            kk.store_rows(s.key_dots + i * kChunk + j, kChunk);
            qk.store_rows(s.query_dots + i * kChunk + j, kChunk);
        }
}

struct SplitDecay {
    float whole[kChunk], fraction[kChunk];
};

inline void accumulate(const float *decay, SplitDecay &G) {
    double total = 0;
    for (int t = 0; t < kChunk; ++t) {
        const double step = decay[t] * kLog2E;
        total += step < kFloor ? kFloor : step;
        const double whole = (total + 6755399441055744.0) - 6755399441055744.0;  // 1.5 * 2^52
        G.whole[t] = (float)whole;
        G.fraction[t] = (float)(total - whole);
    }
}

GDN_STAGE inline void fill_coefficients(const Block &block, const float *beta, const SplitDecay &G,
                              Coefficients &c) {
    const int last = kChunk - 1;  // tokens past the end do not decay
    for (int t = 0; t < kChunk; t += kLanes) {
        const Floats whole = load(G.whole + t), fraction = load(G.fraction + t);
        const Floats from_start = exp2(whole, fraction);
        const Floats key = load(block.key_factor + t);
        store(c.beta + t, load(beta + t));
        store(c.from_state + t, -load(beta + t) * from_start * key);
        store(c.from_query + t, from_start * load(block.query_factor + t));
        store(c.to_end + t, exp2(G.whole[last] - whole, G.fraction[last] - fraction) * key);
    }
    c.whole = exp2(splat(G.whole[last]), splat(G.fraction[last]))[0];
}

// -A and P of one value head, in rows of tiles on and below the diagonal.
template <class Kind>
GDN_STAGE void fill_system(ChunkScratch<Kind> &s, const SplitDecay &G, const Coefficients &c,
                        int64_t rows, float *system, float *attention) {
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j <= i; j += kLanes) {
            const Floats decay =
                exp2(G.whole[i] - load(G.whole + j), G.fraction[i] - load(G.fraction + j));
            const Ints column = lane_numbers() + (int32_t)j;
            const int64_t at = i * kChunk + j;
            const Floats a = decay * load(s.key_dots + at) * -c.beta[i];
            const Floats p = decay * load(s.query_dots + at);
            store(system + at, select(column < (int32_t)i, a, Floats{}));
            store(attention + at, select(column <= (int32_t)i, p, Floats{}));
        }
    }
}

// ---- one panel --------------------------------------------------------------------------------

template <class F>
GDN_INLINE void store_output(F, const Tile<2> &tile, int64_t rows, int64_t columns, char *out,
                             int64_t row) {
    typedef typename F::Element Element;
    for (int64_t i = 0; i < kRows && i < rows; ++i) {
        Element *to = (Element *)out + i * row;
        if (columns == kPanel) {
            F::store(to, tile.sums[i][0]);
            F::store(to + kLanes, tile.sums[i][1]);
        } else {
            Element padded[kPanel];
            F::store(padded, tile.sums[i][0]);
            F::store(padded + kLanes, tile.sums[i][1]);
            for (int64_t v = 0; v < columns; ++v) to[v] = padded[v];
        }
    }
}

// Inside a block of rows: x_i -= sum over j < i of A_ij x_j, top down; `system` is -A.
GDN_INLINE void substitute(Tile<2> &x, const float *system) {
    GDN_UNROLL
    for (int i = 1; i < kRows; ++i)
        GDN_UNROLL
        for (int j = 0; j < i; ++j)
            GDN_UNROLL
            for (int n = 0; n < 2; ++n)
                x.sums[i][n] = fma(system[i * kChunk + j], x.sums[j][n], x.sums[i][n]);
}

// V becomes X in place, and the output is written.
template <class Kind, class F>
GDN_STAGE void solve_panel(F f, ChunkScratch<Kind> &s, const Coefficients &c,
                           const float *system, const float *attention,
                           const typename Kind::Element *state, bool fresh, float *x,
                           int64_t columns, char *out, int64_t out_row, Ahead &ahead) {
    const int64_t n = s.block.tokens, terms = fresh ? 0 : s.block.width / Kind::kTerms;
    const int64_t tile = s.block.width / Kind::kTerms * kLanes;
    for (int64_t i = 0; i < n; i += kRows) {
        const int64_t row = i / kLanes * tile + i % kLanes;
        Tile<2> solved;
        ahead.touch();
        solved.clear();
        solved.template add<Kind, 1>(s.keys + row, kLanes, state, kPanel, terms);
        GDN_UNROLL
        for (int m = 0; m < kRows; ++m)
            GDN_UNROLL
            for (int v = 0; v < 2; ++v)
                solved.sums[m][v] =
                    fma(c.from_state[i + m], solved.sums[m][v],
                        c.beta[i + m] * load(x + (i + m) * kPanel + v * kLanes));
        solved.template add<Single, kChunk>(system + i * kChunk, 1, x, kPanel, i);
        substitute(solved, system + i * kChunk + i);
        solved.store_rows(x + i * kPanel, kPanel);
        store_update(s, solved, c, i, n);

        Tile<2> output;
        ahead.touch();
        output.clear();
        output.template add<Kind, 1>(s.queries + row, kLanes, state, kPanel, terms);
        output.scale(c.from_query + i);
        output.template add<Single, kChunk>(attention + i * kChunk, 1, x, kPanel, i + kRows);
        const int64_t size = (int64_t)sizeof(typename F::Element);
        store_output(f, output, n - i, columns, out + i * out_row * size, out_row);
    }
}

template <class Kind>
GDN_STAGE void update_panel(ChunkScratch<Kind> &s, const Coefficients &c, int64_t panel, bool fresh,
                         Ahead &ahead) {
    const int64_t n = s.block.tokens, width = s.block.width;
    const float *state = s.master + panel * width * kPanel;
    for (int64_t k = 0; k < width; k += kRows) {
        ahead.touch();
        Tile<2> next;
        if (fresh) {
            next.clear();
        } else {
            next.load_rows(state + k * kPanel, kPanel);
            GDN_UNROLL
            for (int m = 0; m < kRows; ++m)
                GDN_UNROLL
                for (int v = 0; v < 2; ++v) next.sums[m][v] *= c.whole;
        }
        next.template add<Kind, 1>(s.key_rows + k, width, s.update, kPanel,
                                   (n + Kind::kTerms - 1) / Kind::kTerms);
        store_state(s, next, panel, k);
    }
}

// ---- a share ----------------------------------------------------------------------------------

template <class Kind>
inline void run_share(const Batch &batch, const Share &share, ChunkScratch<Kind> &s) {
    const gdn_problem &p = *batch.problem;
    const Sequence &sequence = batch.sequences[share.sequence];
    const int64_t V = p.head_dim_v, r = p.num_v_heads / p.num_heads, width = s.block.width;
    const int64_t panels = round_up(V, kPanel) / kPanel;
    const auto column_of = [&](int64_t panel) { return panel % panels * kPanel; };
    const auto columns_of = [&](int64_t panel) { return smaller(kPanel, V - column_of(panel)); };
    const auto matrix_of = [&](const gdn_states &states, const char *state, int64_t panel) {
        return head_matrix(states, state, share.key_head * r + panel / panels);
    };

    bool fresh = !sequence.state;
    for (int64_t panel = share.first_panel; panel < share.last_panel && !fresh; ++panel) {
        read_state(matrix_of(batch.source, sequence.state, panel), p.head_dim_k, width,
                   column_of(panel), columns_of(panel), s.master + panel * width * kPanel);
        pack_state(s, panel);
    }
    int64_t mark = sequence.first_mark;
    for (int64_t offset = 0; offset < sequence.length; offset += kChunk) {
        const int64_t n = smaller(kChunk, sequence.length - offset);
        const int64_t rows = round_up(n, kRows);
        load_block(batch, share, offset, n, kLanes, s.block);
        pack(s, s.block.rows);
        dots(s, rows);
        Ahead ahead;
        ahead.begin(batch, share, offset + n, smaller(kChunk, sequence.length - offset - n),
                    (share.last_panel - share.first_panel) * (width / kRows + 2 * rows / kRows));
        const bool goes_on = offset + n < sequence.length || mark < sequence.last_mark;
        for (int64_t panel = share.first_panel; panel < share.last_panel; ++panel) {
            const int64_t head = panel / panels;
            float *system = s.system + head * kChunk * kChunk;
            float *attention = s.attention + head * kChunk * kChunk;
            Coefficients &c = s.coefficients[head];
            if (panel == share.first_panel || column_of(panel) == 0) {
                SplitDecay G;
                accumulate(s.block.decay + head * kChunk, G);
                fill_coefficients(s.block, s.block.beta + head * kChunk, G, c);
                fill_system(s, G, c, rows, system, attention);
            }
            float *x = s.block.values + panel * s.block.values_panel;
            char *out = const_cast<char *>(element(p.out, sequence.batch, sequence.start + offset,
                                                   share.key_head, head)) +
                        column_of(panel) * element_size(p.out.dtype);
            with_format(p.out.dtype, [&](auto f) {
                solve_panel(f, s, c, system, attention,
                            s.state + panel * (width / Kind::kTerms) * kPanel, fresh, x,
                            columns_of(panel), out, p.out.token, ahead);
            });
            if (goes_on) update_panel(s, c, panel, fresh, ahead);
        }
        fresh = false;
        for (; mark < sequence.last_mark && batch.marks[mark].after == offset + n; ++mark)
            for (int64_t panel = share.first_panel; panel < share.last_panel; ++panel)
                write_state(matrix_of(batch.target, batch.marks[mark].state, panel), p.head_dim_k,
                            column_of(panel), columns_of(panel), s.master + panel * width * kPanel);
    }
}

}  // namespace GDN_PATH
}  // namespace gdn

// The gated delta rule token by token, for decode, drafts and sequences too short for a chunk.
//
// A strip of columns is taken through all tokens before the next strip is looked at. fp32 states of
// whole panels are updated where they lie, from the slot that is read to the slot that is written;
// others pass through scratch memory.
#pragma once

#include "inputs.h"
#include "states.h"
#include "step_forms.h"

namespace gdn {
namespace GDN_PATH {

struct StepScratch {
    Block block;       // rows and gates of one key head after another: [key head][tokens]
    float *key_query;  // [kChunk] q . k
    float *strip;      // [panel][width][kPanel]
};

// Vectors of a wide strip: where there are registers for the sums, whole rows of 128 columns are
// read as one run of memory.
constexpr int kWide = kLanes == 16 ? 8 : 4;

// Vectors of a key that stay in registers beside as many of the query, where states are rows of K.
constexpr int kHeld = kLanes == 16 ? 8 : 4;

// The block's pointers, of the i-th of some key heads.
inline Block of_key_head(const Block &all, int64_t i, int64_t r, int64_t panels) {
    Block b = all;
    b.keys += i * b.tokens * b.width;
    b.queries += i * b.tokens * b.width;
    b.values += i * panels * b.values_panel;
    b.decay += i * r * b.tokens;
    b.beta += i * r * b.tokens;
    return b;
}

// Rows and gates of n tokens of the share's key heads as `Token` takes them.
GDN_STAGE inline void prepare_steps(const Batch &batch, const Share &share, int64_t offset,
                                    int64_t n, StepScratch &s) {
    const gdn_problem &p = *batch.problem;
    const int64_t r = p.num_v_heads / p.num_heads, heads = share.num_key_heads;
    const int64_t panels = round_up(p.head_dim_v, kPanel) / kPanel;
    Block &b = s.block;
    b.tokens = b.rows = n;
    b.values_panel = n * kPanel;
    for (int64_t i = 0; i < heads; ++i)
        load_rows(batch, share, share.key_head + i, offset, of_key_head(b, i, r, r * panels));
    row_factors(b.queries, b.width, heads * n, p.l2norm, (float)p.scale, b.query_factor);
    row_factors(b.keys, b.width, heads * n, p.l2norm, 1.0f, b.key_factor);
    for (int64_t t = 0; t < heads * n; ++t) {
        Floats dot{};
        for (int64_t k = 0; k < b.width; k += kLanes) {
            float *key = b.keys + t * b.width + k, *query = b.queries + t * b.width + k;
            const Floats x = load(key) * b.key_factor[t], y = load(query) * b.query_factor[t];
            store(key, x);
            store(query, y);
            dot = fma(x, y, dot);
        }
        s.key_query[t] = sum(dot);
    }
    const int64_t first = heads > 1 ? 0 : share.first_panel / panels;
    const int64_t last = heads > 1 ? heads * r : (share.last_panel + panels - 1) / panels;
    float *decay = b.decay + first * n;
    load_gates(batch, batch.sequences[share.sequence], share.key_head, first, last - first, offset,
               n, decay, b.beta + first * n);
    for (int64_t i = 0; i < (last - first) * n; i += kLanes) store(decay + i, exp(load(decay + i)));
}

// A strip of panels of one value head, and where its state lies, token by token.
template <class Form>
struct StateStrip {
    static constexpr int N = Form::kVectors;

    const Batch &batch;
    const Sequence &sequence;
    const Block &b;    // of the key head
    const float *key_query;
    float *strip;
    int64_t value_head, column, columns, panel;
    bool in_place;

    Rows scratch() const {
        return {strip + panel * b.width * kPanel, Form::scratch_row(b.width)};
    }

    Rows of_pool(const gdn_states &states, const char *state) const {
        const Matrix m = head_matrix(states, state, value_head);
        return {(float *)m.data + column * m.v, m.v == 1 ? m.k : m.v};
    }

    // Memory of the state after a token: that of the next mark, and of none once no one wants it.
    Rows after(int64_t tokens, int64_t &mark) const {
        while (mark < sequence.last_mark && batch.marks[mark].after < tokens) ++mark;
        if (mark == sequence.last_mark && tokens == sequence.length) return {nullptr, 0};
        if (!in_place || mark == sequence.last_mark || !batch.marks[mark].state) return scratch();
        return of_pool(batch.target, batch.marks[mark].state);
    }

    Rows before_first() const {
        if (!sequence.state) return {nullptr, 0};
        if (in_place) return of_pool(batch.source, sequence.state);
        const int64_t K = batch.problem->head_dim_k;
        read_state(head_matrix(batch.source, sequence.state, value_head), K, K, column, columns,
                   scratch().data);
        return scratch();
    }

    void write_out(const Mark &mark, const Rows &from) const {
        if (in_place || !mark.state) return;
        write_state(head_matrix(batch.target, mark.state, value_head), batch.problem->head_dim_k,
                    column, columns, from.data);
    }

    void run(int64_t offset, int64_t head, char *out) const {
        const gdn_problem &p = *batch.problem;
        int64_t mark = sequence.first_mark;
        Rows from = offset ? after(offset, mark) : before_first();
        for (int64_t t = 0; t < b.tokens; ++t) {
            Token<N> token = {b.keys + t * b.width, b.queries + t * b.width,
                              b.decay[head * b.tokens + t], b.beta[head * b.tokens + t],
                              key_query[t], {}};
            GDN_UNROLL
            for (int n = 0; n < N; ++n)
                token.value[n] = load(b.values + (panel + n / 2) * b.values_panel + t * kPanel +
                                      n % 2 * kLanes);
            Floats output[N];
            const int64_t tokens = offset + t + 1;
            const Rows to = after(tokens, mark);
            Form::step(from, to, batch.from_memory, p.head_dim_k, token, output);
            from = to;
            if (mark < sequence.last_mark && batch.marks[mark].after == tokens)
                write_out(batch.marks[mark], to);
            with_format(p.out.dtype, [&](auto f) {
                typedef typename decltype(f)::Element Element;
                Element *row = (Element *)out + t * p.out.token + column;
                if (columns == N * kLanes) {
                    GDN_UNROLL
                    for (int n = 0; n < N; ++n) f.store(row + n * kLanes, output[n]);
                    return;
                }
                Element padded[N * kLanes];
                for (int n = 0; n < N; ++n) f.store(padded + n * kLanes, output[n]);
                __builtin_memcpy(row, padded, (size_t)columns * sizeof(Element));
            });
        }
    }
};

// Whether states can be updated where they lie, as rows of V or as rows of K.
enum class Place { kScratch, kRowsOfV, kRowsOfK };

GDN_INLINE Place place_of(const gdn_states &states, const gdn_problem &p) {
    if (states.dtype != GDN_FLOAT32 || p.head_dim_v % kPanel) return Place::kScratch;
    if (states.v == 1) return Place::kRowsOfV;
    return states.k == 1 && p.head_dim_k % kLanes == 0 ? Place::kRowsOfK : Place::kScratch;
}

GDN_INLINE Place place_of(const Batch &batch, const Sequence &sequence) {
    const gdn_problem &p = *batch.problem;
    const bool wanted = sequence.first_mark < sequence.last_mark;
    if (!sequence.state && !wanted) return Place::kScratch;
    const Place source = place_of(sequence.state ? batch.source : batch.target, p);
    const Place target = place_of(wanted ? batch.target : batch.source, p);
    return source == target ? source : Place::kScratch;
}

// The strips of one key head, `key_head`, through the tokens of a block.
inline void run_strips(const Batch &batch, const Share &share, Place place, int64_t key_head,
                       int64_t offset, const Block &b, const float *key_query, float *strip) {
    const gdn_problem &p = *batch.problem;
    const Sequence &sequence = batch.sequences[share.sequence];
    const int64_t V = p.head_dim_v, r = p.num_v_heads / p.num_heads;
    const int64_t panels = round_up(V, kPanel) / kPanel;
    for (int64_t panel = share.first_panel; panel < share.last_panel;) {
        const int64_t head = panel / panels, column = panel % panels * kPanel;
        const int64_t left = smaller(share.last_panel, (head + 1) * panels) - panel;
        char *out = const_cast<char *>(
            element(p.out, sequence.batch, sequence.start + offset, key_head, head));
        const bool wide = left >= kWide / 2;
        const auto run = [&](auto form, int64_t columns, bool in_place) {
            StateStrip<decltype(form)>{batch,  sequence, b,     key_query, strip, key_head * r + head,
                                       column, columns,  panel, in_place}
                .run(offset, head, out);
            panel += decltype(form)::kVectors / 2;
        };
        if (place == Place::kRowsOfV && wide)
            run(RowsOfV<kWide>{}, kWide * kLanes, true);
        else if (place == Place::kRowsOfK && wide && p.head_dim_k == kHeld * kLanes)
            run(RowsOfK<kHeld, kWide>{}, kWide * kLanes, true);
        else if (place == Place::kRowsOfK)
            run(RowsOfK<0, 2>{}, smaller(kPanel, V - column), true);
        else
            run(RowsOfV<2>{}, smaller(kPanel, V - column), place == Place::kRowsOfV);
    }
}

inline void run_share(const Batch &batch, const Share &share, StepScratch &s) {
    const gdn_problem &p = *batch.problem;
    const Sequence &sequence = batch.sequences[share.sequence];
    const int64_t r = p.num_v_heads / p.num_heads;
    const int64_t panels = r * (round_up(p.head_dim_v, kPanel) / kPanel);
    const Place place = place_of(batch, sequence);
    for (int64_t offset = 0; offset < sequence.length; offset += kChunk) {
        const int64_t n = smaller(kChunk, sequence.length - offset);
        prepare_steps(batch, share, offset, n, s);
        for (int64_t i = 0; i < share.num_key_heads; ++i)
            run_strips(batch, share, place, share.key_head + i, offset,
                       of_key_head(s.block, i, r, panels), s.key_query + i * n, s.strip);
    }
}

}  // namespace GDN_PATH
}  // namespace gdn

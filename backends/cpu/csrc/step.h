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
    Block block;
    float *key_query;  // [kChunk] q . k
    float *strip;      // [panel][width][kPanel]
};

// Vectors of a wide strip: where there are registers for the sums, whole rows of 128 columns are
// read as one run of memory.
constexpr int kWide = kLanes == 16 ? 8 : 4;

// Vectors of a key that stay in registers beside as many of the query, where states are rows of K.
constexpr int kHeld = kLanes == 16 ? 8 : 4;

// Turns a block's rows and gates into what `Token` takes.
inline void prepare_steps(const Share &share, int64_t panels, StepScratch &s) {
    Block &b = s.block;
    for (int64_t t = 0; t < b.tokens; ++t) {
        Floats dot{};
        for (int64_t k = 0; k < b.width; k += kLanes) {
            float *key = b.keys + t * b.width + k, *query = b.queries + t * b.width + k;
            store(key, load(key) * b.key_factor[t]);
            store(query, load(query) * b.query_factor[t]);
            dot = fma(load(key), load(query), dot);
        }
        s.key_query[t] = sum(dot);
    }
    for (int64_t head = share.first_panel / panels; head * panels < share.last_panel; ++head)
        for (int64_t t = 0; t < b.tokens; t += kLanes) {
            float *decay = b.decay + head * kChunk + t;
            store(decay, exp(load(decay)));
        }
}

// A strip of panels of one value head, and where its state lies, token by token.
template <class Form>
struct StateStrip {
    static constexpr int N = Form::kVectors;

    const Batch &batch;
    const Sequence &sequence;
    StepScratch &s;
    int64_t value_head, column, columns, panel;
    bool in_place;

    Rows scratch() const {
        return {s.strip + panel * s.block.width * kPanel, Form::scratch_row(s.block.width)};
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
        const Block &b = s.block;
        int64_t mark = sequence.first_mark;
        Rows from = offset ? after(offset, mark) : before_first();
        for (int64_t t = 0; t < b.tokens; ++t) {
            Token<N> token = {b.keys + t * b.width, b.queries + t * b.width,
                              b.decay[head * kChunk + t], b.beta[head * kChunk + t],
                              s.key_query[t], {}};
            GDN_UNROLL
            for (int n = 0; n < N; ++n)
                token.value[n] = load(b.values + (panel + n / 2) * kChunk * kPanel + t * kPanel +
                                      n % 2 * kLanes);
            Floats output[N];
            const int64_t tokens = offset + t + 1;
            const Rows to = after(tokens, mark);
            Form::step(from, to, p.head_dim_k, token, output);
            from = to;
            if (mark < sequence.last_mark && batch.marks[mark].after == tokens)
                write_out(batch.marks[mark], to);
            with_format(p.out.dtype, [&](auto f) {
                typedef typename decltype(f)::Element Element;
                Element padded[N * kLanes];
                for (int n = 0; n < N; ++n) f.store(padded + n * kLanes, output[n]);
                Element *row = (Element *)out + t * p.out.token + column;
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

inline void run_share(const Batch &batch, const Share &share, StepScratch &s) {
    const gdn_problem &p = *batch.problem;
    const Sequence &sequence = batch.sequences[share.sequence];
    const int64_t V = p.head_dim_v, r = p.num_v_heads / p.num_heads;
    const int64_t panels = round_up(V, kPanel) / kPanel;
    const Place place = place_of(batch, sequence);
    for (int64_t offset = 0; offset < sequence.length; offset += kChunk) {
        load_block(batch, share, offset, smaller(kChunk, sequence.length - offset), 1, s.block);
        prepare_steps(share, panels, s);
        for (int64_t panel = share.first_panel; panel < share.last_panel;) {
            const int64_t head = panel / panels, column = panel % panels * kPanel;
            const int64_t left = smaller(share.last_panel, (head + 1) * panels) - panel;
            const int64_t value_head = share.key_head * r + head;
            char *out = const_cast<char *>(element(p.out, sequence.batch, sequence.start + offset,
                                                   share.key_head, head));
            if (place == Place::kRowsOfV && left >= kWide / 2) {
                StateStrip<RowsOfV<kWide>>{batch,  sequence,       s,     value_head,
                                       column, kWide * kLanes, panel, true}
                    .run(offset, head, out);
                panel += kWide / 2;
                continue;
            }
            const int64_t columns = smaller(kPanel, V - column);
            if (place == Place::kRowsOfK && p.head_dim_k == kHeld * kLanes)
                StateStrip<RowsOfK<kHeld>>{batch,  sequence, s,     value_head,
                                           column, columns,  panel, true}
                    .run(offset, head, out);
            else if (place == Place::kRowsOfK)
                StateStrip<RowsOfK<0>>{batch, sequence, s, value_head, column, columns, panel, true}
                    .run(offset, head, out);
            else
                StateStrip<RowsOfV<2>>{batch,  sequence, s,     value_head,
                                   column, columns,  panel, place == Place::kRowsOfV}
                    .run(offset, head, out);
            ++panel;
        }
    }
}

}  // namespace GDN_PATH
}  // namespace gdn

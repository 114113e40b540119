// The kernels of one instruction set. Compiled once for each, with GDN_PATH its name.
#include "chunk.h"
#include "lines.h"
#include "step.h"

#define GDN_TEXT_(x) #x
#define GDN_TEXT(x) GDN_TEXT_(x)
#define GDN_JOIN_(a, b) a##b
#define GDN_JOIN(a, b) GDN_JOIN_(a, b)

namespace gdn {
namespace GDN_PATH {
namespace {

// Cuts one block of scratch memory into arrays; with no memory it only adds up their sizes.
struct Carver {
    char *at;
    int64_t used = 0;

    template <class T>
    T *take(int64_t count) {
        T *found = at ? (T *)(at + used) : nullptr;
        used += round_up(count * (int64_t)sizeof(T), kAlignment);
        return found;
    }
};

Block take_block(Carver &carver, const gdn_problem &p) {
    const int64_t width = round_up(p.head_dim_k, kPanel), r = p.num_v_heads / p.num_heads;
    const int64_t panels = r * (round_up(p.head_dim_v, kPanel) / kPanel);
    Block b = {};
    b.width = width;
    b.keys = carver.take<float>(kChunk * width);
    b.queries = carver.take<float>(kChunk * width);
    b.values = carver.take<float>(panels * kChunk * kPanel);
    b.values_panel = kChunk * kPanel;
    b.key_factor = carver.take<float>(kChunk);
    b.query_factor = carver.take<float>(kChunk);
    b.decay = carver.take<float>(r * kChunk);
    b.beta = carver.take<float>(r * kChunk);
    b.window = carver.take<float>((kMaxWidth - 1 + kChunk) * kPanel);
    return b;
}

template <class Kind>
ChunkScratch<Kind> take_chunk(Carver &carver, const gdn_problem &p) {
    typedef typename Kind::Element Element;
    const int64_t width = round_up(p.head_dim_k, kPanel), r = p.num_v_heads / p.num_heads;
    const int64_t panels = r * (round_up(p.head_dim_v, kPanel) / kPanel);
    ChunkScratch<Kind> s = {};
    s.block = take_block(carver, p);
    s.keys = carver.take<Element>(kChunk * width / Kind::kTerms);
    s.queries = carver.take<Element>(kChunk * width / Kind::kTerms);
    s.master = carver.take<float>(panels * width * kPanel);
    if constexpr (Kind::kTerms > 1) {
        s.key_rows = carver.take<Element>(kChunk / Kind::kTerms * width);
        s.state = carver.take<Element>(panels * width / Kind::kTerms * kPanel);
    } else {
        s.state = s.master;
    }
    s.update = carver.take<Element>(kChunk / Kind::kTerms * kPanel);
    s.key_dots = carver.take<float>(kChunk * kChunk);
    s.query_dots = carver.take<float>(kChunk * kChunk);
    s.system = carver.take<float>(r * kChunk * kChunk);
    s.attention = carver.take<float>(r * kChunk * kChunk);
    s.coefficients = carver.take<Coefficients>(r);
    return s;
}

StepScratch take_step(Carver &carver, const gdn_problem &p) {
    const int64_t width = round_up(p.head_dim_k, kPanel), r = p.num_v_heads / p.num_heads;
    const int64_t panels = r * (round_up(p.head_dim_v, kPanel) / kPanel);
    StepScratch s = {};
    s.block = take_block(carver, p);
    s.key_query = carver.take<float>(kChunk);
    s.strip = carver.take<float>(panels * width * kPanel);
    return s;
}

#if defined(__AVX512BF16__)
bool takes_pairs(const gdn_problem &p) {
    return !p.exact && p.q.dtype == GDN_BFLOAT16 && p.k.dtype == GDN_BFLOAT16;
}
#endif

int64_t scratch_size(const Batch *batch) {
    const gdn_problem &p = *batch->problem;
    Carver chunk{nullptr}, step{nullptr};
    take_chunk<Single>(chunk, p);
#if defined(__AVX512BF16__)
    Carver pairs{nullptr};
    take_chunk<Pairs>(pairs, p);
    if (pairs.used > chunk.used) chunk.used = pairs.used;
#endif
    take_step(step, p);
    const int64_t head = p.head_dim_k > p.head_dim_v ? p.head_dim_k : p.head_dim_v;
    const int64_t lines = batch->most_columns * head * (int64_t)sizeof(float);
    const int64_t most = chunk.used > step.used ? chunk.used : step.used;
    return most > lines ? most : lines;
}

void run_chunks(const Batch *batch, const Share *share, char *scratch) {
    Carver carver{scratch};
#if defined(__AVX512BF16__)
    if (takes_pairs(*batch->problem)) {
        ChunkScratch<Pairs> s = take_chunk<Pairs>(carver, *batch->problem);
        return run_share(*batch, *share, s);
    }
#endif
    ChunkScratch<Single> s = take_chunk<Single>(carver, *batch->problem);
    run_share(*batch, *share, s);
}

void run_steps(const Batch *batch, const Share *share, char *scratch) {
    Carver carver{scratch};
    StepScratch s = take_step(carver, *batch->problem);
    run_share(*batch, *share, s);
}

void prepare(const Batch *batch, int64_t key_head, float *taps) {
    prepare_taps(*batch, key_head, taps);
}

void save(const Batch *batch, int64_t sequence, int64_t key_head, char *scratch) {
    save_lines(*batch, sequence, key_head, scratch);
}

}  // namespace
}  // namespace GDN_PATH

extern const Kernels GDN_JOIN(kernels_, GDN_PATH);
const Kernels GDN_JOIN(kernels_, GDN_PATH) = {
    GDN_TEXT(GDN_PATH),     GDN_PATH::kPanel, GDN_PATH::scratch_size, GDN_PATH::run_chunks,
    GDN_PATH::run_steps, GDN_PATH::prepare, GDN_PATH::save,
};

}  // namespace gdn

#include "schedule.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include <omp.h>

namespace gdn {
namespace {

constexpr int64_t kPage = 4096;  // on pages of its own, a thread's memory is near its core

// A calling thread's memory, which only grows; freed with the thread.
class Scratch {
public:
    ~Scratch() { std::free(memory_); }

    char *of_size(int64_t size) {
        if (size > size_) {
            std::free(memory_);
            size_ = 0;
            void *memory = nullptr;
            if (posix_memalign(&memory, kPage, (size_t)size)) memory = nullptr;
            memory_ = (char *)memory;
            if (memory_) size_ = size;
        }
        return memory_;
    }

private:
    char *memory_ = nullptr;
    int64_t size_ = 0;
};

thread_local Scratch scratch_of_thread;
thread_local Scratch taps_of_thread;
thread_local std::vector<Share> shares_of_thread;

constexpr int64_t kCached = 32 << 20;  // bytes of states that may lie in a cache since the last call
constexpr int64_t kSharesPerThread = 3;
constexpr int64_t kMostHeads = 8;  // key heads of a share: more would save little, and balance worse

// Shares of the work, the longest first. A key head is cut into column panels only where sequences
// and key heads alone would leave threads without work: every cut repeats what the panels share.
void cut(const Kernels &kernels, const Plan &plan, const gdn_problem &p,
         std::vector<Share> &shares) {
    const int64_t r = p.num_v_heads / p.num_heads;
    const int64_t panels = r * ((p.head_dim_v + kernels.panel - 1) / kernels.panel);
    int64_t tokens = 0;
    for (const Sequence &s : plan.sequences) tokens += s.length;
    const int64_t wanted = p.num_threads > 1 ? p.num_threads * kSharesPerThread : 1;

    std::vector<int64_t> order(plan.sequences.size());
    for (size_t n = 0; n < order.size(); ++n) order[n] = (int64_t)n;
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return plan.sequences[(size_t)a].length > plan.sequences[(size_t)b].length;
    });
    shares.clear();
    // In as many rounds as there are threads, so that the run of every thread begins with a long one.
    for (int64_t i = 0, first = 0, at = 0; i < (int64_t)order.size(); ++i, at += p.num_threads) {
        if (at >= (int64_t)order.size()) at = ++first;
        const int64_t n = order[(size_t)at];
        // Of `wanted` shares in all, as many as the sequence has of the tokens.
        const Sequence &s = plan.sequences[(size_t)n];
        const int64_t some = wanted * s.length / tokens, H = p.num_heads;
        const int64_t parts = std::clamp<int64_t>((some + H - 1) / H, 1, panels);
        // Key heads that take a step together share its preparation.
        int64_t groups = H;
        if (s.stepwise && parts == 1) {
            const int64_t most = std::clamp<int64_t>(kChunk / s.length, 1, kMostHeads);
            groups = std::clamp<int64_t>(some, (H + most - 1) / most, H);
        }
        for (int64_t i = 0; i < groups; ++i) {
            const int64_t h = H * i / groups, heads = H * (i + 1) / groups - h;
            for (int64_t j = 0; j < parts; ++j)
                shares.push_back({n, h, heads, panels * j / parts, panels * (j + 1) / parts});
        }
    }
}

// Shares handed out: every thread has a run of them, and takes others' when its own are done. A
// state that a thread has in its cache so comes back to that thread with the next call, and yet no
// thread waits while there is work.
class Deal {
public:
    Deal(int64_t threads, int64_t num_shares) : taken_((size_t)threads), num_shares_(num_shares) {}

    // The next share for a thread of a team of `threads`; -1 when there are none.
    int64_t next(int64_t thread, int64_t threads) {
        for (int64_t i = 0; i < threads; ++i) {
            const int64_t owner = (thread + i) % threads;
            std::atomic<int64_t> &taken = taken_[(size_t)owner].shares;
            const int64_t share =
                num_shares_ * owner / threads + taken.fetch_add(1, std::memory_order_relaxed);
            if (share < num_shares_ * (owner + 1) / threads) return share;
        }
        return -1;
    }

private:
    struct alignas(kAlignment) Taken {
        std::atomic<int64_t> shares{0};
    };
    std::vector<Taken> taken_;
    int64_t num_shares_;
};

}  // namespace

int64_t run(const Kernels &kernels, const Plan &plan, Batch batch) {
    const gdn_problem &p = *batch.problem;
    if (plan.sequences.empty()) return GDN_OK;
    batch.sequences = plan.sequences.data();
    batch.marks = plan.marks.data();
    batch.line_marks = plan.line_marks.data();
    std::vector<Share> &shares = shares_of_thread;
    cut(kernels, plan, p, shares);

    const bool conv = batch.conv.width != 0;
    float *taps = nullptr;
    if (conv) {
        const int64_t D = 2 * p.num_heads * p.head_dim_k + p.num_v_heads * p.head_dim_v;
        // Vectors of taps may begin at the last channel.
        const int64_t count = (batch.conv.width + 1) * D + 2 * kernels.panel;
        taps = (float *)taps_of_thread.of_size(count * (int64_t)sizeof(float));
        if (!taps) return GDN_NO_MEMORY;
        batch.conv.taps = taps;
    }
    for (const LineMark &mark : plan.line_marks)
        batch.most_columns = std::max(batch.most_columns, mark.columns);
    batch.from_memory = (int64_t)plan.sequences.size() * p.num_v_heads * p.head_dim_k *
                            p.head_dim_v * (int64_t)sizeof(float) >
                        kCached;
    const int64_t size = (kernels.scratch_size(&batch) + kPage - 1) / kPage * kPage;
    const int64_t num_shares = (int64_t)shares.size();
    const Share *first_share = shares.data();
    const int64_t num_lines = (int64_t)plan.sequences.size() * p.num_heads;
    const int64_t threads = std::min(p.num_threads, num_shares);
    Deal deal(threads, num_shares);

    // Every thread's at once: in memory of their own, they would have to wait for each other before
    // they may write anything, because one of them might have none.
    char *const all_scratch = scratch_of_thread.of_size(threads * size);
    if (!all_scratch) return GDN_NO_MEMORY;

#pragma omp parallel num_threads((int)threads) default(shared)
    {
        const int thread = omp_get_thread_num(), team = omp_get_num_threads();
        char *scratch = all_scratch + thread * size;
        if (conv) {
#pragma omp for schedule(static)
            for (int64_t h = 0; h < p.num_heads; ++h) kernels.prepare_taps(&batch, h, taps);
        }
        for (int64_t i; (i = deal.next(thread, team)) >= 0;) {
            const Share &share = first_share[i];
            const bool stepwise = batch.sequences[share.sequence].stepwise;
            (stepwise ? kernels.run_steps : kernels.run_chunks)(&batch, &share, scratch);
        }
        // Lines last, when no share reads them any more.
        if (conv) {
#pragma omp barrier
#pragma omp for schedule(dynamic, 4)
            for (int64_t i = 0; i < num_lines; ++i)
                kernels.save_lines(&batch, i / p.num_heads, i % p.num_heads, scratch);
        }
    }
    return GDN_OK;
}

}  // namespace gdn

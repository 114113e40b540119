// gdn_rule: the recurrence alone, on initial states that are arguments.
#include <new>

#include "dispatch.h"
#include "output.h"
#include "schedule.h"

namespace gdn {
namespace {

thread_local Plan plan_of_thread;

char *state_at(const gdn_states &states, int64_t slot) {
    const int64_t size = states.dtype == GDN_FLOAT32 ? 4 : 2;
    return states.dtype ? (char *)states.data + slot * states.slot * size : nullptr;
}

int64_t run_rule(const gdn_rule_call &call) {
    const Kernels *kernels = kernels_for(call.problem.path);
    if (!kernels) return GDN_NO_SUCH_PATH;
    Plan &plan = plan_of_thread;
    plan.clear();
    int64_t end = call.num_tokens;
    for (int64_t n = 0; n < call.num_seqs; ++n) {
        Sequence s = {};
        s.batch = call.starts ? 0 : n;
        s.start = call.starts ? call.starts[n] : 0;
        s.length = call.starts ? call.starts[n + 1] - s.start : call.num_tokens;
        if (!s.length) continue;  // the caller's: no state of its own to compute
        s.stepwise = call.problem.recurrent || s.length <= kMaxSteps;
        s.state = state_at(call.initial, n);
        s.first_mark = (int64_t)plan.marks.size();
        if (char *target = state_at(call.final, n)) plan.marks.push_back({s.length, target});
        s.last_mark = (int64_t)plan.marks.size();
        plan.sequences.push_back(s);
    }
    if (call.starts) {
        end = call.starts[call.num_seqs];
        zero_output(call.problem, end, call.num_tokens);
    }
    Batch batch = {};
    batch.problem = &call.problem;
    batch.source = call.initial;
    batch.target = call.final;
    return run(*kernels, plan, batch);
}

}  // namespace
}  // namespace gdn

extern "C" int64_t gdn_rule(const gdn_rule_call *call) {
    try {
        return gdn::run_rule(*call);
    } catch (const std::bad_alloc &) {
        return GDN_NO_MEMORY;
    }
}

extern "C" int64_t gdn_rule_call_size(void) { return sizeof(gdn_rule_call); }
extern "C" int64_t gdn_chunk_size(void) { return gdn::kChunk; }
extern "C" int64_t gdn_best_path(void) { return gdn::best_path(); }
extern "C" int64_t gdn_has_path(int64_t path) { return gdn::kernels_for(path) != nullptr; }

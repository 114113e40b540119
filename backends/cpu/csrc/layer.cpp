// gdn_layer: convolution, heads, gates and recurrence on an engine's pools.
//
// Slots are resolved, and refused, before anything is written. A slot that is negative or equals
// pad_slot is padding: as a row's first write slot it makes the row padding, as a read slot it
// means zeros, in a later column it drops that state.
#include <new>

#include "dispatch.h"
#include "output.h"
#include "schedule.h"

namespace gdn {
namespace {

thread_local Plan plan_of_thread;

int64_t number(const gdn_row_numbers &numbers, int64_t row, int64_t column) {
    const int64_t at = row * numbers.row + column * numbers.column;
    switch (numbers.bits) {
        case 64: return ((const int64_t *)numbers.data)[at];
        case 32: return ((const int32_t *)numbers.data)[at];
        default: return ((const uint8_t *)numbers.data)[at];
    }
}

class Rows {
public:
    Rows(const gdn_layer_call &call, Plan &plan, gdn_fault &fault)
        : call_(call), plan_(plan), fault_(fault) {}

    // Fills the plan; returns a gdn_status, and in the fault what is wrong.
    int64_t resolve() {
        for (int64_t n = 0; n < call_.num_seqs && !status_; ++n) resolve(n);
        return status_;
    }

    bool is_padding(int64_t slot) const { return slot < 0 || slot == call_.pad_slot; }

private:
    void resolve(int64_t n) {
        const int64_t start = call_.starts[n], length = call_.starts[n + 1] - start;
        const int64_t own = number(call_.write, n, 0);
        const int64_t checkpoint = checkpoint_;
        while (checkpoint_ < call_.num_checkpoints && call_.checkpoint_rows[checkpoint_] == n)
            ++checkpoint_;
        if (!length || is_padding(own)) return;
        const bool speculative = call_.speculative && call_.speculative[n];
        const bool reads = !call_.has_initial.data || number(call_.has_initial, n, 0);

        Sequence s = {};
        s.start = start;
        s.length = length;
        s.stepwise = speculative || length <= kMaxSteps;
        s.first_mark = (int64_t)plan_.marks.size();
        s.first_line_mark = (int64_t)plan_.line_marks.size();
        int64_t accepted = 1;
        if (speculative) {
            accepted = call_.accepted.data ? number(call_.accepted, n, 0) : 0;
            if (accepted < 1 || accepted > call_.columns)
                return fail(GDN_BAD_ACCEPTED, n, accepted, call_.columns);
        }
        if (reads) {
            s.state = state(GDN_BAD_READ_SLOT, n, number(call_.read, n, accepted - 1));
            s.line = line(GDN_BAD_READ_SLOT, n, number(call_.read, n, 0), accepted - 1);
        }
        const int64_t history = call_.width - 1;
        if (speculative) {
            for (int64_t t = 0; t < length; ++t) {
                const int64_t slot = number(call_.write, n, t);
                plan_.marks.push_back({t + 1, state(GDN_BAD_WRITE_SLOT, n, slot)});
            }
        } else {
            for (int64_t i = checkpoint; i < checkpoint_; ++i) {
                const int64_t offset = call_.checkpoint_offsets[i];
                const int64_t slot = call_.checkpoint_slots[i];
                if (is_padding(slot)) continue;
                plan_.marks.push_back({offset, state(GDN_BAD_CHECKPOINT, n, slot)});
                mark_line(offset, history, line(GDN_BAD_CHECKPOINT, n, slot, 0));
            }
            plan_.marks.push_back({length, state(GDN_BAD_WRITE_SLOT, n, own)});
        }
        mark_line(length, speculative ? history - 1 + length : history,
                  line(GDN_BAD_WRITE_SLOT, n, own, 0));
        s.last_mark = (int64_t)plan_.marks.size();
        s.last_line_mark = (int64_t)plan_.line_marks.size();
        plan_.sequences.push_back(s);
    }

    void mark_line(int64_t after, int64_t columns, char *line) {
        if (columns > 0) plan_.line_marks.push_back({after, columns, line});
    }

    bool inside(int64_t status, int64_t row, int64_t slot) {
        const int64_t slots =
            call_.states.slots < call_.line_slots ? call_.states.slots : call_.line_slots;
        if (slot < slots) return true;
        fail(status, row, slot, slots);
        return false;
    }

    char *state(int64_t status, int64_t row, int64_t slot) {
        if (is_padding(slot) || !inside(status, row, slot)) return nullptr;
        const int64_t size = call_.states.dtype == GDN_FLOAT32 ? 4 : 2;
        return (char *)call_.states.data + slot * call_.states.slot * size;
    }

    char *line(int64_t status, int64_t row, int64_t slot, int64_t column) {
        if (is_padding(slot) || !inside(status, row, slot)) return nullptr;
        const int64_t size = call_.lines.dtype == GDN_FLOAT32 ? 4 : 2;
        return (char *)call_.lines.data +
               (slot * call_.lines.batch + column * call_.lines.token) * size;
    }

    void fail(int64_t status, int64_t row, int64_t value, int64_t limit) {
        if (status_) return;
        status_ = status;
        fault_ = {row, value, limit};
    }

    const gdn_layer_call &call_;
    Plan &plan_;
    gdn_fault &fault_;
    int64_t status_ = GDN_OK;
    int64_t checkpoint_ = 0;
};

int64_t run_layer(const gdn_layer_call &call, gdn_fault &fault) {
    const Kernels *kernels = kernels_for(call.problem.path);
    if (!kernels) return GDN_NO_SUCH_PATH;
    Plan &plan = plan_of_thread;
    plan.clear();
    Rows rows(call, plan, fault);
    if (const int64_t status = rows.resolve()) return status;

    Batch batch = {};
    batch.problem = &call.problem;
    batch.conv = {call.width, call.silu, call.weight, call.bias, call.lines, nullptr};
    batch.source = batch.target = call.states;
    if (const int64_t status = run(*kernels, plan, batch)) return status;

    for (int64_t n = 0; n < call.num_seqs; ++n)
        if (rows.is_padding(number(call.write, n, 0)))
            zero_output(call.problem, call.starts[n], call.starts[n + 1]);
    zero_output(call.problem, call.starts[call.num_seqs], call.num_tokens);
    return GDN_OK;
}

}  // namespace
}  // namespace gdn

extern "C" int64_t gdn_layer(const gdn_layer_call *call, gdn_fault *fault) {
    try {
        return gdn::run_layer(*call, *fault);
    } catch (const std::bad_alloc &) {
        return GDN_NO_MEMORY;
    }
}

extern "C" int64_t gdn_layer_call_size(void) { return sizeof(gdn_layer_call); }

// What the next block will read and write, asked for while this one is computed.
//
// Rows of one head lie pages apart, where no hardware prefetcher follows: every one would be a miss
// that nothing hides. Many prefetches at once fill the queue of misses and wait in it, so they are
// issued a few at a time, between register tiles, into the second-level cache.
#pragma once

#include "inputs.h"

namespace gdn {
namespace GDN_PATH {

constexpr int64_t kCacheLine = 64;

class Ahead {
public:
    // Of tokens [offset, offset + n) of the share's sequence, in at most `touches` touches.
    void begin(const Batch &batch, const Share &share, int64_t offset, int64_t n, int64_t touches) {
        count_ = stream_ = at_ = left_ = 0;
        if (n <= 0) return;
        const gdn_problem &p = *batch.problem;
        const Sequence &sequence = batch.sequences[share.sequence];
        const int64_t V = p.head_dim_v, h = share.key_head, t = sequence.start + offset;
        const int64_t panels = round_up(V, kPanel) / kPanel;
        add(p.q, element(p.q, sequence.batch, t, h, 0), p.head_dim_k, n);
        add(p.k, element(p.k, sequence.batch, t, h, 0), p.head_dim_k, n);
        for (int64_t panel = share.first_panel; panel < share.last_panel;) {
            const int64_t head = panel / panels, c = panel % panels * kPanel;
            const int64_t last = smaller(share.last_panel, (head + 1) * panels);
            const int64_t columns = smaller((last - panel) * kPanel, V - c);
            add(p.v, element(p.v, sequence.batch, t, h, head) + c * element_size(p.v.dtype),
                columns, n);
            add(p.out, element(p.out, sequence.batch, t, h, head) + c * element_size(p.out.dtype),
                columns, n);
            panel = last;
        }
        per_touch_ = (left_ + touches - 1) / touches;
    }

    // Asks for the next few cache lines: a row of every tensor, then the rows of the next token.
    GDN_INLINE void touch() {
        for (int64_t i = 0; i < per_touch_ && left_; ++i, --left_) {
            Stream &s = streams_[stream_];
            __builtin_prefetch(s.row + at_, 0, 2);
            at_ += kCacheLine;
            if (at_ < s.bytes) continue;
            at_ = 0;
            s.row += s.stride;
            stream_ = stream_ + 1 == count_ ? 0 : stream_ + 1;
        }
    }

private:
    struct Stream {
        const char *row;
        int64_t stride, bytes;  // from row to row, of a row
    };

    void add(const gdn_tensor &x, const char *row, int64_t columns, int64_t n) {
        const int64_t size = element_size(x.dtype);
        if (x.channel != 1 || count_ == kMost) return;
        streams_[count_++] = {row, x.token * size, columns * size};
        left_ += n * ((columns * size + kCacheLine - 1) / kCacheLine);
    }

    static constexpr int64_t kMost = 18;  // q, k, and v and the output of eight value heads
    Stream streams_[kMost];
    int64_t count_, stream_, at_, left_, per_touch_ = 0;
};

}  // namespace GDN_PATH
}  // namespace gdn

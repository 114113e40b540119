"""Chunk tables out of lengths that only the device knows; vector cores.

One task a block size scans the sequences. Then one task a block of rows asks, for all sequences in
turn, which of them each of its rows belongs to: comparing and counting, where a search by halving
would load one number at a time. Numbers are counted and compared in fp32, exact below 2^24.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_seqs", "stride"])
def scan_kernel(
    cu_seqlens, sizes, offsets, update_offsets, final_indices, lives,
    num_seqs, stride, num_sizes, BLOCK: tl.constexpr,
):  # fmt: skip
    """Offsets of every size, [sizes, stride] each, and how many sequences up to each are not empty.

    ``lives`` [stride] starts with 0, as the offsets do.
    """
    core = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    for i in range((num_sizes - core + tl.num_programs(0) - 1) // tl.num_programs(0)):
        which = core + i * tl.num_programs(0)
        size = tl.load(sizes + which)
        at = which * stride
        tl.store(offsets + at + column, tl.zeros([BLOCK], tl.int32), mask=column < 1)
        tl.store(update_offsets + at + column, tl.zeros([BLOCK], tl.int32), mask=column < 1)
        bound = tl.where(which == 0, 1, 0)
        tl.store(lives + column, tl.zeros([BLOCK], tl.int32), mask=column < bound)
        chunks = tl.zeros([1], tl.float32)
        alive = tl.zeros([1], tl.float32)
        for first in range(0, num_seqs, BLOCK):
            here = column < num_seqs - first
            start = tl.load(cu_seqlens + first + column, mask=here, other=0).to(tl.int32)
            end = tl.load(cu_seqlens + first + column + 1, mask=here, other=0).to(tl.int32)
            length = end - start
            count = ((length + (size - 1)) // size).to(tl.float32)
            total = chunks + tl.cumsum(count, axis=0)
            place = at + first
            number = (first + column).to(tl.float32)
            tl.store(offsets + place + column + 1, total.to(tl.int32), mask=here)
            tl.store(
                update_offsets + place + column + 1, (total + number + 1.0).to(tl.int32), mask=here
            )
            tl.store(final_indices + place + column, (total + number).to(tl.int32), mask=here)
            life = tl.where(length.to(tl.float32) > 0.0, 1.0, 0.0)
            upto = alive + tl.cumsum(life, axis=0)
            mine = column < tl.where(which == 0, num_seqs - first, 0)
            tl.store(lives + first + column + 1, upto.to(tl.int32), mask=mine)
            chunks = chunks + tl.sum(count, axis=0)
            alive = alive + tl.sum(life, axis=0)


@triton.jit(do_not_specialize=["num_seqs", "stride", "capacity"])
def fill_kernel(
    cu_seqlens, indices, nonempty, cu_nonempty, num_nonempty, offsets, lives,
    num_seqs, stride, capacity, num_sizes, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows [q, i] of every size, ``indices`` [sizes, capacity, 2], -1 past the last chunk.

    Then the numbers of the sequences that are not empty, -1 past the last, and cu_seqlens without
    the empty ones, which repeats its last value.
    """
    core = tl.program_id(0)
    r, s = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    column = tl.arange(0, 2)
    is_q = column.to(tl.float32)[None, :] == 0.0
    blocks = (capacity + ROWS - 1) // ROWS
    tasks = blocks * num_sizes
    for i in range((tasks - core + tl.num_programs(0) - 1) // tl.num_programs(0)):
        task = core + i * tl.num_programs(0)
        which = task // blocks
        begin = task % blocks * ROWS
        row = (begin + r).to(tl.float32)
        before = tl.zeros([ROWS], tl.float32)  # sequences whose first chunk is not past the row
        first = tl.zeros([ROWS], tl.float32)  # and the last of those first chunks
        for base in range(0, num_seqs, BLOCK):
            here = s < num_seqs - base
            at = offsets + which * stride + base
            start = tl.load(at + s, mask=here, other=0).to(tl.float32)
            end = tl.load(at + s + 1, mask=here, other=0).to(tl.float32)
            counts = (start[None, :] <= row[:, None]) & (end[None, :] > start[None, :])
            before += tl.sum(tl.where(counts, 1.0, 0.0), axis=1)
            most = tl.max(tl.where(counts, start[None, :] + tl.zeros_like(row)[:, None], 0.0), 1)
            first = tl.maximum(first, most)
        exists = row < tl.load(offsets + which * stride + num_seqs).to(tl.float32)
        q = tl.where(exists, before - 1.0, -1.0)
        n = tl.where(exists, row - first, -1.0)
        pair = tl.where(is_q, q[:, None], n[:, None]).to(tl.int32)
        at = indices + tl.cast(which, tl.int64) * (capacity * 2) + begin * 2
        inside = (r < capacity - begin)[:, None] & (column < 2)[None, :]
        tl.store(at + (r[:, None] * 2 + column[None, :]), pair, mask=inside)

    last = tl.load(cu_seqlens + num_seqs).to(tl.int32)
    alive = tl.load(lives + num_seqs)
    one = tl.where(core == 0, 1, 0)
    tl.store(num_nonempty + s, tl.zeros([BLOCK], tl.int32) + alive, mask=s < one)
    tl.store(cu_nonempty + s, tl.zeros([BLOCK], tl.int32), mask=s < one)
    tasks = (num_seqs + ROWS - 1) // ROWS
    for i in range((tasks - core + tl.num_programs(0) - 1) // tl.num_programs(0)):
        begin = (core + i * tl.num_programs(0)) * ROWS
        row = (begin + r).to(tl.float32)
        passed = tl.zeros([ROWS], tl.float32)  # sequences up to the one looked for
        ends = tl.zeros([ROWS], tl.float32)  # and where it ends
        for base in range(0, num_seqs, BLOCK):
            here = s < num_seqs - base
            upto = tl.load(lives + base + 1 + s, mask=here, other=0x7FFFFF).to(tl.float32)
            end = tl.load(cu_seqlens + base + 1 + s, mask=here, other=0).to(tl.int32)
            end = end.to(tl.float32)
            short = upto[None, :] <= row[:, None]
            passed += tl.sum(tl.where(short, 1.0, 0.0), axis=1)
            reached = upto[None, :] <= row[:, None] + 1.0
            most = tl.max(tl.where(reached, end[None, :] + tl.zeros_like(row)[:, None], 0.0), 1)
            ends = tl.maximum(ends, most)
        exists = row < alive.to(tl.float32)
        inside = r < num_seqs - begin
        tl.store(nonempty + begin + r, tl.where(exists, passed, -1.0).to(tl.int32), mask=inside)
        ends = tl.where(exists, ends, last.to(tl.float32))
        tl.store(cu_nonempty + begin + 1 + r, ends.to(tl.int32), mask=inside)

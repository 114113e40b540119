"""Ascend's tables out of lengths that only the device knows, as Triton kernels for an NPU.

``scan_kernel`` is one program: a pass over the sequences, which leaves for each how many chunks and
how many sequences with tokens come before it. ``fill_kernel`` is a program a core, which takes one
sequence in so many: what it writes for it lies in one run, so nothing is looked up or scattered.
Rows [q, i] are stored as one [BLOCK, 2] tile: triton-ascend 3.2.0 crashes on two interleaved masked
stores. Vectors are int32 throughout; an int64 is cast as it is loaded.

Masked loads give 0, so that what lies past the last sequence has no tokens. A chunk count is
``len // C`` and one more for a rest: ``len + C - 1`` could leave int32.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs
# mypy: no-check-untyped-defs
import triton
import triton.language as tl


@triton.jit
def _count(length, SIZE: tl.constexpr):
    whole = length // SIZE
    return whole + (length > whole * SIZE).to(tl.int32)


@triton.jit(do_not_specialize=["num_seqs"])
def scan_kernel(
    cu_seqlens, offsets, update_offsets, final_indices, large_offsets, cumsum_offsets,
    numbers, keep, num_seqs,
    CHUNK: tl.constexpr, LARGE: tl.constexpr, CUMSUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Offsets of the three block sizes ``[n+1]``; ``numbers`` ``[n+1]`` ends with m.

    ``update_offsets`` counts a chunk more for every sequence, ``final_indices`` is one less than
    its end.
    """
    column = tl.arange(0, BLOCK)
    chunks, large, blocks, compact = 0, 0, 0, 0
    tl.store(offsets, 0)
    tl.store(update_offsets, 0)
    tl.store(large_offsets, 0)
    tl.store(cumsum_offsets, 0)
    for first in range(0, num_seqs, BLOCK):
        s = first + column
        here = s < num_seqs
        start = tl.load(cu_seqlens + s, mask=here, other=0).to(tl.int32)
        end = tl.load(cu_seqlens + s + 1, mask=here, other=0).to(tl.int32)
        length = end - start

        count = _count(length, CHUNK)
        total = chunks + tl.cumsum(count, 0)
        tl.store(offsets + s + 1, total, mask=here)
        tl.store(update_offsets + s + 1, total + s + 1, mask=here)
        tl.store(final_indices + s, total + s, mask=here)
        chunks += tl.sum(count, 0)

        count = _count(length, LARGE)
        tl.store(large_offsets + s + 1, large + tl.cumsum(count, 0), mask=here)
        large += tl.sum(count, 0)

        count = _count(length, CUMSUM)
        tl.store(cumsum_offsets + s + 1, blocks + tl.cumsum(count, 0), mask=here)
        blocks += tl.sum(count, 0)

        lives = (length > 0).to(tl.int32)
        tl.store(numbers + s, compact + tl.cumsum(lives, 0) - lives, mask=here)
        tl.store(keep + s, lives.to(tl.int8), mask=here)
        compact += tl.sum(lives, 0)
    tl.store(numbers + num_seqs, compact)


@triton.jit
def _fill_rows(indices, offsets, s, q, BLOCK: tl.constexpr):
    """Rows [q, i] of one sequence; ``offsets[s] .. offsets[s+1]`` is where they lie."""
    first = tl.load(offsets + s)
    last = tl.load(offsets + s + 1)
    column = tl.arange(0, 2)
    for at in range(first, last, BLOCK):
        j = at + tl.arange(0, BLOCK)
        rows = tl.where(column[None, :] == 0, q, (j - first)[:, None])
        tl.store(indices + j[:, None] * 2 + column[None, :], rows, mask=(j < last)[:, None])


@triton.jit
def _fill_tail(indices, offsets, num_seqs, capacity, core, cores, BLOCK: tl.constexpr):
    """Rows past the last chunk: -1."""
    total = tl.load(offsets + num_seqs)
    column = tl.arange(0, 2)
    for at in range(total + core * BLOCK, capacity, cores * BLOCK):
        j = at + tl.arange(0, BLOCK)
        rows = tl.full((BLOCK, 2), -1, tl.int32)
        tl.store(indices + j[:, None] * 2 + column[None, :], rows, mask=(j < capacity)[:, None])


@triton.jit(do_not_specialize=["num_seqs", "capacity", "large_capacity", "cumsum_capacity"])
def fill_kernel(
    cu_seqlens, offsets, large_offsets, cumsum_offsets, numbers,
    indices, large_indices, cumsum_indices, cu_nonempty, nonempty,
    num_seqs, capacity, large_capacity, cumsum_capacity, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of the three tables, and the sequences with tokens; tails as ``AscendTables`` says."""
    core = tl.program_id(0)
    cores = tl.num_programs(0)
    for s in range(core, num_seqs, cores):
        q = tl.load(numbers + s)
        _fill_rows(indices, offsets, s, q, BLOCK)
        _fill_rows(large_indices, large_offsets, s, q, BLOCK)
        _fill_rows(cumsum_indices, cumsum_offsets, s, q, BLOCK)
        end = tl.load(cu_seqlens + s + 1)
        for place in range(q, tl.load(numbers + s + 1)):  # once, or never: a run-time if costs room
            tl.store(cu_nonempty + place + 1, tl.cast(end, tl.int32))
            tl.store(nonempty + place, s)
    _fill_tail(indices, offsets, num_seqs, capacity, core, cores, BLOCK)
    _fill_tail(large_indices, large_offsets, num_seqs, large_capacity, core, cores, BLOCK)
    _fill_tail(cumsum_indices, cumsum_offsets, num_seqs, cumsum_capacity, core, cores, BLOCK)
    tl.store(cu_nonempty, 0)  # by every program, the same
    used = tl.load(numbers + num_seqs)
    last = tl.cast(tl.load(cu_seqlens + num_seqs), tl.int32)
    for at in range(used + core * BLOCK, num_seqs, cores * BLOCK):
        k = at + tl.arange(0, BLOCK)
        tl.store(cu_nonempty + k + 1, tl.zeros((BLOCK,), tl.int32) + last, mask=k < num_seqs)
        tl.store(nonempty + k, tl.full((BLOCK,), -1, tl.int32), mask=k < num_seqs)

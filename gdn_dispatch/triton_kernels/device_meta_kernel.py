"""Chunk tables out of lengths that only the device knows.

One program a block size scans the sequences; then one program a block of chunks looks up, by
halving, which sequence each of its chunks belongs to.
"""

import triton
import triton.language as tl


@triton.jit
def _size_of(which, SIZES: tl.constexpr):
    size = which * 0 + SIZES[0]
    for i in tl.static_range(1, len(SIZES)):
        size = tl.where(which == i, SIZES[i], size)
    return size


@triton.jit(do_not_specialize=["num_seqs", "stride"])
def scan_kernel(
    cu_seqlens, offsets, update_offsets, final_indices, nonempty, cu_nonempty, num_nonempty,
    num_seqs, stride, SIZES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Offsets of one size, [sizes, stride] each; the first program numbers the non-empty ones.

    Tails: nonempty repeats -1, cu_nonempty its last value.
    """
    which = tl.program_id(0)
    size = _size_of(which, SIZES)
    offsets += which * stride
    update_offsets += which * stride
    final_indices += which * stride
    column = tl.arange(0, BLOCK)
    tl.store(offsets + column, 0, mask=column == 0)
    tl.store(update_offsets + column, 0, mask=column == 0)
    if which == 0:
        tl.store(cu_nonempty + column, 0, mask=column == 0)
    chunks, compact = num_seqs * 0, num_seqs * 0
    for first in range(0, num_seqs, BLOCK):
        s = first + column
        here = s < num_seqs
        start = tl.load(cu_seqlens + s, mask=here, other=0)
        end = tl.load(cu_seqlens + s + 1, mask=here, other=0)
        length = (end - start).to(tl.int32)
        count = (length + (size - 1)) // size
        total = chunks + tl.cumsum(count, 0)
        tl.store(offsets + s + 1, total, mask=here)
        tl.store(update_offsets + s + 1, total + s + 1, mask=here)
        tl.store(final_indices + s, total + s, mask=here)
        chunks += tl.sum(count, 0)
        if which == 0:
            lives = (length > 0).to(tl.int32)
            place = compact + tl.cumsum(lives, 0) - lives
            tl.store(nonempty + place, s, mask=here & (length > 0))
            tl.store(cu_nonempty + place + 1, end.to(tl.int32), mask=here & (length > 0))
            compact += tl.sum(lives, 0)
    if which == 0:
        tl.store(num_nonempty, compact)
        last = tl.load(cu_seqlens + num_seqs).to(tl.int32)
        for first in range(0, num_seqs, BLOCK):
            q = first + column
            tail = (q >= compact) & (q < num_seqs)
            tl.store(nonempty + q, -1, mask=tail)
            tl.store(cu_nonempty + q + 1, last, mask=tail)


@triton.jit(do_not_specialize=["num_seqs", "stride", "capacity", "steps"])
def fill_kernel(
    indices, tile_sequences, tile_offsets, offsets, nonempty, num_nonempty,
    num_seqs, stride, capacity, steps, num_tables, SIZES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows [q, i] of one size, ``indices`` [sizes, capacity, 2]; -1 past the last chunk.

    Size number ``num_tables``, where there is one, is that of the conv tiles, which name the
    sequence itself. ``steps`` halvings find one among ``num_seqs``.
    """
    which = tl.program_id(1)
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    offsets += which * stride
    exists = j < tl.load(offsets + num_seqs)
    low = j * 0  # the last q whose first chunk is not past j lies in [low, high)
    high = low + tl.load(num_nonempty)
    for _ in range(steps):
        middle = (low + high) // 2
        look = exists & (middle > low)
        s = tl.load(nonempty + middle, mask=look, other=0)
        past = tl.load(offsets + s, mask=look, other=0) > j
        low = tl.where(look & ~past, middle, low)
        high = tl.where(look & past, middle, high)
    s = tl.load(nonempty + low, mask=exists, other=-1)
    i = tl.where(exists, j - tl.load(offsets + s, mask=exists, other=0), -1)
    inside = j < capacity
    if which == num_tables:
        tl.store(tile_sequences + j, s, mask=inside)
        tl.store(tile_offsets + j, i, mask=inside)
    else:
        row = indices + (which.to(tl.int64) * capacity + j) * 2
        tl.store(row, tl.where(exists, low, -1), mask=inside)
        tl.store(row + 1, i, mask=inside)

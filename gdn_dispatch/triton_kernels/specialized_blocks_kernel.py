"""Blocks of 16 x 16 tokens of a chunk, a warp to a head, for Hopper.

What passes from product to product stays in the registers of a warp.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

__all__ = [
    "decay_within",
    "half",
    "quarter_of",
    "score_between",
    "score_within",
    "system_between",
    "system_within",
    "times",
    "times_shared",
]


@gluon.constexpr_function
def block_layout(heads):
    """Of blocks [heads, 16, 16]; fewer heads than warps are held more than once."""
    return gl.NVMMADistributedLayout([2, 0], [heads, 4 // heads, 1], [1, 16, 8])


@gluon.jit
def half(x):
    """As an operand of the inverse's products."""
    return x.to(gl.float16)


@gluon.jit
def times(left, right_t, add):
    """``left @ right + add``, the right operand given transposed: it lies as it is."""
    BLOCKS: gl.constexpr = left.type.layout
    return mma_v2(
        gl.convert_layout(left, gl.DotOperandLayout(0, BLOCKS, 2)),
        gl.convert_layout(gl.permute(right_t, (0, 2, 1)), gl.DotOperandLayout(1, BLOCKS, 2)),
        add,
    )


@gluon.jit
def times_shared(own, shared):
    """Numbers of heads [keys * heads, m, n], times those of their key heads [keys, m, n]."""
    KEYS: gl.constexpr = shared.shape[0]
    HEADS: gl.constexpr = own.shape[0] // KEYS
    LAYOUT: gl.constexpr = own.type.layout
    wide = own.reshape([KEYS, HEADS, own.shape[1], own.shape[2]])
    wide = wide * shared.load(gl.SliceLayout(1, wide.type.layout))[:, None, :, :]
    return gl.convert_layout(wide.reshape([KEYS * HEADS, own.shape[1], own.shape[2]]), LAYOUT)


@gluon.jit
def block_of(products, row: gl.constexpr, column: gl.constexpr):
    """One block of products [keys, 64, 64]."""
    return products.slice(16 * row, 16, 1).slice(16 * column, 16, 2)


@gluon.jit
def of_tokens(table, block: gl.constexpr, LAYOUT: gl.constexpr):
    """Numbers of a block's tokens [heads, 16]."""
    return table.slice(16 * block, 16, 1).load(LAYOUT)


@gluon.jit
def from_later(tables, through, later: gl.constexpr, earlier: gl.constexpr, LAYOUT: gl.constexpr):
    """Decay of the tokens of a block since the end of an earlier one [heads, 16]."""
    decay = of_tokens(tables.index(2), later, LAYOUT)
    for passed in gl.static_range(earlier + 1, later):
        decay = decay * through.slice(passed, 1, 1).load(LAYOUT)
    return decay


@gluon.jit
def decay_within(tables, block: gl.constexpr, HEADS: gl.constexpr):
    """Decay between the tokens of a block; what is above the diagonal is of no use."""
    BLOCKS: gl.constexpr = block_layout(HEADS)
    ROWS: gl.constexpr = gl.SliceLayout(2, BLOCKS)
    COLUMNS: gl.constexpr = gl.SliceLayout(1, BLOCKS)
    whole = tables.index(0)
    fraction = tables.index(1)
    exponent = (
        of_tokens(whole, block, ROWS)[:, :, None] - of_tokens(whole, block, COLUMNS)[:, None, :]
    ) + (
        of_tokens(fraction, block, ROWS)[:, :, None]
        - of_tokens(fraction, block, COLUMNS)[:, None, :]
    )
    return gl.exp2(exponent)


@gluon.jit
def lower(block):
    """Without what is above the diagonal."""
    BLOCKS: gl.constexpr = block.type.layout
    i = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, BLOCKS)))[None, :, None]
    j = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, BLOCKS)))[None, None, :]
    return gl.where(i >= j, block, 0.0)


@gluon.jit
def score_within(decay, qk, block: gl.constexpr):
    """Scores between the tokens of a block."""
    return lower(times_shared(decay, block_of(qk, block, block)))


@gluon.jit
def system_within(decay, kk, tables, block: gl.constexpr):
    """The system between the tokens of a block; its diagonal holds what nobody reads."""
    ROWS: gl.constexpr = gl.SliceLayout(2, decay.type.layout)
    strength = of_tokens(tables.index(4), block, ROWS)[:, :, None]
    return lower(times_shared(decay * strength, block_of(kk, block, block)))


@gluon.jit
def score_between(
    qk, tables, through, later: gl.constexpr, earlier: gl.constexpr, HEADS: gl.constexpr
):
    """Scores of the tokens of a block over those of an earlier one."""
    BLOCKS: gl.constexpr = block_layout(HEADS)
    since = from_later(tables, through, later, earlier, gl.SliceLayout(2, BLOCKS))
    until = of_tokens(tables.index(3), earlier, gl.SliceLayout(1, BLOCKS))
    return times_shared(since[:, :, None] * until[:, None, :], block_of(qk, later, earlier))


@gluon.jit
def system_between(
    kk, tables, through, later: gl.constexpr, earlier: gl.constexpr, HEADS: gl.constexpr
):
    """The system between two blocks, as an operand, transposed: rows are the earlier tokens."""
    BLOCKS: gl.constexpr = block_layout(HEADS)
    COLUMNS: gl.constexpr = gl.SliceLayout(1, BLOCKS)
    since = from_later(tables, through, later, earlier, COLUMNS)
    since = since * of_tokens(tables.index(4), later, COLUMNS)
    until = of_tokens(tables.index(3), earlier, gl.SliceLayout(2, BLOCKS))
    # k k^T is symmetric
    return half(times_shared(until[:, :, None] * since[:, None, :], block_of(kk, earlier, later)))


@gluon.jit
def quarter_of(upper_left, upper_right, lower_left, lower_right, DTYPE: gl.constexpr):
    """Four blocks as one [heads, 32, 32]."""
    HEADS: gl.constexpr = upper_left.shape[0]
    upper = gl.join(upper_left.to(DTYPE), upper_right.to(DTYPE))
    lower = gl.join(lower_left.to(DTYPE), lower_right.to(DTYPE))
    both = gl.permute(gl.join(upper, lower), (0, 4, 1, 3, 2))
    return both.reshape([HEADS, 32, 32])

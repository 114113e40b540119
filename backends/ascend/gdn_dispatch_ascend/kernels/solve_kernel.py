"""The inverse of a unit lower triangle, for a chunk: the triangular solve and its merge."""

import triton
import triton.language as tl


@triton.jit
def unit_lower_inverse(lower, BT: tl.constexpr):
    """``(I + lower)^-1`` for strictly lower triangular ``lower`` [BT, BT], fp32; BT = 16, 32, 64.

    Blocks of 16 on the diagonal are inverted by elimination on the vector cores, all of them at
    once: with the columns j of each block taken in turn, ``X <- X - L[:, j] X[j, :]``. X has
    nothing outside of the blocks, so that row j of every block lies in one row of BT. Then two
    neighbours become one block, twice: ``X - X J X``, with J what of L lies between the two.
    Products of powers of L would take fewer steps, and lose digits where keys are nearly the same.
    """
    # numbers as fp32, because integers are compared one by one
    place = tl.arange(0, BT)
    in_block = (place % 16).to(tl.float32)
    block = (place // 16 * 16).to(tl.float32)
    place = place.to(tl.float32)
    column = place[None, :] - block[:, None]  # of the row's own block
    own = block[:, None] == block[None, :]
    inverse = tl.where(place[:, None] == place[None, :], 1.0, 0.0)
    for j in range(15):
        factor = tl.sum(tl.where(column == j, lower, 0.0), axis=1)
        pivot = tl.sum(tl.where((in_block == j)[:, None], inverse, 0.0), axis=0)
        inverse = inverse - tl.where(own, factor[:, None] * pivot[None, :], 0.0)
    if BT > 16:
        inverse = _merge(inverse, lower, BT, 16)
    if BT > 32:
        inverse = _merge(inverse, lower, BT, 32)
    return inverse


@triton.jit
def _merge(inverse, lower, BT: tl.constexpr, B: tl.constexpr):
    """From the inverses of B x B blocks on the diagonal, those of blocks twice as large.

    The left operand of a product may be overwritten by it, so each is a value of its own.
    """
    place = tl.arange(0, BT)
    block = (place // B).to(tl.float32)
    pair = (place // (2 * B)).to(tl.float32)
    joins = (pair[:, None] == pair[None, :]) & (block[:, None] > block[None, :])
    between = tl.where(joins, lower, 0.0)
    product = tl.dot(between, inverse, input_precision="ieee")
    left = inverse + 0.0
    return inverse - tl.dot(left, product, input_precision="ieee")

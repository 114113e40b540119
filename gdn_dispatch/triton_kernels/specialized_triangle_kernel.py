"""Lower triangular matrices between memories: without the quarter that is zero.

A matrix of a chunk lies in shared memory as four quarters, one after the other; a product's
operand as upper and lower left, upper and lower right. In device memory three lie one below the
other: upper left, lower left, lower right.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

__all__ = ["clear_quarter", "copy_lower", "keep_lower", "quarters_of"]


@gluon.jit
def quarters_of(matrices):
    """The same memory, quarter by quarter."""
    N: gl.constexpr = matrices.shape[0]
    HALF: gl.constexpr = matrices.shape[1] // 2
    return matrices._reinterpret(matrices.dtype, [4 * N, HALF, HALF], matrices.layout)


@gluon.jit
def clear_quarter(quarters, nth: gl.constexpr):
    """Zeros for the same quarter of every matrix."""
    MATRICES: gl.constexpr = quarters.shape[0] // 4
    HALF: gl.constexpr = quarters.shape[1]
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [8, 4], [gl.num_warps(), 1], [1, 0])
    zero = gl.zeros([HALF, HALF], quarters.dtype, LAYOUT)
    for n in gl.static_range(MATRICES):
        quarters.index(4 * n + nth).store(zero)


@gluon.jit
def copy_lower(tiles, number, bar, matrices, place):
    """Copy matrix ``number`` to ``matrices[place]``, an operand."""
    HALF: gl.constexpr = matrices.shape[1] // 2
    quarters = quarters_of(matrices)
    for q in gl.static_range(3):
        at = quarters.index(4 * place + q + q // 2)
        tma.async_copy_global_to_shared(tiles, [(3 * number + q) * HALF, 0], bar, at)


@gluon.jit
def keep_lower(tiles, first_head, number, upper_left, lower_left, lower_right):
    """Copy matrix ``number`` of several heads, quarters ``[heads, half, half]``."""
    HALF: gl.constexpr = upper_left.shape[1]
    row = 3 * number * HALF
    tma.async_copy_shared_to_global(tiles, [first_head, row, 0], upper_left)
    tma.async_copy_shared_to_global(tiles, [first_head, row + HALF, 0], lower_left)
    tma.async_copy_shared_to_global(tiles, [first_head, row + 2 * HALF, 0], lower_right)

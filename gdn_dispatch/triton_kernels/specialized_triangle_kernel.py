"""Lower triangular matrices between memories: without the quarter that is zero.

A matrix of a chunk lies in shared memory as four quarters, one after the other; a product's operand
as upper and lower left, upper and lower right. In device memory either all of it lies row by row
(``WHOLE``), or three quarters do: upper left, lower left, lower right.
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
def place_of(number, q: gl.constexpr, HALF: gl.constexpr, WHOLE: gl.constexpr):
    """Where quarter ``q`` of matrix ``number`` is in device memory; 3 is the one of zeros."""
    if WHOLE:
        return (2 * number + (q == 1 or q == 2)) * HALF, q // 2 * HALF
    else:
        return (3 * number + q) * HALF, 0


@gluon.jit
def copy_lower(tiles, number, bar, matrices, place, WHOLE: gl.constexpr):
    """Copy matrix ``number`` to ``matrices[place]``, an operand."""
    HALF: gl.constexpr = matrices.shape[1] // 2
    quarters = quarters_of(matrices)
    for q in gl.static_range(3):
        at = quarters.index(4 * place + q + q // 2)
        row, column = place_of(number, q, HALF, WHOLE)
        tma.async_copy_global_to_shared(tiles, [row, column], bar, at)


@gluon.jit
def keep_lower(tiles, first_head, chunk, quarters, WHOLE: gl.constexpr):
    """Copy a chunk's matrices of several heads, ``quarters [3 or 4, heads, half, half]``."""
    HALF: gl.constexpr = quarters.shape[2]
    for q in gl.static_range(4 if WHOLE else 3):
        row, column = place_of(chunk, q, HALF, WHOLE)
        tma.async_copy_shared_to_global(tiles, [first_head, row, column], quarters.index(q))

"""Lower triangular matrices between memories: without the quarter that is zero.

A matrix of a chunk lies in shared memory as four quarters, one after the other: upper and lower
left, upper and lower right. In device memory either all of it lies row by row, or the three
quarters that are not zero do, in that order; which, the descriptor's tile says.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

__all__ = ["bytes_of_lower", "clear_upper", "copy_lower", "keep_lower"]


@gluon.jit
def quarters_of(matrices):
    """The same memory, quarter by quarter."""
    N: gl.constexpr = matrices.shape[0]
    HALF: gl.constexpr = matrices.shape[1] // 2
    return matrices._reinterpret(matrices.dtype, [4 * N, HALF, HALF], matrices.layout)


@gluon.constexpr_function
def bytes_of_lower(tiles, size):
    """Bytes copied for a matrix of ``size`` rows."""
    return tiles.block_type.nbytes * (1 if tiles.block_type.shape[0] == size else 3)


@gluon.jit
def clear_upper(tiles, matrices):
    """Zeros for the quarters that ``copy_lower`` leaves as they are."""
    N: gl.constexpr = matrices.shape[0]
    HALF: gl.constexpr = matrices.shape[1] // 2
    if tiles.block_type.shape[0] == HALF:
        LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [8, 4], [gl.num_warps(), 1], [1, 0])
        zero = gl.zeros([HALF, HALF], matrices.dtype, LAYOUT)
        quarters = quarters_of(matrices)
        for n in gl.static_range(N):
            quarters.index(4 * n + 2).store(zero)


@gluon.jit
def copy_lower(tiles, number, bar, matrices, place):
    """Copy matrix ``number`` to ``matrices[place]``."""
    BT: gl.constexpr = matrices.shape[1]
    if tiles.block_type.shape[0] == BT:
        tma.async_copy_global_to_shared(tiles, [number * BT, 0], bar, matrices.index(place))
    else:
        quarters = quarters_of(matrices)
        for q in gl.static_range(3):
            tma.async_copy_global_to_shared(
                tiles,
                [(3 * number + q) * (BT // 2), 0],
                bar,
                quarters.index(4 * place + q + q // 2),
            )


@gluon.jit
def keep_lower(tiles, number, matrices, place):
    """Copy ``matrices[place]`` to matrix ``number``."""
    BT: gl.constexpr = matrices.shape[1]
    if tiles.block_type.shape[0] == BT:
        tma.async_copy_shared_to_global(tiles, [number * BT, 0], matrices.index(place))
    else:
        quarters = quarters_of(matrices)
        for q in gl.static_range(3):
            tma.async_copy_shared_to_global(
                tiles, [(3 * number + q) * (BT // 2), 0], quarters.index(4 * place + q + q // 2)
            )

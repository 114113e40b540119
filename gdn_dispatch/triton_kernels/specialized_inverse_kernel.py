"""The inverse of a unit triangle of 64 x 64 in the registers of a warp, for Hopper."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from gdn_dispatch.triton_kernels.specialized_blocks_kernel import half, quarter_of, times

__all__ = ["keep_inverse"]


@gluon.jit
def transposed_of(block):
    """By moving numbers between the lanes of a warp."""
    return gl.convert_layout(gl.permute(block, (0, 2, 1)), block.type.layout)


@gluon.jit
def join_within(inverse, transposed, lower_t, i, j, B: gl.constexpr):
    """Inverses of unit triangular blocks [heads, 16, 16] of 2 B tokens, from those of B: X - X J X.

    With every block comes its transpose, since what is a product's left operand as it lies in the
    registers of a warp is the right one of its transpose.
    """
    joint_t = gl.where((i // (2 * B) == j // (2 * B)) & (i // B != j // B), lower_t, 0.0)
    zero = gl.zeros_like(inverse)
    product = half(times(half(inverse), half(joint_t), zero))
    return (
        inverse - times(product, half(transposed), zero),
        transposed - times(half(transposed), product, zero),
    )


@gluon.jit
def inverse_of(block):
    """``(I + strictly_lower)^-1`` of blocks [heads, 16, 16], and its transpose as an operand.

    Their diagonals are not read; above them are zeros.
    """
    BLOCKS: gl.constexpr = block.type.layout
    i = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, BLOCKS)))[None, :, None]
    j = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, BLOCKS)))[None, None, :]
    block_t = transposed_of(half(block))
    pairs = i // 2 == j // 2
    inverse = gl.where(i == j, 1.0, gl.where(pairs, -block, 0.0))
    transposed = gl.where(i == j, 1.0, gl.where(pairs, -block_t.to(gl.float32), 0.0))
    inverse, transposed = join_within(inverse, transposed, block_t, i, j, 2)
    inverse, transposed = join_within(inverse, transposed, block_t, i, j, 4)
    inverse, transposed = join_within(inverse, transposed, block_t, i, j, 8)
    return inverse, half(transposed)


@gluon.jit
def keep_inverse(diagonal, between, quarters):
    """``(I + strictly_lower)^-1`` of [64, 64] into its upper left, lower left and lower right.

    By blocks that double, as in ``dots_kernel.unit_lower_inverse``: from the inverses X of two
    blocks and what joins them, J, that of both: X, and -X J X between them.

    Args:
        diagonal: Four blocks [heads, 16, 16] on the diagonal; see ``inverse_of``.
        between: The six blocks below, as transposed operands: (1, 0), (3, 2), (2, 0), (2, 1),
            (3, 0), (3, 1).
        quarters: ``[3 or more, heads, 32, 32]`` of shared memory.
    """
    d0, d1, d2, d3 = diagonal
    j10, j32, j20, j21, j30, j31 = between
    DTYPE: gl.constexpr = quarters.dtype
    zero = gl.zeros_like(d0)
    x0, x0_t = inverse_of(d0)
    x1, x1_t = inverse_of(d1)
    x10 = -times(half(times(half(x1), j10, zero)), x0_t, zero)
    quarters.index(0).store(quarter_of(x0, zero, x10, x1, DTYPE))
    x2, x2_t = inverse_of(d2)
    x3, _ = inverse_of(d3)
    x32 = -times(half(times(half(x3), j32, zero)), x2_t, zero)
    quarters.index(2).store(quarter_of(x2, zero, x32, x3, DTYPE))
    x10_t = transposed_of(half(x10))
    x2 = half(x2)
    x32 = half(x32)
    x3 = half(x3)
    p20 = half(times(x2, j20, zero))
    p21 = half(times(x2, j21, zero))
    p30 = half(times(x32, j20, times(x3, j30, zero)))
    p31 = half(times(x32, j21, times(x3, j31, zero)))
    x20 = -times(p21, x10_t, times(p20, x0_t, zero))
    x21 = -times(p21, x1_t, zero)
    x30 = -times(p31, x10_t, times(p30, x0_t, zero))
    x31 = -times(p31, x1_t, zero)
    quarters.index(1).store(quarter_of(x20, x21, x30, x31, DTYPE))

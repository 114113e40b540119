"""The inverse of a unit triangle of 64 x 64 by four warps, for Hopper."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

__all__ = ["unit_lower_inverse"]


@gluon.jit
def half(x):
    """As an operand of the inverse's products."""
    return x.to(gl.float16)


@gluon.jit
def times(left, right_t):
    """Products within a warp [4, 16, 16], the right operand given transposed: it lies as it is."""
    BLOCKS: gl.constexpr = left.type.layout
    return mma_v2(
        gl.convert_layout(left, gl.DotOperandLayout(0, BLOCKS, 2)),
        gl.convert_layout(gl.permute(right_t, (0, 2, 1)), gl.DotOperandLayout(1, BLOCKS, 2)),
        gl.zeros([4, 16, 16], gl.float32, BLOCKS),
    )


@gluon.jit
def join_within(inverse, transposed, lower_t, i, j, B: gl.constexpr):
    """Inverses of unit triangular blocks [4, 16, 16] of 2 B tokens, from those of B: X - X J X.

    With every block comes its transpose, since what is a product's left operand as it lies in the
    registers of a warp is the right one of its transpose.
    """
    joint_t = gl.where((i // (2 * B) == j // (2 * B)) & (i // B != j // B), lower_t, 0.0)
    product = half(times(half(inverse), half(joint_t)))
    return (
        inverse - times(product, half(transposed)),
        transposed - times(half(transposed), product),
    )


@gluon.jit
def unit_lower_inverse(lower, scratch, transform):
    """``(I + strictly_lower)^-1`` [64, 64] into ``transform``.

    By blocks that double, as in ``dots_kernel.unit_lower_inverse``: up to 16 tokens within a warp;
    then 32, where half of the warps need their neighbours' blocks; then 64, all warps together.
    What ``lower`` holds on and above the diagonal is not read.
    """
    ACC: gl.constexpr = lower.type.layout
    BLOCKS: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [4, 1, 1], [1, 16, 8])
    PAIRS: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [2, 2, 1], [1, 16, 8])
    HALVES: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [2, 2], [16, 8])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, HALVES, 2)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, HALVES, 2)
    beside, neighbours, joined, product_at = scratch
    beside.store(half(lower))
    block = gl.arange(0, 64, gl.SliceLayout(1, ACC))[:, None] // 16
    other = gl.arange(0, 64, gl.SliceLayout(0, ACC))[None, :] // 16
    diagonal = gl.sum(gl.where(block == other, lower, 0.0).reshape([64, 4, 16]), axis=1)
    diagonal = gl.convert_layout(diagonal.reshape([4, 16, 16]), BLOCKS)
    joint = gl.where((block == other + 1) & (block % 2 == 1), lower, 0.0)
    joint = gl.sum(joint.reshape([64, 4, 16]), axis=1)
    joint = gl.convert_layout(joint.reshape([4, 16, 16]), BLOCKS)
    a = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, BLOCKS)))[None, :, None]
    b = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, BLOCKS)))[None, None, :]
    diagonal = gl.where(a > b, diagonal, 0.0)
    diagonal_t = gl.convert_layout(gl.permute(half(diagonal), (0, 2, 1)), BLOCKS)
    joint_t = gl.convert_layout(gl.permute(half(joint), (0, 2, 1)), BLOCKS)
    pairs = a // 2 == b // 2
    inverse = gl.where(a == b, 1.0, gl.where(pairs, -diagonal, 0.0))
    transposed = gl.where(a == b, 1.0, gl.where(pairs, -diagonal_t.to(gl.float32), 0.0))
    inverse, transposed = join_within(inverse, transposed, diagonal_t, a, b, 2)
    inverse, transposed = join_within(inverse, transposed, diagonal_t, a, b, 4)
    inverse, transposed = join_within(inverse, transposed, diagonal_t, a, b, 8)

    neighbours.store(half(inverse).reshape([64, 16]))
    product = half(times(half(inverse), joint_t)).reshape([2, 32, 16])
    product = mma_v2(
        gl.convert_layout(product, gl.DotOperandLayout(0, PAIRS, 2)),
        neighbours.reshape([2, 32, 16]).slice(0, 16, 1).load(gl.DotOperandLayout(1, PAIRS, 2)),
        gl.zeros([2, 32, 16], gl.float32, PAIRS),
    )
    product = gl.convert_layout(product.reshape([4, 16, 16]), BLOCKS)
    odd = gl.arange(0, 4, gl.SliceLayout(1, gl.SliceLayout(2, BLOCKS)))[:, None, None] % 2 == 1
    first = gl.where(odd, -product, inverse)
    second = gl.where(odd, inverse, 0.0)
    pair = gl.permute(gl.join(first, second), (0, 1, 3, 2)).reshape([64, 32])
    joined.store(half(pair))

    zero = gl.zeros([32, 32], gl.float32, HALVES)
    right = beside.slice(32, 32, 0).slice(0, 32, 1).load(RIGHT)
    product = mma_v2(joined.slice(32, 32).load(LEFT), right, zero)
    product_at.store(half(product))
    WIDE: gl.constexpr = pair.reshape([64, 1, 32]).type.layout
    whole = (pair.reshape([64, 1, 32]) + gl.zeros([64, 2, 32], gl.float32, WIDE)).reshape([64, 64])
    whole = gl.where(block // 2 == other // 2, gl.convert_layout(whole, ACC), 0.0)
    transform.store(whole.to(transform.dtype))
    product = mma_v2(product_at.load(LEFT), joined.slice(0, 32).load(RIGHT), zero)
    transform.slice(32, 32, 0).slice(0, 32, 1).store((-product).to(transform.dtype))

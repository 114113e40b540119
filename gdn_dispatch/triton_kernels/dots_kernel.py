"""Pieces of the prefill kernels: decay that survives resets, and the inverse of a unit triangle."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["split_decay", "unit_lower_inverse"]


@triton.jit
def split_decay(g):
    """Base-2 decay of natural-log ``g`` (<= 0, may be -inf), as an integer and a fraction.

    Kernels need differences of cumulative sums. After a reset (g = -1e4) a plain fp32 sum has lost
    the digits of its neighbours; integers of up to 24 bits subtract exactly, and the sum of 64
    fractions stays small. 2^-160 is an exact zero, and 64 of them are an integer that leaves a sum
    with fractions ten bits of these.
    """
    scaled = g * 1.4426950408889634
    # not tl.maximum, which would take a NaN for a reset
    scaled = tl.where(scaled < -160.0, -160.0, scaled)
    whole = tl.floor(scaled + 0.5)
    return whole, scaled - whole


@triton.jit
def _product(left, right, PRECISION: tl.constexpr):
    if PRECISION == "fp16":
        return tl.dot(left.to(tl.float16), right.to(tl.float16))
    else:
        return tl.dot(left, right, input_precision=PRECISION)


@triton.jit
def unit_lower_inverse(lower, BT: tl.constexpr, PRECISION: tl.constexpr):
    """``(I + lower)^-1`` for strictly lower triangular ``lower`` [BT, BT], fp32.

    From the inverse X of diagonal blocks and what joins two neighbours, J, the inverse of blocks
    twice as large: ``X - X J X``; from 2 x 2, where it is ``I - J``, to the whole. A product of
    powers ``(I - L)(I + L^2)(I + L^4)…`` takes fewer steps, but its terms grow as binomials do for
    keys that are nearly the same.

    Blocks of up to 16 are products within a warp; larger ones move between warps only as right
    operands: a block diagonal is kept as its blocks one below the other.

    Args:
        lower: As a product leaves it.
        BT: 16, 32, 64 or 128.
        PRECISION: Of the products: "fp16" operands, or as ``tl.dot`` takes it.
    """
    N: tl.constexpr = BT // 16
    blocks = tl.reshape(lower, [N, 16, N, 16])
    a = tl.arange(0, N)[:, None, None, None]
    b = tl.arange(0, N)[None, None, :, None]
    diagonal = tl.sum(tl.where(a == b, blocks, 0.0), axis=2)
    i = tl.arange(0, 16)[None, :, None]
    j = tl.arange(0, 16)[None, None, :]
    inverse = tl.where(i == j, 1.0, tl.where(i // 2 == j // 2, -diagonal, 0.0))
    inverse = _join_within(inverse, diagonal, i, j, 2, PRECISION)
    inverse = _join_within(inverse, diagonal, i, j, 4, PRECISION)
    inverse = _join_within(inverse, diagonal, i, j, 8, PRECISION)
    inverse = tl.reshape(inverse, [BT, 16])
    if BT > 16:
        inverse = _join(inverse, lower, BT, 16, PRECISION)
    if BT > 32:
        inverse = _join(inverse, lower, BT, 32, PRECISION)
    if BT > 64:
        inverse = _join(inverse, lower, BT, 64, PRECISION)
    return inverse


@triton.jit
def _join_within(inverse, diagonal, i, j, B: tl.constexpr, PRECISION: tl.constexpr):
    """The inverses of blocks twice as large on the diagonals of [N, 16, 16], as ``_join``."""
    joins = (i // (2 * B) == j // (2 * B)) & (i // B != j // B)
    product = _product(inverse, tl.where(joins, diagonal, 0.0), PRECISION)
    return inverse - _product(product, inverse, PRECISION)


@triton.jit
def _join(inverse, lower, BT: tl.constexpr, B: tl.constexpr, PRECISION: tl.constexpr):
    """From the inverses of the diagonal B x B blocks, [BT, B], those twice as large, [BT, 2 B].

    With J what joins block a to the one before it: ``[[X, 0], [-X' J X, X']]``.
    """
    N: tl.constexpr = BT // B
    a = tl.arange(0, N)[:, None, None, None]
    b = tl.arange(0, N)[None, None, :, None]
    joins = (a == b + 1) & (a % 2 == 1)
    beside = tl.sum(tl.where(joins, tl.reshape(lower, [N, B, N, B]), 0.0), axis=2)
    whole = tl.where(a == b, tl.reshape(inverse, [N, B, 1, B]), 0.0)
    product = _product(tl.reshape(whole, [BT, BT]), tl.reshape(beside, [BT, B]), PRECISION)
    whole = tl.where(joins, tl.reshape(product, [N, B, 1, B]), 0.0)
    product = _product(tl.reshape(whole, [BT, BT]), inverse, PRECISION)

    odd = (tl.arange(0, BT)[:, None, None] // B) % 2 == 1
    second = tl.arange(0, 2)[None, :, None] == 1
    joined = tl.where(odd == second, tl.reshape(inverse, [BT, 1, B]), 0.0)
    joined = tl.where(odd & ~second, -tl.reshape(product, [BT, 1, B]), joined)
    return tl.reshape(joined, [BT, 2 * B])

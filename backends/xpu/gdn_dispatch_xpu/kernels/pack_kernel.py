"""Columns of an engine's tensors copied into the rows Intel's operator reads: a copy, no sums."""

import triton
import triton.language as tl

__all__ = ["pack_kernel"]


@triton.jit
def pack_kernel(
    x,
    a,
    b,
    packed,
    gates,
    blocks,
    all_blocks,
    x_row,
    x_column,
    a_row,
    a_column,
    b_row,
    b_column,
    packed_row,
    D: tl.constexpr,
    HV: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program copies BLOCK columns of a token: of x, or, after the first ``blocks``, of [b|a]."""
    program = tl.program_id(0)
    token = (program // all_blocks).to(tl.int64)
    block = program % all_blocks
    if block < blocks:
        if packed is not None:
            column = block * BLOCK + tl.arange(0, BLOCK)
            inside = column < D
            values = tl.load(x + token * x_row + column * x_column, mask=inside)
            tl.store(packed + token * packed_row + column, values, mask=inside)
    else:
        if gates is not None:
            column = (block - blocks) * BLOCK + tl.arange(0, BLOCK)
            of_b = column < HV
            from_b = tl.load(b + token * b_row + column * b_column, mask=of_b)
            other = column - HV
            of_a = (other >= 0) & (other < HV)
            from_a = tl.load(a + token * a_row + other * a_column, mask=of_a)
            values = tl.where(of_b, from_b, from_a)
            tl.store(gates + token * 2 * HV + column, values, mask=of_b | of_a)

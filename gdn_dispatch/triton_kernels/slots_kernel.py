"""Device functions that several kernels share: which slot a row reads and writes."""

import triton
import triton.language as tl


@triton.jit
def live_slot(slots, row, column, stride_row, stride_column, pad_slot, pool_size):
    """The slot at [row, column], int64; -1 where it is padding or not in the pool."""
    slot = tl.load(slots + row.to(tl.int64) * stride_row + column * stride_column).to(tl.int64)
    return tl.where((slot >= 0) & (slot != pad_slot) & (slot < pool_size), slot, -1)


@triton.jit
def row_number(sequences, row):
    """Number in the step of the group's row ``row``; -1: there is no such row."""
    number = row
    if sequences is not None:
        number = tl.load(sequences + row)
    return number


@triton.jit
def starts_from_zero(has_initial_state, row):
    """Whether a row's slot is not to be read."""
    zero = row < 0
    if has_initial_state is not None:
        zero = tl.load(has_initial_state + row).to(tl.int32) == 0
    return zero

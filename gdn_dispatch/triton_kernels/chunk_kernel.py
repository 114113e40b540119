"""One chunk of the recurrence, and the states where chunks begin and end."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["initial_state", "is_padding", "keep_state", "new_values_of", "output_of", "update"]


@triton.jit
def is_padding(slot, pad_slot, slots):
    """Whether a slot is none: negative, the padding slot, or outside the pool."""
    return (slot < 0) | (slot == pad_slot) | (slot >= slots)


@triton.jit
def initial_state(
    pool,
    write,
    read,
    has_initial_state,
    sequence,
    index,
    pad_slot,
    slots,
    write_stride,
    read_stride,
    slot_stride,
    offsets,
    mask,
):
    """The state a row starts from, fp32, shaped as ``offsets``: of its slot, or zeros."""
    slot = index
    live = mask
    if write is not None:
        if read is not None:
            slot = tl.load(read + sequence * read_stride).to(tl.int64)
        else:
            slot = tl.load(write + sequence * write_stride).to(tl.int64)
        present = (slot >= 0) & (slot != pad_slot) & (slot < slots)
        if has_initial_state is not None:
            present = present & (tl.load(has_initial_state + sequence) != 0)
        live = mask & present
    return tl.load(pool + slot * slot_stride + offsets, mask=live, other=0.0).to(tl.float32)


@triton.jit
def keep_state(place, state, block, stride_v, stride_k, K: tl.constexpr, V: tl.constexpr):
    """Write a transposed state [BV, BK] to its block of a head's state.

    Where it goes is worked out here, not before the chunks are run through: addresses held
    meanwhile would not fit the registers.
    """
    channels = block * state.shape[0] + tl.arange(0, state.shape[0])
    dims = tl.arange(0, state.shape[1])
    tl.store(
        place + (channels[:, None] * stride_v + dims[None, :] * stride_k),
        state.to(place.dtype.element_ty),
        mask=(channels < V)[:, None] & (dims < K)[None, :],
    )


@triton.jit
def new_values_of(operand, keys, values_t, transform, into_keys, strength, PRECISION: tl.constexpr):
    """The transposed new values of a chunk [BV, BT].

    ``V'^T = (V^T diag(beta) - S^T K^T diag(beta e^G)) T^T``

    Transposed throughout, so that what one product gives is the left operand of the next as it
    lies in registers.
    """
    DTYPE = operand.dtype
    recalled = tl.dot(operand, tl.trans(keys), input_precision=PRECISION)
    surprise = values_t.to(tl.float32) * strength[None, :] - recalled * into_keys[None, :]
    return tl.dot(surprise.to(DTYPE), tl.trans(transform), input_precision=PRECISION)


@triton.jit
def update(state, new_values, keys, to_end, whole, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """The transposed state after a chunk: ``e^G_last S^T + V'^T diag(e^(G_last - G)) K``."""
    decayed = (new_values * to_end[None, :]).to(DTYPE)
    return tl.dot(decayed, keys, acc=state * whole, input_precision=PRECISION)


@triton.jit
def output_of(operand, queries, scores, new_values, into_queries, PRECISION: tl.constexpr):
    """The transposed output of a chunk [BV, BT]: ``S^T Q^T diag(scale e^G) + V'^T P^T``."""
    remembered = tl.dot(operand, tl.trans(queries), input_precision=PRECISION)
    return tl.dot(
        new_values.to(operand.dtype),
        tl.trans(scores),
        acc=remembered * into_queries[None, :],
        input_precision=PRECISION,
    )

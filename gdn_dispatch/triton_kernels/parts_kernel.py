"""One chunk of the recurrence where operands in full would not fit the registers.

Three products of fp32 operands take twice the registers of one, and tensor cores want both operands
there, the right one in full for every warp. So each warp has its own part of K, of the state and of
the operands, and sums of parts go through shared memory; k and q are read when they are needed, and
k twice.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gdn_dispatch.triton_kernels.rows_kernel import load_rows

__all__ = ["chunk_in_parts", "in_one", "in_parts"]


@triton.jit
def in_parts(x, PARTS: tl.constexpr):
    """[N, BK] as [PARTS, N, BK / PARTS]; with 1 part as it is."""
    if PARTS == 1:
        return x
    else:
        parts = tl.reshape(x, [x.shape[0], PARTS, x.shape[1] // PARTS])
        return tl.permute(parts, (1, 0, 2))


@triton.jit
def in_one(state):
    """What ``in_parts`` made of a state, undone."""
    if len(state.shape) == 2:
        return state
    else:
        BK: tl.constexpr = state.shape[0] * state.shape[2]
        return tl.reshape(tl.permute(state, (1, 0, 2)), [state.shape[1], BK])


@triton.jit
def _rows(
    at, stride, left,
    K: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """A chunk's rows of k or of q in parts, fp32; 0 from row ``left`` on."""
    t = tl.arange(0, BT)
    rows = load_rows(at, stride, t, tl.arange(0, BK), t < left, K, BK)
    return in_parts(rows.to(tl.float32), PARTS)


@triton.jit
def _recall(state, rows, PRECISION: tl.constexpr):
    """A transposed state times rows of k or of q: [BV, BT]."""
    rows = tl.permute(rows, (0, 2, 1))
    return tl.sum(tl.dot(state, rows, input_precision=PRECISION), axis=0)


@triton.jit
def chunk_in_parts(
    state, q_at, k_at, values_t, transform_at, attention_at, factors_at, q_token, k_token, left,
    K: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr,
    PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state after a chunk, and the chunk's transposed output [BV, BT].

    The same sums as ``new_values_of``, ``output_of`` and ``update`` make, in fp32.

    Args:
        state: Transposed, in parts: [PARTS, BV, BK / PARTS].
        q_at, k_at: The chunk's first rows. values_t: Its values [BV, BT].
        transform_at, attention_at, factors_at: What ``prepare_kernel`` left for it.
        left: Rows from the chunk's first one to the end of the sequence.
    """
    t = tl.arange(0, BT)
    tile = t[:, None] * BT + t[None, :]
    recalled = _recall(state, _rows(k_at, k_token, left, K, BK, BT, PARTS), PRECISION)
    surprise = values_t.to(tl.float32) * tl.load(factors_at + 3 * BT + t)[None, :]
    surprise -= recalled * tl.load(factors_at + t)[None, :]
    solve = tl.load(transform_at + tile)
    new_values = tl.dot(surprise, tl.trans(solve), input_precision=PRECISION)

    remembered = _recall(state, _rows(q_at, q_token, left, K, BK, BT, PARTS), PRECISION)
    result = tl.dot(
        new_values,
        tl.trans(tl.load(attention_at + tile)),
        acc=remembered * tl.load(factors_at + BT + t)[None, :],
        input_precision=PRECISION,
    )
    decayed = new_values * tl.load(factors_at + 2 * BT + t)[None, :]
    shape: tl.constexpr = [PARTS, decayed.shape[0], BT]
    decayed = tl.broadcast_to(decayed[None, :, :], shape)
    state = state * tl.load(factors_at + 4 * BT)
    keys = _rows(k_at, k_token, left, K, BK, BT, PARTS)
    return tl.dot(decayed, keys, acc=state, input_precision=PRECISION), result

"""The state before each segment of a sequence, so that segments can run side by side."""

from __future__ import annotations

import triton
import triton.language as tl

from gdn_dispatch.triton_kernels.chunk_kernel import initial_state, new_values_of, update
from gdn_dispatch.triton_kernels.rows_kernel import load_rows

__all__ = ["join_segments_kernel", "segment_kernel"]


@triton.jit(
    do_not_specialize=[
        "chunks",
        "pad_slot",
        "initial_slots",
        "segment_tokens",
        "segments",
    ]
)
def segment_kernel(
    k,
    v,
    transform,
    k_tiles,
    v_tiles,
    transform_tiles,
    factor_tiles,
    factors,
    initial,
    states,  # [n * segments, HV, V, K] fp32
    transfers,  # [n * segments, HV, K, K] fp32
    sequences,
    starts,
    cu_seqlens,
    chunk_offsets,
    write,
    read,
    has_initial_state,
    pad_slot,
    initial_slots,
    chunks,
    segment_tokens,
    segments,
    k_token: tl.constexpr,
    k_head: tl.constexpr,
    v_token: tl.constexpr,
    v_head: tl.constexpr,
    write_stride,
    read_stride,
    initial_slot,
    initial_head,
    initial_v,
    initial_k,
    HV: tl.constexpr,
    GROUP: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BT: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """What one segment does to a state: S -> M S + L; all but the last segment of each row.

    The first runs from the state the row starts from; what it leaves is the state before the
    second. Each further one runs from zero, for L, which is left where the state before the next
    one belongs, and with values of zero from the identity, for M: blocks of K after those of V.
    """
    V_BLOCKS: tl.constexpr = (V + BV - 1) // BV
    BLOCKS: tl.constexpr = V_BLOCKS + (K + BV - 1) // BV
    block = tl.program_id(0) % BLOCKS
    head = (tl.program_id(0) // BLOCKS) % HV
    index = (tl.program_id(0) // (BLOCKS * HV)).to(tl.int64)
    segment = index % segments
    row = index // segments
    begin = (segment * segment_tokens).to(tl.int32)
    sequence = row
    if sequences is not None:
        sequence = tl.load(sequences + row).to(tl.int64)
        if sequence < 0:
            return
    length = tl.load(cu_seqlens + row + 1) - tl.load(cu_seqlens + row)
    if (begin >= length) & (begin > 0):
        return
    is_transfer = block >= V_BLOCKS
    is_last = begin + segment_tokens >= length
    if is_transfer & ((segment == 0) | is_last):
        return
    if is_last & (segment > 0):
        return
    start = tl.load(starts + row).to(tl.int64)

    t = tl.arange(0, BT)
    dims = tl.arange(0, BK)
    channels = block * BV + tl.arange(0, BV)
    if is_transfer:
        channels -= V_BLOCKS * BV
    height = tl.where(is_transfer, K, V)
    state_tile = channels[:, None] * K + dims[None, :]
    state_mask = (channels < height)[:, None] & (dims < K)[None, :]
    states_at = states + (index * HV + head) * (V * K) + state_tile

    state = tl.where(is_transfer & (channels[:, None] == dims[None, :]), 1.0, 0.0)
    if segment == 0:
        if initial is not None:
            state = initial_state(
                initial,
                write,
                read,
                has_initial_state,
                sequence,
                row,
                pad_slot,
                initial_slots,
                write_stride,
                read_stride,
                initial_slot,
                head.to(tl.int64) * initial_head
                + (channels[:, None] * initial_v + dims[None, :] * initial_k),
                state_mask,
            )
        # kept: the last segment may write to where the row starts from before the first reads it
        tl.store(states_at, state, mask=state_mask)
    if is_last:
        return

    k_at = k + start * k_token + (head // GROUP) * k_head
    v_at = v + start * v_token + head * v_head
    chunk = head * chunks + tl.load(chunk_offsets + row)
    tile = t[:, None] * BT + t[None, :]
    DTYPE: tl.constexpr = transform.dtype.element_ty
    has_values = channels < tl.where(is_transfer, 0, V)
    # all chunks are whole here, since the last segment of a row is not run
    if DESCRIPTORS:
        # columns past the end read as zero
        column = tl.where(is_transfer, HV * V, head * V + block * BV)
        first = tl.cast(start, tl.int32)
        for offset in tl.range(begin, begin + segment_tokens, BT, num_stages=STAGES):
            at = chunk + offset // BT
            keys = k_tiles.load([first + offset, (head // GROUP) * K])
            values = v_tiles.load([first + offset, column])
            solve = transform_tiles.load([at * BT, 0])
            into_keys = tl.reshape(factor_tiles.load([at * 5, 0]), [BT])
            to_end = tl.reshape(factor_tiles.load([at * 5 + 2, 0]), [BT])
            strength = tl.reshape(factor_tiles.load([at * 5 + 3, 0]), [BT])
            whole = tl.load(factors + at.to(tl.int64) * (5 * BT) + 4 * BT)
            new_values = new_values_of(
                state.to(DTYPE), keys, tl.trans(values), solve, into_keys, strength, PRECISION
            )
            state = update(state, new_values, keys, to_end, whole, DTYPE, PRECISION)
    else:
        for offset in tl.range(begin, begin + segment_tokens, BT, num_stages=STAGES):
            at = (chunk + offset // BT).to(tl.int64)
            token = tl.cast(offset, tl.int64)
            keys = load_rows(k_at + token * k_token, k_token, t, dims, t < BT, K, BK).to(DTYPE)
            values = tl.load(
                v_at + token * v_token + (t[:, None] * v_token + channels[None, :]),
                mask=(t < BT)[:, None] & has_values[None, :],
                other=0.0,
            )
            solve = tl.load(transform + at * (BT * BT) + tile)
            into_keys = tl.load(factors + at * (5 * BT) + t)
            to_end = tl.load(factors + at * (5 * BT) + 2 * BT + t)
            strength = tl.load(factors + at * (5 * BT) + 3 * BT + t)
            whole = tl.load(factors + at * (5 * BT) + 4 * BT)
            new_values = new_values_of(
                state.to(DTYPE), keys, tl.trans(values), solve, into_keys, strength, PRECISION
            )
            state = update(state, new_values, keys, to_end, whole, DTYPE, PRECISION)

    if is_transfer:
        tl.store(transfers + (index * HV + head) * (K * K) + state_tile, state, mask=state_mask)
    else:
        tl.store(states_at + HV * (V * K), state, mask=state_mask)


@triton.jit(do_not_specialize=["segment_tokens", "segments"])
def join_segments_kernel(
    states,
    transfers,
    sequences,
    cu_seqlens,
    segment_tokens,
    segments,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Turn what segments leave from zero into the states before the segments that follow."""
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    block = tl.program_id(0) % BLOCKS
    head = (tl.program_id(0) // BLOCKS) % HV
    row = tl.program_id(0) // (BLOCKS * HV)
    if sequences is not None:
        if tl.load(sequences + row) < 0:
            return
    length = tl.load(cu_seqlens + row + 1) - tl.load(cu_seqlens + row)
    count = tl.cdiv(length, segment_tokens)
    if count < 3:
        return
    dims = tl.arange(0, BK)
    channels = block * BV + tl.arange(0, BV)
    mask = (channels < V)[:, None] & (dims < K)[None, :]
    square = (dims < K)[:, None] & (dims < K)[None, :]
    first = (row.to(tl.int64) * segments + 1) * HV + head
    states_at = states + first * (V * K) + (channels[:, None] * K + dims[None, :])
    transfers_at = transfers + first * (K * K) + (dims[:, None] * K + dims[None, :])
    state = tl.load(states_at, mask=mask, other=0.0)
    for _ in range(1, count - 1):
        transfer = tl.load(transfers_at, mask=square, other=0.0)
        states_at += HV * (V * K)
        transfers_at += HV * (K * K)
        local = tl.load(states_at, mask=mask, other=0.0)
        state = tl.dot(state, transfer, acc=local, input_precision=PRECISION)
        tl.store(states_at, state, mask=mask)

"""The recurrence over chunks and its output, with the state in registers from end to end."""

from __future__ import annotations

import triton
import triton.language as tl

from gdn_dispatch.triton_kernels.chunk_kernel import (
    initial_state,
    is_padding,
    keep_state,
    new_values_of,
    output_of,
    update,
)
from gdn_dispatch.triton_kernels.parts_kernel import chunk_in_parts, in_one, in_parts
from gdn_dispatch.triton_kernels.rows_kernel import load_rows

__all__ = ["recurrence_kernel"]


@triton.jit(
    do_not_specialize=[
        "chunks",
        "pad_slot",
        "initial_slots",
        "final_slots",
        "segment_tokens",
        "segments",
        "num_checkpoints",
    ]
)
def recurrence_kernel(
    q,
    k,
    v,
    transform,
    attention,
    q_tiles,
    k_tiles,
    v_tiles,
    transform_tiles,
    attention_tiles,
    factor_tiles,
    factors,
    out,
    initial,
    final,
    sequences,
    starts,
    cu_seqlens,
    chunk_offsets,
    write,
    read,
    has_initial_state,
    checkpoint_sequences,
    checkpoint_offsets,
    checkpoint_slots,
    num_checkpoints,
    pad_slot,
    initial_slots,
    final_slots,
    chunks,
    segment_tokens,
    segments,
    q_token: tl.constexpr,
    q_head: tl.constexpr,
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
    final_slot,
    final_head,
    final_v,
    final_k,
    HV: tl.constexpr,
    GROUP: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BT: tl.constexpr,
    SEGMENTED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PARTS: tl.constexpr,
    LATE: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    TAIL_STAGES: tl.constexpr,
):
    """One block of V of one value head of one row (or of one segment of it), chunk after chunk.

    ``transform``, ``attention`` and ``factors`` are those of ``prepare_kernel``. Where SEGMENTED,
    ``initial`` holds the state before each segment of each row, [n * segments, HV, V, K].
    """
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    block = tl.program_id(0) % BLOCKS
    head = (tl.program_id(0) // BLOCKS) % HV
    row = tl.program_id(0) // (BLOCKS * HV)
    index = row.to(tl.int64)
    begin = 0
    if SEGMENTED:
        begin = (row % segments) * segment_tokens
        row = row // segments
    sequence = row.to(tl.int64)
    if sequences is not None:
        sequence = tl.load(sequences + row).to(tl.int64)
        if sequence < 0:
            return
    length = tl.load(cu_seqlens + row + 1) - tl.load(cu_seqlens + row)
    end = length
    if SEGMENTED:
        end = tl.minimum(length, begin + segment_tokens)
        if (begin >= length) & (begin > 0):
            return
    if write is not None:
        if length <= 0:
            return
    start = tl.load(starts + row).to(tl.int64)

    t = tl.arange(0, BT)
    dims = tl.arange(0, BK)
    channels = block * BV + tl.arange(0, BV)
    out_at = out + (start * HV + head) * V

    destination = sequence
    if write is None:
        destination = row.to(tl.int64)
    else:
        destination = tl.load(write + sequence * write_stride).to(tl.int64)
        if is_padding(destination, pad_slot, final_slots):
            for offset in range(begin, end, BT):
                live = (offset + t < end)[:, None] & (channels < V)[None, :]
                at = (offset + t).to(tl.int64)[:, None] * (HV * V) + channels[None, :]
                zeros = tl.zeros([BT, BV], out.dtype.element_ty)
                tl.store(out_at + at, zeros, mask=live)
            return

    state_mask = (channels < V)[:, None] & (dims < K)[None, :]
    state = tl.zeros([BV, BK], tl.float32)
    if initial is not None:
        at = head.to(tl.int64) * initial_head + (
            channels[:, None] * initial_v + dims[None, :] * initial_k
        )
        if SEGMENTED:
            state = tl.load(initial + index * initial_slot + at, mask=state_mask, other=0.0)
        else:
            state = initial_state(
                initial,
                write,
                read,
                has_initial_state,
                sequence,
                index,
                pad_slot,
                initial_slots,
                write_stride,
                read_stride,
                initial_slot,
                at,
                state_mask,
            )
    state = in_parts(state, PARTS)
    checkpoint = 0
    checkpoints = 0
    if checkpoint_sequences is not None:
        # those of this row that fall into begin+1 .. end; they lie side by side
        checkpoint = num_checkpoints
        for base in range(0, num_checkpoints, 128):
            i = base + tl.arange(0, 128)
            of = tl.load(checkpoint_sequences + i, mask=i < num_checkpoints, other=-1)
            at_token = tl.load(checkpoint_offsets + i, mask=i < num_checkpoints, other=0)
            mine = (of == sequence) & (at_token > begin) & (at_token <= end)
            checkpoints += tl.sum(mine.to(tl.int32), axis=0)
            checkpoint = tl.minimum(checkpoint, tl.min(tl.where(mine, i, num_checkpoints), axis=0))

    key_head = head // GROUP
    q_at = q + start * q_token + key_head * q_head
    k_at = k + start * k_token + key_head * k_head
    v_at = v + start * v_token + head * v_head
    # numbers of the row's chunks, among all those of this head
    chunk = head * chunks + tl.load(chunk_offsets + row)
    tile = t[:, None] * BT + t[None, :]
    DTYPE: tl.constexpr = transform.dtype.element_ty

    # From one checkpoint to the next; without checkpoints, once. Where a leg begins is looked up,
    # not carried from the one before it: Triton 3.6 takes a carried bound for its first value.
    for leg in range(checkpoints + 1):
        position = begin
        until = end
        if checkpoint_sequences is not None:
            if leg > 0:
                position = tl.load(checkpoint_offsets + checkpoint + leg - 1)
            if leg < checkpoints:
                until = tl.load(checkpoint_offsets + checkpoint + leg)
        # Whole chunks by descriptors, which cannot leave out the rows of the next sequence.
        middle = position
        if DESCRIPTORS:
            middle = position + (until - position) // BT * BT
            first = tl.cast(start, tl.int32)
            for offset in tl.range(position, middle, BT, num_stages=STAGES):
                token = first + offset
                keys = k_tiles.load([token, key_head * K])
                values = v_tiles.load([token, head * V + block * BV])
                solve = transform_tiles.load([(chunk + offset // BT) * BT, 0])
                queries = q_tiles.load([token, key_head * K])
                scores = attention_tiles.load([(chunk + offset // BT) * BT, 0])
                into_keys = tl.reshape(factor_tiles.load([(chunk + offset // BT) * 5, 0]), [BT])
                strength = tl.reshape(factor_tiles.load([(chunk + offset // BT) * 5 + 3, 0]), [BT])
                if STAGES == 1:
                    into_queries = tl.reshape(
                        factor_tiles.load([(chunk + offset // BT) * 5 + 1, 0]), [BT]
                    )
                    to_end = tl.reshape(
                        factor_tiles.load([(chunk + offset // BT) * 5 + 2, 0]), [BT]
                    )
                operand = state.to(DTYPE)
                new_values = new_values_of(
                    operand, keys, tl.trans(values), solve, into_keys, strength, PRECISION
                )
                if STAGES > 1:  # copied ahead; what is loaded from there is held in registers
                    into_queries = tl.reshape(
                        factor_tiles.load([(chunk + offset // BT) * 5 + 1, 0]), [BT]
                    )
                    to_end = tl.reshape(
                        factor_tiles.load([(chunk + offset // BT) * 5 + 2, 0]), [BT]
                    )
                whole = tl.load(factors + (chunk + offset // BT).to(tl.int64) * (5 * BT) + 4 * BT)
                result = output_of(operand, queries, scores, new_values, into_queries, PRECISION)
                result = tl.trans(result.to(out.dtype.element_ty))
                tl.store(
                    out_at
                    + tl.cast(offset, tl.int64) * (HV * V)
                    + (t[:, None] * (HV * V) + channels[None, :]),
                    result,
                )
                state = update(state, new_values, keys, to_end, whole, DTYPE, PRECISION)
        for offset in tl.range(middle, until, BT, num_stages=TAIL_STAGES):
            live = t < length - offset
            prepared = (chunk + offset // BT).to(tl.int64)
            token = tl.cast(offset, tl.int64)
            if PARTS > 1:
                values = load_rows(
                    v_at + token * v_token, v_token, t, channels, live, V, BV * BLOCKS
                )
                state, result = chunk_in_parts(
                    state,
                    q_at + token * q_token,
                    k_at + token * k_token,
                    tl.trans(values),
                    transform + prepared * (BT * BT),
                    attention + prepared * (BT * BT),
                    factors + prepared * (5 * BT),
                    q_token,
                    k_token,
                    length - offset,
                    K,
                    BK,
                    BT,
                    PARTS,
                    PRECISION,
                )
                result = tl.trans(result.to(out.dtype.element_ty))
                mask = live[:, None] & (channels < V)[None, :]
                tl.store(
                    out_at + token * (HV * V) + (t[:, None] * (HV * V) + channels[None, :]),
                    result,
                    mask=mask,
                )
            else:
                keys = load_rows(k_at + token * k_token, k_token, t, dims, live, K, BK).to(DTYPE)
                values = load_rows(
                    v_at + token * v_token, v_token, t, channels, live, V, BV * BLOCKS
                )
                solve = tl.load(transform + prepared * (BT * BT) + tile)
                if not LATE:
                    queries = load_rows(q_at + token * q_token, q_token, t, dims, live, K, BK)
                    queries = queries.to(DTYPE)
                    scores = tl.load(attention + prepared * (BT * BT) + tile)
                into_keys = tl.load(factors + prepared * (5 * BT) + t)
                if not LATE:
                    into_queries = tl.load(factors + prepared * (5 * BT) + BT + t)
                if DESCRIPTORS:  # sooner or later: whichever does not spill
                    to_end = tl.load(factors + prepared * (5 * BT) + 2 * BT + t)
                    whole = tl.load(factors + prepared * (5 * BT) + 4 * BT)
                strength = tl.load(factors + prepared * (5 * BT) + 3 * BT + t)
                operand = state.to(DTYPE)
                new_values = new_values_of(
                    operand, keys, tl.trans(values), solve, into_keys, strength, PRECISION
                )
                if LATE:
                    queries = load_rows(q_at + token * q_token, q_token, t, dims, live, K, BK)
                    queries = queries.to(DTYPE)
                    scores = tl.load(attention + prepared * (BT * BT) + tile)
                    into_queries = tl.load(factors + prepared * (5 * BT) + BT + t)
                if not DESCRIPTORS:
                    to_end = tl.load(factors + prepared * (5 * BT) + 2 * BT + t)
                    whole = tl.load(factors + prepared * (5 * BT) + 4 * BT)
                result = output_of(operand, queries, scores, new_values, into_queries, PRECISION)
                result = tl.trans(result.to(out.dtype.element_ty))
                mask = live[:, None] & (channels < V)[None, :]
                tl.store(
                    out_at + token * (HV * V) + (t[:, None] * (HV * V) + channels[None, :]),
                    result,
                    mask=mask,
                )
                state = update(state, new_values, keys, to_end, whole, DTYPE, PRECISION)
        if checkpoint_sequences is not None:
            if leg < checkpoints:
                slot = tl.load(checkpoint_slots + checkpoint + leg).to(tl.int64)
                if not is_padding(slot, pad_slot, final_slots):
                    place = final + slot * final_slot + head.to(tl.int64) * final_head
                    keep_state(place, in_one(state), block, final_v, final_k, K, V)

    if final is not None:
        if end == length:
            place = final + destination * final_slot + head.to(tl.int64) * final_head
            keep_state(place, in_one(state), block, final_v, final_k, K, V)

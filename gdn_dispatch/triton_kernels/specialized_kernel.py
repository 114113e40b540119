"""The recurrence over chunks for Hopper, by warps that each have something of their own to do.

``recurrence_kernel`` in Gluon, Triton's language of explicit layouts: one warp copies chunks to
shared memory ahead of the others, four compute their scores, and one or two groups of four recur,
each over 64 channels of V; two share what was copied and scored, and fill each other's gaps.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
)

from gdn_dispatch.triton_kernels.specialized_recur_kernel import recur
from gdn_dispatch.triton_kernels.specialized_scores_kernel import score_chunks
from gdn_dispatch.triton_kernels.specialized_tiles_kernel import copy_chunks, keep_rows
from gdn_dispatch.triton_kernels.specialized_triangle_kernel import clear_quarter, quarters_of

__all__ = ["specialized_recurrence_kernel"]


@gluon.jit(
    do_not_specialize=[
        "chunks",
        "pad_slot",
        "initial_slots",
        "final_slots",
        "segment_tokens",
        "segments",
        "num_checkpoints",
        "write_stride",
        "read_stride",
    ]
)
def specialized_recurrence_kernel(
    q_tiles,
    k_tiles,
    v_tiles,
    transform_tiles,
    attention_tiles,
    factor_tiles,
    decay_tiles,
    out_tiles,
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
    scale,
    segment_tokens,
    segments,
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
    HV: gl.constexpr,
    GROUP: gl.constexpr,
    K: gl.constexpr,
    V: gl.constexpr,
    BT: gl.constexpr,
    PARTS: gl.constexpr,
    STAGES: gl.constexpr,
    L2NORM: gl.constexpr,
    SCORE_WIDTH: gl.constexpr,
    RECUR_REGISTERS: gl.constexpr,
    COPY_REGISTERS: gl.constexpr,
    SEGMENTED: gl.constexpr,
):
    """64 * PARTS channels of V of one value head of one row (or of one segment of it).

    Arguments and results are those of ``recurrence_kernel``, but for what the preparation leaves,
    and for ``final``: never None, and with 0 for ``final_slots`` nothing is written there.
    """
    BLOCKS: gl.constexpr = V // (64 * PARTS)
    block = gl.program_id(0) % BLOCKS
    head = (gl.program_id(0) // BLOCKS) % HV
    row = gl.program_id(0) // (BLOCKS * HV)
    source = row.to(gl.int64)
    begin = 0
    if SEGMENTED:
        begin = (row % segments) * segment_tokens
        row = row // segments
    sequence = row.to(gl.int64)
    length = (gl.load(cu_seqlens + row + 1) - gl.load(cu_seqlens + row)).to(gl.int32)
    token = gl.load(starts + row).to(gl.int32)
    # beside the other loads: what follows may wait for a slot
    first_chunk = gl.load(chunk_offsets + row).to(gl.int32)
    channel = block * (64 * PARTS)
    end = length
    live = length >= begin
    if SEGMENTED:
        end = gl.minimum(length, begin + segment_tokens)
        live = (begin < length) | (begin == 0)
    if sequences is not None:
        sequence = gl.load(sequences + row).to(gl.int64)
        live = live & (sequence >= 0)
        sequence = gl.maximum(sequence, 0)
    destination = row.to(gl.int64)
    present = live
    if write is not None:
        live = live & (length > 0)
        destination = gl.load(write + sequence * write_stride).to(gl.int64)
        padding = (destination < 0) | (destination == pad_slot) | (destination >= final_slots)
        if live & padding:
            ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
            nothing = gl.zeros([BT, 64], out.dtype.element_ty, ROWS)
            for offset in range(begin, end, BT):
                place = out + (token + offset).to(gl.int64) * (HV * V) + (head * V + channel)
                for part in gl.static_range(PARTS):
                    keep_rows(place + 64 * part, nothing, end - offset, HV * V)
        live = live & (padding == 0)
        present = live
        if not SEGMENTED:
            source = destination
            if read is not None:
                source = gl.load(read + sequence * read_stride).to(gl.int64)
            present = live & (source >= 0) & (source != pad_slot) & (source < initial_slots)
            if has_initial_state is not None:
                present = present & (gl.load(has_initial_state + sequence) != 0)
    checkpoint = 0
    checkpoints = 0
    if checkpoint_sequences is not None:
        # those of this row that fall into begin+1 .. end; they lie side by side
        checkpoint = num_checkpoints
        LIST: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
        for base in range(0, num_checkpoints, 128):
            i = base + gl.arange(0, 128, LIST)
            of = gl.load(checkpoint_sequences + i, mask=i < num_checkpoints, other=-1)
            at_token = gl.load(checkpoint_offsets + i, mask=i < num_checkpoints, other=0)
            mine = (of == sequence) & (at_token > begin) & (at_token <= end)
            checkpoints += gl.sum(mine.to(gl.int32), axis=0)
            checkpoint = gl.minimum(checkpoint, gl.min(gl.where(mine, i, num_checkpoints), axis=0))
    # chunks of nobody: nothing is copied, read or written
    tokens = gl.where(live, gl.maximum(end - begin, 0), 0)

    DTYPE: gl.constexpr = k_tiles.dtype
    queries = gl.allocate_shared_memory(DTYPE, [STAGES, BT, K], q_tiles.layout)
    keys = gl.allocate_shared_memory(DTYPE, [STAGES, BT, K], k_tiles.layout)
    values = gl.allocate_shared_memory(DTYPE, [STAGES * PARTS, BT, 64], v_tiles.layout)
    transforms = gl.allocate_shared_memory(DTYPE, [STAGES, BT, BT], transform_tiles.layout)
    scores = gl.allocate_shared_memory(DTYPE, [STAGES, BT, BT], transform_tiles.layout)
    factors = gl.allocate_shared_memory(gl.float32, [STAGES, 4 * BT], factor_tiles.layout)
    VECTOR: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    decays = gl.allocate_shared_memory(gl.float32, [STAGES, 2 * BT], decay_tiles.layout)
    into_queries = decays
    if attention_tiles is None:
        into_queries = gl.allocate_shared_memory(gl.float32, [STAGES, BT], VECTOR)
        row_norms = gl.allocate_shared_memory(gl.float32, [BT], VECTOR)
    results = gl.allocate_shared_memory(DTYPE, [PARTS, BT, 64], out_tiles.layout)
    clear_quarter(quarters_of(transforms), 2)
    if attention_tiles is not None:
        clear_quarter(quarters_of(scores), 2)
    fence_async_shared()
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    row_ends = gl.allocate_shared_memory(gl.int32, [1], VECTOR)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    scored = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    done = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    landed = gl.allocate_shared_memory(gl.int64, [1, 1], BARRIER)
    mbarrier.init(landed.index(0), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(scored.index(i), count=1)
        mbarrier.init(done.index(i), count=PARTS)

    if initial is not None:
        initial += source * initial_slot + head.to(gl.int64) * initial_head
    final += head.to(gl.int64) * final_head
    left = final + destination * final_slot + channel * final_v
    buffers = (
        queries, keys, values, transforms, scores, factors, into_queries, results, out_tiles, out,
    )  # fmt: skip
    barriers = (ready, scored, done)
    initial_state = (initial, initial_v, initial_k, present)
    checkpointing = (checkpoint_offsets, checkpoint_slots, checkpoint, checkpoints)
    finally_ = (final, final_slots, final_slot, final_v, final_k, left)
    key_column = head // GROUP * K
    chunk = head * chunks + first_chunk + begin // BT
    column = head * V + channel
    ONE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    ends = (live & (end == length) & (final_slots > 0)).to(gl.int32)
    row_ends.store(gl.full([1], 1, gl.int32, ONE) * ends)
    whose = (token + begin, tokens, end, column, channel, row_ends)
    copying = (
        (q_tiles, k_tiles, v_tiles, transform_tiles, attention_tiles, factor_tiles, decay_tiles),
        (queries, keys, values, transforms, scores, factors, decays),
        (ready, done, landed),
        (token + begin, key_column, column, chunk, tokens),
    )
    shared = (buffers, barriers, whose, initial_state, checkpointing, finally_, pad_slot)
    if attention_tiles is not None:
        if PARTS == 1:
            gl.warp_specialize(
                [
                    (recur, (shared, 0, attention_tiles is None, K, HV * V)),
                    (copy_chunks, (copying,)),
                ],
                [1],
                [COPY_REGISTERS],
            )
        else:
            gl.warp_specialize(
                [
                    (recur, (shared, 0, attention_tiles is None, K, HV * V)),
                    (recur, (shared, 1, attention_tiles is None, K, HV * V)),
                    (copy_chunks, (copying,)),
                ],
                [4, 1],
                [RECUR_REGISTERS, COPY_REGISTERS],
            )
    else:
        scoring = (into_queries, row_norms, scored, scale)
        # those that score come first: what the compiler takes out of the loops of later ones stays
        # in registers of all of them
        if PARTS == 1:
            gl.warp_specialize(
                [
                    (score_chunks, (copying, scoring, SCORE_WIDTH, L2NORM)),
                    (recur, (shared, 0, attention_tiles is None, K, HV * V)),
                    (copy_chunks, (copying,)),
                ],
                [4, 1],
                [RECUR_REGISTERS, COPY_REGISTERS],
            )
        else:
            gl.warp_specialize(
                [
                    (score_chunks, (copying, scoring, SCORE_WIDTH, L2NORM)),
                    (recur, (shared, 0, attention_tiles is None, K, HV * V)),
                    (recur, (shared, 1, attention_tiles is None, K, HV * V)),
                    (copy_chunks, (copying,)),
                ],
                [4, 4, 1],
                [RECUR_REGISTERS, RECUR_REGISTERS, COPY_REGISTERS],
            )

"""What a segment of a row does to a state, for Hopper: ``segment_kernel`` in Gluon.

The recurrence without queries, scores and output: a warp copies chunks, four recur over them.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from gdn_dispatch.triton_kernels.specialized_tiles_kernel import (
    copy_chunks,
    keep_state,
    read_state,
)
from gdn_dispatch.triton_kernels.specialized_triangle_kernel import clear_quarter, quarters_of

__all__ = ["specialized_segment_kernel"]


@gluon.jit
def run_through(shared, K: gl.constexpr):
    """Chunks one after the other, with the transposed state [64, K] in registers."""
    buffers, whose, places = shared
    keys, values, transforms, factors, ready, done = buffers
    channel, length, is_transfer, starts_row, present, leaves = whose
    initial, initial_v, initial_k, before, left = places
    STAGES: gl.constexpr = keys.shape[0]
    BT: gl.constexpr = keys.shape[1]
    DTYPE: gl.constexpr = keys.dtype
    CHUNK: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BT, 16])
    STATE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, K, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, CHUNK, 2)
    DECAYED: gl.constexpr = gl.DotOperandLayout(0, STATE, 2)
    TOKENS: gl.constexpr = gl.SliceLayout(0, CHUNK)
    ONE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    zero = gl.zeros([64, BT], gl.float32, CHUNK)

    channels = channel + gl.arange(0, 64, gl.SliceLayout(1, STATE))
    dims = gl.arange(0, K, gl.SliceLayout(0, STATE))
    state = gl.where(is_transfer & (channels[:, None] == dims[None, :]), 1.0, 0.0)
    if starts_row:
        if initial is not None:
            if present:
                state = read_state(initial, channel, initial_v, initial_k, K, STATE)
        # kept: the last segment may write to where the row starts from before the first reads it
        keep_state(before, state, channel, K, 1)

    for i in range(length // BT):
        stage = i % STAGES
        mbarrier.wait(ready.index(stage), i // STAGES & 1)
        keys_at = keys.index(stage)
        operand = gl.convert_layout(state.to(DTYPE), OPERAND)
        recalled = warpgroup_mma(
            operand, keys_at.permute((1, 0)), zero, use_acc=False, is_async=True
        )
        factor = factors.index(stage)
        surprise = values.index(stage).permute((1, 0)).load(CHUNK).to(gl.float32)
        surprise = surprise * factor.slice(3 * BT, BT).load(TOKENS)[None, :]
        into_keys = factor.slice(0, BT).load(TOKENS)
        to_end = factor.slice(2 * BT, BT).load(TOKENS)
        # e^G of the last token
        whole = gl.max(factor.slice(2 * BT - 1, 1).load(ONE), axis=0)
        recalled, _ = warpgroup_mma_wait(0, deps=(recalled, operand))
        surprise = surprise - recalled * into_keys[None, :]
        surprise = gl.convert_layout(surprise.to(DTYPE), OPERAND)
        fresh = warpgroup_mma(
            surprise, transforms.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True
        )
        state = state * whole
        fresh, _ = warpgroup_mma_wait(0, deps=(fresh, surprise))
        decayed = gl.convert_layout((fresh * to_end[None, :]).to(DTYPE), DECAYED)
        state = warpgroup_mma(decayed, keys_at, state, is_async=True)
        state, _ = warpgroup_mma_wait(0, deps=(state, decayed))
        mbarrier.arrive(done.index(stage), count=1)
    if leaves:
        keep_state(left, state, channel, K, 1)


@gluon.jit(
    do_not_specialize=[
        "chunks",
        "pad_slot",
        "initial_slots",
        "segment_tokens",
        "segments",
        "rows",
        "write_stride",
        "read_stride",
    ]
)
def specialized_segment_kernel(
    k_tiles,
    v_tiles,
    transform_tiles,
    factor_tiles,
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
    rows,
    write_stride,
    read_stride,
    initial_slot,
    initial_head,
    initial_v,
    initial_k,
    HV: gl.constexpr,
    GROUP: gl.constexpr,
    K: gl.constexpr,
    V: gl.constexpr,
    BT: gl.constexpr,
    STAGES: gl.constexpr,
    COPY_REGISTERS: gl.constexpr,
):
    """64 channels of V of S -> M S + L over one segment, or 64 of K; see ``segment_kernel``.

    First the programs of L, for all but the last of a row's ``segments``; then those of M, for all
    but the first of these. Others would only take the place of programs with something to do.
    """
    number = gl.program_id(0)
    of_states = rows * (segments - 1) * (HV * (V // 64))
    is_transfer = number >= of_states
    each = segments - 1
    blocks = gl.to_tensor(V // 64)
    if is_transfer:
        number -= of_states
        each = segments - 2
        blocks = gl.to_tensor(K // 64)
    block = number % blocks
    head = number // blocks % HV
    row = (number // (blocks * HV) // each).to(gl.int64)
    segment = number // (blocks * HV) % each + is_transfer.to(gl.int32)
    index = row * segments + segment
    begin = segment * segment_tokens
    length = (gl.load(cu_seqlens + row + 1) - gl.load(cu_seqlens + row)).to(gl.int32)
    token = gl.load(starts + row).to(gl.int32)
    first_chunk = gl.load(chunk_offsets + row).to(gl.int32)
    sequence = row
    live = length >= 0
    if sequences is not None:
        sequence = gl.load(sequences + row).to(gl.int64)
        live = sequence >= 0
        sequence = gl.maximum(sequence, 0)
    # the last segment of a row leaves nothing that anybody needs
    leaves = live & (begin + segment_tokens < length)
    starts_row = live & (segment == 0) & (is_transfer == 0)
    present = starts_row
    source = row
    if write is not None:
        slots = write + sequence * write_stride
        if read is not None:
            slots = read + sequence * read_stride
        source = gl.load(slots).to(gl.int64)
        present = present & (source >= 0) & (source != pad_slot) & (source < initial_slots)
        if has_initial_state is not None:
            present = present & (gl.load(has_initial_state + sequence) != 0)
    tokens = gl.where(leaves, segment_tokens, 0)

    DTYPE: gl.constexpr = k_tiles.dtype
    keys = gl.allocate_shared_memory(DTYPE, [STAGES, BT, K], k_tiles.layout)
    values = gl.allocate_shared_memory(DTYPE, [STAGES, BT, 64], v_tiles.layout)
    transforms = gl.allocate_shared_memory(DTYPE, [STAGES, BT, BT], transform_tiles.layout)
    factors = gl.allocate_shared_memory(gl.float32, [STAGES, 4 * BT], factor_tiles.layout)
    clear_quarter(quarters_of(transforms), 2)
    fence_async_shared()
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    done = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(done.index(i), count=1)

    # columns past the end are copied as zeros: a transfer is of values that are zero
    v_column = gl.where(is_transfer, HV * V, head * V + block * 64)
    channel = block * 64
    if initial is not None:
        initial += source * initial_slot + head.to(gl.int64) * initial_head
    before = states + (index * HV + head) * (V * K)
    left = before + HV * (V * K)
    if is_transfer:
        left = transfers + (index * HV + head) * (K * K)
    shared = (
        (keys, values, transforms, factors, ready, done),
        (channel, tokens, is_transfer, starts_row, present, leaves),
        (initial, initial_v, initial_k, before, left),
    )
    first_chunk += head * chunks + begin // BT
    whose = (token + begin, head // GROUP * K, v_column, first_chunk, tokens)
    copying = (
        (None, k_tiles, v_tiles, transform_tiles, None, factor_tiles, None),
        (None, keys, values, transforms, None, factors, None),
        (ready, done, None),  # segments that leave something are whole chunks
        whose,
    )
    gl.warp_specialize(
        [(run_through, (shared, K)), (copy_chunks, (copying,))], [1], [COPY_REGISTERS]
    )

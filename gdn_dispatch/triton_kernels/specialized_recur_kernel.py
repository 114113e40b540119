"""Chunks one after the other, by a group of four warps, for Hopper.

Of the products of a chunk those that no other waits for run beside those that the next chunk waits
for. What registers hold at once decides the order: with any more, the assembler makes every product
wait for the one before.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from gdn_dispatch.triton_kernels.specialized_tiles_kernel import (
    keep_rows,
    keep_state,
    read_state,
)

__all__ = ["recur"]


@gluon.jit
def recur(shared, part: gl.constexpr, WAITS: gl.constexpr, K: gl.constexpr, WIDTH: gl.constexpr):
    """Chunks one after the other, with the transposed state [64, K] in registers."""
    buffers, barriers, whose, initial_state, checkpointing, finally_, pad_slot = shared
    queries, keys, values, transforms, scores, factors, into_queries, results, out_tiles, out = (
        buffers
    )
    ready, scored, done = barriers
    token, length, end, column, channel, row_ends = whose
    initial, initial_v, initial_k, present = initial_state
    checkpoint_offsets, checkpoint_slots, checkpoint, checkpoints = checkpointing
    final, final_slots, final_slot, final_v, final_k, left = finally_
    STAGES: gl.constexpr = queries.shape[0]
    PARTS: gl.constexpr = values.shape[0] // STAGES
    BT: gl.constexpr = queries.shape[1]
    DTYPE: gl.constexpr = queries.dtype
    CHUNK: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BT, 16])
    STATE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, K, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, CHUNK, 2)
    DECAYED: gl.constexpr = gl.DotOperandLayout(0, STATE, 2)
    TOKENS: gl.constexpr = gl.SliceLayout(0, CHUNK)
    ONE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    channel += 64 * part
    column += 64 * part
    result_at = results.index(part)
    zero = gl.zeros([64, BT], gl.float32, CHUNK)

    state = gl.zeros([64, K], gl.float32, STATE)
    if initial is not None:
        if present:
            state = read_state(initial, channel, initial_v, initial_k, K, STATE)
    next_checkpoint = end + 1
    if checkpoint_offsets is not None:
        if checkpoints > 0:
            next_checkpoint = gl.load(checkpoint_offsets + checkpoint).to(gl.int32)

    for i in range(gl.cdiv(length, BT)):
        stage = i % STAGES
        offset = i * BT
        mbarrier.wait(ready.index(stage), i // STAGES & 1)
        keys_at = keys.index(stage)
        values_at = values.index(stage * PARTS + part)
        operand = gl.convert_layout(state.to(DTYPE), OPERAND)
        recalled = warpgroup_mma(
            operand, keys_at.permute((1, 0)), zero, use_acc=False, is_async=True
        )
        factor = factors.index(stage)
        surprise = values_at.permute((1, 0)).load(CHUNK).to(gl.float32)
        surprise = surprise * factor.slice(3 * BT, BT).load(TOKENS)[None, :]
        into_keys = factor.slice(0, BT).load(TOKENS)
        recalled, _ = warpgroup_mma_wait(0, deps=(recalled, operand))
        surprise = surprise - recalled * into_keys[None, :]
        surprise = gl.convert_layout(surprise.to(DTYPE), OPERAND)
        fresh = warpgroup_mma(
            surprise, transforms.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True
        )
        # beside what is made of the new values; any earlier, it would want registers for longer
        result = warpgroup_mma(
            operand, queries.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True
        )
        to_end = factor.slice(2 * BT, BT).load(TOKENS)
        # e^G of the last token
        whole = gl.max(factor.slice(2 * BT - 1, 1).load(ONE), axis=0)
        fresh, _ = warpgroup_mma_wait(1, deps=(fresh, surprise))
        decayed = gl.convert_layout((fresh * to_end[None, :]).to(DTYPE), DECAYED)
        fresh = gl.convert_layout(fresh.to(DTYPE), OPERAND)
        if WAITS:
            mbarrier.wait(scored.index(stage), i // STAGES & 1)
        result, _ = warpgroup_mma_wait(0, deps=(result, operand))
        result = result * into_queries.index(stage).slice(0, BT).load(TOKENS)[None, :]
        result = warpgroup_mma(fresh, scores.index(stage).permute((1, 0)), result, is_async=True)
        state = warpgroup_mma(decayed, keys_at, state * whole, is_async=True)
        result, _ = warpgroup_mma_wait(1, deps=(result, fresh))
        tma.store_wait(0)
        result_at.permute((1, 0)).store(result.to(out.dtype.element_ty))
        if offset + BT <= length:
            fence_async_shared()
            tma.async_copy_shared_to_global(out_tiles, [token + offset, column], result_at)
        else:
            # the copy engine would write on, into the next row
            place = out + ((token + offset).to(gl.int64) * WIDTH + column)
            keep_rows(place, result_at.load(ROWS), length - offset, WIDTH)
        state, _ = warpgroup_mma_wait(0, deps=(state, decayed))
        mbarrier.arrive(done.index(stage), count=1)
        if checkpoint_offsets is not None:
            if end - length + offset + BT == next_checkpoint:
                slot = gl.load(checkpoint_slots + checkpoint).to(gl.int64)
                if (slot >= 0) & (slot != pad_slot) & (slot < final_slots):
                    keep_state(final + slot * final_slot, state, channel, final_v, final_k)
                checkpoint += 1
                checkpoints -= 1
                next_checkpoint = end + 1
                if checkpoints > 0:
                    next_checkpoint = gl.load(checkpoint_offsets + checkpoint).to(gl.int32)
    tma.store_wait(0)
    # from shared memory: it would take a register through all chunks
    if gl.max(row_ends.load(ONE), axis=0) != 0:
        keep_state(left, state, 64 * part, final_v, final_k)

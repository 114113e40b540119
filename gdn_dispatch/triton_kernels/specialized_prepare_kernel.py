"""What a chunk needs that no state enters, for Hopper: ``prepare_kernel`` in Gluon.

The same numbers from fewer registers and instructions: operands and results pass through shared
memory by the copy engine, and no product waits for operands to move between lanes.
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

from gdn_dispatch.triton_kernels.specialized_blocks_kernel import (
    quarter_of,
    score_between,
    system_between,
    within,
)
from gdn_dispatch.triton_kernels.specialized_gates_kernel import gates_of, keep_gates
from gdn_dispatch.triton_kernels.specialized_inverse_kernel import keep_inverse
from gdn_dispatch.triton_kernels.specialized_tiles_kernel import blank
from gdn_dispatch.triton_kernels.specialized_triangle_kernel import keep_lower

__all__ = ["specialized_prepare_kernel"]

@gluon.jit
def inverse_norms(tile):
    """``1 / sqrt(sum x^2 + 1e-6)`` of the rows of a tile."""
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    wide = tile.load(ROWS).to(gl.float32)
    return gl.rsqrt(gl.sum(wide * wide, axis=1) + 1e-6)


@gluon.jit(do_not_specialize=["chunks", "H"])
def specialized_prepare_kernel(
    q_tiles,
    k_tiles,
    transform_tiles,
    attention_tiles,
    g,
    beta,
    A_log,
    dt_bias,
    factors,  # [HV, chunks, 5, BT] fp32
    chunk_indices,
    nonempty,
    starts,
    cu_seqlens,
    chunks,
    scale,
    g_token,
    g_head,
    beta_token,
    beta_head,
    H,
    K: gl.constexpr,
    BT: gl.constexpr,
    GROUP: gl.constexpr,
    HEADS: gl.constexpr,
    WHOLE: gl.constexpr,
    L2NORM: gl.constexpr,
    BETA_IS_LOGIT: gl.constexpr,
    NEG_EIGVAL: gl.constexpr,
):
    """One chunk of one key head, and HEADS of the GROUP value heads that share it.

    Arguments and results are those of ``prepare_kernel``; WHOLE: transforms are kept with the
    quarter that is zero. All warps multiply q and k; then each of them has a head of its own.
    """
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BT, 16])
    ROW: gl.constexpr = gl.SliceLayout(1, ACC)
    COLUMN: gl.constexpr = gl.SliceLayout(0, ACC)
    DTYPE: gl.constexpr = k_tiles.dtype
    HALF: gl.constexpr = BT // 2
    PARTS: gl.constexpr = GROUP // HEADS
    chunk = gl.program_id(0) // (H * PARTS)
    key_head = (gl.program_id(0) // PARTS) % H
    first_head = key_head * GROUP + gl.program_id(0) % PARTS * HEADS
    nth = gl.load(chunk_indices + 2 * chunk)
    if nth < 0:
        return
    row = gl.load(nonempty + nth)
    offset = gl.load(chunk_indices + 2 * chunk + 1) * BT
    length = (gl.load(cu_seqlens + row + 1) - gl.load(cu_seqlens + row)).to(gl.int32) - offset
    token = gl.load(starts + row).to(gl.int32) + offset

    gates = gates_of(
        g, beta, A_log, dt_bias, g_token, g_head, beta_token, beta_head, token, length, first_head,
        HEADS,
    )  # fmt: skip

    PANELS: gl.constexpr = gl.NVMMASharedLayout(64, 16, 3)
    WIDE: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    VECTOR: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    MATRIX: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    inputs = gl.allocate_shared_memory(DTYPE, [2, BT, K], k_tiles.layout)
    queries = inputs.index(0)
    keys = inputs.index(1)
    norms = gl.allocate_shared_memory(gl.float32, [2, BT], VECTOR)
    tables = gl.allocate_shared_memory(gl.float32, [5, HEADS, BT], MATRIX)
    through = gl.allocate_shared_memory(gl.float32, [HEADS, 4], MATRIX)
    scores = gl.allocate_shared_memory(DTYPE, [3, HEADS, HALF, HALF], PANELS)
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(ready, count=1)
    mbarrier.expect(ready, q_tiles.block_type.nbytes + k_tiles.block_type.nbytes)
    tma.async_copy_global_to_shared(k_tiles, [token, key_head * K], ready, keys)
    tma.async_copy_global_to_shared(q_tiles, [token, key_head * K], ready, queries)
    mbarrier.wait(ready, 0)
    mbarrier.invalidate(ready)
    if length < BT:
        blank(keys, length)
        blank(queries, length)
        fence_async_shared()
    zero = gl.zeros([BT, BT], gl.float32, ACC)
    kk = warpgroup_mma(keys, keys.permute((1, 0)), zero, use_acc=False, is_async=True)
    qk = warpgroup_mma(queries, keys.permute((1, 0)), zero, use_acc=False, is_async=True)
    from_start, to_end, strength = keep_gates(
        gates, length, tables, through, A_log is not None, BETA_IS_LOGIT, NEG_EIGVAL
    )
    TOKENS: gl.constexpr = gl.SliceLayout(0, from_start.type.layout)
    block = gl.arange(0, 4, gl.SliceLayout(1, TOKENS))[:, None]
    t = 16 * block + gl.arange(0, 16, gl.SliceLayout(0, TOKENS))[None, :]
    k_factor = gl.full([4, 16], 1.0, gl.float32, TOKENS)
    q_factor = k_factor * scale
    if L2NORM:
        norms.index(0).store(inverse_norms(keys))
        norms.index(1).store(inverse_norms(queries) * scale)
        k_factor = norms.index(0).reshape([4, 16]).load(TOKENS)
        q_factor = norms.index(1).reshape([4, 16]).load(TOKENS)
    HEAD: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, from_start.type.layout))
    heads = first_head + gl.arange(0, HEADS, HEAD)[:, None, None]
    factors_at = factors + (heads.to(gl.int64) * chunks + chunk) * (5 * BT) + t[None, :, :]
    gl.store(factors_at, from_start * strength * k_factor[None, :, :])
    gl.store(factors_at + BT, from_start * q_factor[None, :, :])
    gl.store(factors_at + 2 * BT, to_end * k_factor[None, :, :])
    gl.store(factors_at + 3 * BT, strength)
    # e^G_last, the first number of the fifth row
    of_last = (t == BT - 1)[None, :, :] & (heads >= 0)
    gl.store(factors_at + 3 * BT + 1, from_start, mask=of_last)
    kk, qk = warpgroup_mma_wait(0, deps=(kk, qk))
    if L2NORM:
        k_column = norms.index(0).load(COLUMN)[None, :]
        kk = kk * k_column * norms.index(0).load(ROW)[:, None]
        qk = qk * k_column * norms.index(1).load(ROW)[:, None]
    else:
        qk = qk * scale

    # q and k have been read: their products take their place, then the transforms theirs
    products = inputs._reinterpret(gl.float32, [2, BT, BT], WIDE)
    products.index(0).store(qk)
    products.index(1).store(kk)
    qk = products.index(0)
    kk = products.index(1)
    score_0, own_0 = within(qk, kk, tables, 0, HEADS)
    score_1, own_1 = within(qk, kk, tables, 1, HEADS)
    below = score_between(qk, tables, through, 1, 0, HEADS)
    nothing = gl.zeros_like(below)
    scores.index(0).store(quarter_of(score_0, nothing, below, score_1, DTYPE))
    gl.thread_barrier()
    score_0, own_2 = within(qk, kk, tables, 2, HEADS)
    score_1, own_3 = within(qk, kk, tables, 3, HEADS)
    below = score_between(qk, tables, through, 3, 2, HEADS)
    scores.index(2).store(quarter_of(score_0, nothing, below, score_1, DTYPE))
    left = quarter_of(
        score_between(qk, tables, through, 2, 0, HEADS),
        score_between(qk, tables, through, 2, 1, HEADS),
        score_between(qk, tables, through, 3, 0, HEADS),
        score_between(qk, tables, through, 3, 1, HEADS),
        DTYPE,
    )
    scores.index(1).store(left)
    gl.thread_barrier()
    between = (
        system_between(kk, tables, through, 1, 0, HEADS),
        system_between(kk, tables, through, 3, 2, HEADS),
        system_between(kk, tables, through, 2, 0, HEADS),
        system_between(kk, tables, through, 2, 1, HEADS),
        system_between(kk, tables, through, 3, 0, HEADS),
        system_between(kk, tables, through, 3, 1, HEADS),
    )
    fence_async_shared()
    keep_lower(attention_tiles, first_head, chunk, scores, False)
    transforms = inputs._reinterpret(DTYPE, [16 // HEADS, HEADS, HALF, HALF], PANELS)
    keep_inverse((own_0, own_1, own_2, own_3), between, transforms)
    if WHOLE:
        transforms.index(3).store(gl.zeros_like(left))
    fence_async_shared()
    keep_lower(transform_tiles, first_head, chunk, transforms, WHOLE)
    tma.store_wait(0)

"""What a chunk needs that no state enters, for Hopper: ``prepare_kernel`` in Gluon.

The same numbers but for rounding, from fewer registers and instructions: inputs and results pass
through shared memory by the copy engine, and what lies between them stays in a warp.
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
    times_shared,
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
    KEYS: gl.constexpr,
    HEADS: gl.constexpr,
    L2NORM: gl.constexpr,
    BETA_IS_LOGIT: gl.constexpr,
    NEG_EIGVAL: gl.constexpr,
):
    """One chunk of KEYS key heads, and of HEADS value heads that share them.

    Arguments and results are those of ``prepare_kernel``, but of matrices without the quarter that
    is zero. All warps multiply q and k; then each of them has a head of its own, or, where there
    are fewer, repeats the last one, and what it makes is not kept.
    """
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BT, 16])
    ROW: gl.constexpr = gl.SliceLayout(1, ACC)
    COLUMN: gl.constexpr = gl.SliceLayout(0, ACC)
    DTYPE: gl.constexpr = k_tiles.dtype
    HALF: gl.constexpr = BT // 2
    # programs for all value heads of these key heads
    PARTS: gl.constexpr = (GROUP * KEYS + HEADS - 1) // HEADS
    ALL_LIVE: gl.constexpr = PARTS * HEADS == GROUP * KEYS
    chunk = gl.program_id(0) // (H // KEYS * PARTS)
    first_key = (gl.program_id(0) // PARTS) % (H // KEYS) * KEYS
    first_head = first_key * GROUP + gl.program_id(0) % PARTS * HEADS
    live_heads = HEADS
    # where matrices are kept; by key head, so that none is kept of what would be the next one's
    place = first_head
    matrix = chunk
    if not ALL_LIVE:
        place = gl.program_id(0) % PARTS * HEADS
        matrix = first_key * GROUP * chunks + chunk
        live_heads = gl.minimum(HEADS, GROUP - place)
    nth = gl.load(chunk_indices + 2 * chunk)
    if nth < 0:
        return
    row = gl.load(nonempty + nth)
    offset = gl.load(chunk_indices + 2 * chunk + 1) * BT
    length = (gl.load(cu_seqlens + row + 1) - gl.load(cu_seqlens + row)).to(gl.int32) - offset
    token = gl.load(starts + row).to(gl.int32) + offset

    # under way before the copies, and waited for after them
    gates = gates_of(
        g, beta, A_log, dt_bias, g_token, g_head, beta_token, beta_head, token, length, first_head,
        live_heads, HEADS,
    )  # fmt: skip

    PANELS: gl.constexpr = gl.NVMMASharedLayout(64, 16, 3)
    WIDE: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    CUBE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    VECTOR: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    MATRIX: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    MATRICES: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [2, 1, 0])
    inputs = gl.allocate_shared_memory(DTYPE, [2 * KEYS, BT, K], k_tiles.layout)
    # a product takes the place of the inputs that nobody else reads
    products = inputs._reinterpret(gl.float32, [2 * KEYS, BT, BT], WIDE)
    by_kind = inputs._reinterpret(gl.float32, [2, KEYS, BT, BT], MATRICES)
    tables = gl.allocate_shared_memory(gl.float32, [5, HEADS, BT], MATRIX)
    through = gl.allocate_shared_memory(gl.float32, [HEADS, 4], MATRIX)
    # matrices take the place of products, once nobody reads these any more; until then there is
    # room for two quarters, and before that for the norms
    quarters = inputs._reinterpret(DTYPE, [16 * KEYS // HEADS, HEADS, HALF, HALF], PANELS)
    scores = gl.allocate_shared_memory(DTYPE, [2, HEADS, HALF, HALF], PANELS)
    norms = scores._reinterpret(gl.float32, [16 * HEADS, BT], VECTOR)
    norms_by_kind = scores._reinterpret(gl.float32, [16 * HEADS // KEYS, KEYS, 4, 16], CUBE)
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(ready, count=1)
    mbarrier.expect(ready, KEYS * (q_tiles.block_type.nbytes + k_tiles.block_type.nbytes))
    for n in gl.static_range(KEYS):
        at = [token, (first_key + n) * K]
        tma.async_copy_global_to_shared(k_tiles, at, ready, inputs.index(KEYS + n))
        tma.async_copy_global_to_shared(q_tiles, at, ready, inputs.index(n))
    mbarrier.wait(ready, 0)
    mbarrier.invalidate(ready)
    if length < BT:
        for n in gl.static_range(2 * KEYS):
            blank(inputs.index(n), length)
        fence_async_shared()
    zero = gl.zeros([BT, BT], gl.float32, ACC)
    keys = inputs.index(KEYS)
    kk = warpgroup_mma(keys, keys.permute((1, 0)), zero, use_acc=False, is_async=True)
    qk = warpgroup_mma(inputs.index(0), keys.permute((1, 0)), zero, use_acc=False, is_async=True)
    from_start, to_end, strength = keep_gates(
        gates, length, tables, through, A_log is not None, BETA_IS_LOGIT, NEG_EIGVAL
    )
    into_keys = from_start * strength
    into_queries = from_start
    if L2NORM:
        for n in gl.static_range(2 * KEYS):
            norms.index(n).store(inverse_norms(inputs.index(n)))
        into_keys = times_shared(into_keys, norms_by_kind.index(1))
        into_queries = times_shared(into_queries, norms_by_kind.index(0))
        to_end = times_shared(to_end, norms_by_kind.index(1))
    GATES: gl.constexpr = from_start.type.layout
    block = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(2, GATES)))[None, :, None]
    t = 16 * block + gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, GATES)))[None, None, :]
    heads = gl.arange(0, HEADS, gl.SliceLayout(1, gl.SliceLayout(2, GATES)))[:, None, None]
    if not ALL_LIVE:
        heads = gl.minimum(heads, live_heads - 1)
    heads = first_head + heads
    factors_at = factors + (heads.to(gl.int64) * chunks + chunk) * (5 * BT) + t
    gl.store(factors_at, into_keys)
    gl.store(factors_at + BT, into_queries * scale)
    gl.store(factors_at + 2 * BT, to_end)
    gl.store(factors_at + 3 * BT, strength)
    # e^G_last, the first number of the fifth row
    gl.store(factors_at + 3 * BT + 1, from_start, mask=(t == BT - 1) & (heads >= 0))
    for n in gl.static_range(KEYS):
        if n > 0:
            keys = inputs.index(KEYS + n)
            queries = inputs.index(n)
            kk = warpgroup_mma(keys, keys.permute((1, 0)), zero, use_acc=False, is_async=True)
            qk = warpgroup_mma(queries, keys.permute((1, 0)), zero, use_acc=False, is_async=True)
        kk, qk = warpgroup_mma_wait(0, deps=(kk, qk))
        if L2NORM:
            k_column = norms.index(KEYS + n).load(COLUMN)[None, :]
            kk = kk * k_column * norms.index(KEYS + n).load(ROW)[:, None]
            qk = qk * k_column * norms.index(n).load(ROW)[:, None]
        products.index(n).store(qk * scale)
        products.index(KEYS + n).store(kk)
    qk = by_kind.index(0)
    kk = by_kind.index(1)
    score_0, own_0 = within(qk, kk, tables, 0, HEADS)
    score_1, own_1 = within(qk, kk, tables, 1, HEADS)
    below = score_between(qk, tables, through, 1, 0, HEADS)
    nothing = gl.zeros_like(below)
    scores.index(0).store(quarter_of(score_0, nothing, below, score_1, DTYPE))
    gl.thread_barrier()  # or the assembler begins so much at once that it spills
    score_0, own_2 = within(qk, kk, tables, 2, HEADS)
    score_1, own_3 = within(qk, kk, tables, 3, HEADS)
    below = score_between(qk, tables, through, 3, 2, HEADS)
    scores.index(1).store(quarter_of(score_0, nothing, below, score_1, DTYPE))
    left = quarter_of(
        score_between(qk, tables, through, 2, 0, HEADS),
        score_between(qk, tables, through, 2, 1, HEADS),
        score_between(qk, tables, through, 3, 0, HEADS),
        score_between(qk, tables, through, 3, 1, HEADS),
        DTYPE,
    )
    between = (
        system_between(kk, tables, through, 1, 0, HEADS),
        system_between(kk, tables, through, 3, 2, HEADS),
        system_between(kk, tables, through, 2, 0, HEADS),
        system_between(kk, tables, through, 2, 1, HEADS),
        system_between(kk, tables, through, 3, 0, HEADS),
        system_between(kk, tables, through, 3, 1, HEADS),
    )
    quarters.index(3).store(left)
    fence_async_shared()
    keep_lower(attention_tiles, place, matrix, scores.index(0), quarters.index(3), scores.index(1))
    keep_inverse((own_0, own_1, own_2, own_3), between, quarters)
    fence_async_shared()
    keep_lower(
        transform_tiles, place, matrix, quarters.index(0), quarters.index(1), quarters.index(2)
    )
    tma.store_wait(0)

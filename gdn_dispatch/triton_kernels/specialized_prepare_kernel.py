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
    decay_within,
    quarter_of,
    score_between,
    score_within,
    system_between,
    system_within,
    times_shared,
)
from gdn_dispatch.triton_kernels.specialized_gates_kernel import gates_of, keep_gates
from gdn_dispatch.triton_kernels.specialized_inverse_kernel import keep_inverse
from gdn_dispatch.triton_kernels.specialized_scores_kernel import inverse_norms
from gdn_dispatch.triton_kernels.specialized_tiles_kernel import blank
from gdn_dispatch.triton_kernels.specialized_triangle_kernel import keep_lower

__all__ = ["specialized_prepare_kernel"]


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
    factors,  # [HV, chunks, 6, BT] fp32
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
    is zero. Without ``q_tiles`` scores are left to the recurrence (``score_chunks``). Factors of a
    token, in rows: of what a state recalls by k; e^G; from a new value to the chunk's end; the
    value's strength; then, with scores, of what it answers to q, and nothing; without, G in base 2,
    and with L2NORM one over the norm of k.

    All warps multiply q and k; then each of them has a head of its own, or, where there are fewer,
    repeats the last one, and what it makes is not kept.
    """
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BT, 16])
    ROW: gl.constexpr = gl.SliceLayout(1, ACC)
    COLUMN: gl.constexpr = gl.SliceLayout(0, ACC)
    DTYPE: gl.constexpr = k_tiles.dtype
    HALF: gl.constexpr = BT // 2
    SCORES: gl.constexpr = q_tiles is not None
    # keys lie behind queries
    FIRST: gl.constexpr = KEYS if SCORES else 0
    # room for the inputs, and for three quarters of the matrices of all heads
    INPUTS: gl.constexpr = KEYS if not SCORES and 8 * KEYS >= 3 * HEADS else 2 * KEYS
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
    # products take the place of inputs that nobody else reads; matrices that of products
    inputs = gl.allocate_shared_memory(DTYPE, [INPUTS, BT, K], k_tiles.layout)
    products = inputs._reinterpret(gl.float32, [INPUTS, BT, BT], WIDE)
    by_key = inputs._reinterpret(gl.float32, [INPUTS // KEYS, KEYS, BT, BT], MATRICES)
    quarters = inputs._reinterpret(DTYPE, [8 * INPUTS // HEADS, HEADS, HALF, HALF], PANELS)
    tables = gl.allocate_shared_memory(gl.float32, [5, HEADS, BT], MATRIX)
    through = gl.allocate_shared_memory(gl.float32, [HEADS, 4], MATRIX)
    if SCORES:
        # until there are scores, there is room for the norms
        scores = gl.allocate_shared_memory(DTYPE, [2, HEADS, HALF, HALF], PANELS)
        norms = scores._reinterpret(gl.float32, [16 * HEADS, BT], VECTOR)
        by_block = scores._reinterpret(gl.float32, [16 * HEADS // KEYS, KEYS, 4, 16], CUBE)
    else:
        norms = gl.allocate_shared_memory(gl.float32, [KEYS, BT], VECTOR)
        by_block = norms._reinterpret(gl.float32, [1, KEYS, 4, 16], CUBE)
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(ready, count=1)
    mbarrier.expect(ready, (FIRST + KEYS) * k_tiles.block_type.nbytes)
    for n in gl.static_range(KEYS):
        at = [token, (first_key + n) * K]
        tma.async_copy_global_to_shared(k_tiles, at, ready, inputs.index(FIRST + n))
        if SCORES:
            tma.async_copy_global_to_shared(q_tiles, at, ready, inputs.index(n))
    mbarrier.wait(ready, 0)
    mbarrier.invalidate(ready)
    if length < BT:
        for n in gl.static_range(FIRST + KEYS):
            blank(inputs.index(n), length)
        fence_async_shared()
    zero = gl.zeros([BT, BT], gl.float32, ACC)
    keys = inputs.index(FIRST)
    product = warpgroup_mma(keys, keys.permute((1, 0)), zero, use_acc=False, is_async=True)
    if SCORES:
        queries = inputs.index(0)
        score = warpgroup_mma(queries, keys.permute((1, 0)), zero, use_acc=False, is_async=True)
    from_start, to_end, strength, decay = keep_gates(
        gates, length, tables, through, A_log is not None, BETA_IS_LOGIT, NEG_EIGVAL
    )
    into_keys = from_start * strength
    into_queries = from_start
    if L2NORM:
        for n in gl.static_range(FIRST + KEYS):
            norms.index(n).store(inverse_norms(inputs.index(n)))
        into_keys = times_shared(into_keys, by_block.index(FIRST // KEYS))
        to_end = times_shared(to_end, by_block.index(FIRST // KEYS))
        if SCORES:
            into_queries = times_shared(into_queries, by_block.index(0))
    GATES: gl.constexpr = from_start.type.layout
    block = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(2, GATES)))[None, :, None]
    t = 16 * block + gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, GATES)))[None, None, :]
    heads = gl.arange(0, HEADS, gl.SliceLayout(1, gl.SliceLayout(2, GATES)))[:, None, None]
    if not ALL_LIVE:
        heads = gl.minimum(heads, live_heads - 1)
    heads = first_head + heads
    factors_at = factors + (heads.to(gl.int64) * chunks + chunk) * (6 * BT) + t
    gl.store(factors_at, into_keys)
    gl.store(factors_at + BT, from_start)
    gl.store(factors_at + 2 * BT, to_end)
    gl.store(factors_at + 3 * BT, strength)
    if SCORES:
        gl.store(factors_at + 4 * BT, into_queries * scale)
    else:
        gl.store(factors_at + 4 * BT, decay)
        if L2NORM:
            one = gl.full_like(strength, 1.0)
            gl.store(factors_at + 5 * BT, times_shared(one, by_block.index(0)))
    for n in gl.static_range(KEYS):
        if n > 0:
            keys = inputs.index(FIRST + n)
            product = warpgroup_mma(keys, keys.permute((1, 0)), zero, use_acc=False, is_async=True)
            if SCORES:
                queries = inputs.index(n)
                score = warpgroup_mma(
                    queries, keys.permute((1, 0)), zero, use_acc=False, is_async=True
                )
        if SCORES:
            product, score = warpgroup_mma_wait(0, deps=(product, score))
        else:
            product = warpgroup_mma_wait(0, deps=(product,))
        if L2NORM:
            of_columns = norms.index(FIRST + n).load(COLUMN)[None, :]
            product = product * of_columns
            product = product * norms.index(FIRST + n).load(ROW)[:, None]
            if SCORES:
                score = score * of_columns * norms.index(n).load(ROW)[:, None]
        if SCORES:
            products.index(n).store(score * scale)
        products.index(FIRST + n).store(product)
    kk = by_key.index(FIRST // KEYS)
    if SCORES:
        qk = by_key.index(0)
        decay_0 = decay_within(tables, 0, HEADS)
        decay_1 = decay_within(tables, 1, HEADS)
        own_0 = system_within(decay_0, kk, tables, 0)
        own_1 = system_within(decay_1, kk, tables, 1)
        below = score_between(qk, tables, through, 1, 0, HEADS)
        nothing = gl.zeros_like(below)
        upper = score_within(decay_0, qk, 0)
        scores.index(0).store(
            quarter_of(upper, nothing, below, score_within(decay_1, qk, 1), DTYPE)
        )
        gl.thread_barrier()  # or the assembler begins so much at once that it spills
        decay_2 = decay_within(tables, 2, HEADS)
        decay_3 = decay_within(tables, 3, HEADS)
        own_2 = system_within(decay_2, kk, tables, 2)
        own_3 = system_within(decay_3, kk, tables, 3)
        below = score_between(qk, tables, through, 3, 2, HEADS)
        upper = score_within(decay_2, qk, 2)
        scores.index(1).store(
            quarter_of(upper, nothing, below, score_within(decay_3, qk, 3), DTYPE)
        )
        left = quarter_of(
            score_between(qk, tables, through, 2, 0, HEADS),
            score_between(qk, tables, through, 2, 1, HEADS),
            score_between(qk, tables, through, 3, 0, HEADS),
            score_between(qk, tables, through, 3, 1, HEADS),
            DTYPE,
        )
    else:
        own_0 = system_within(decay_within(tables, 0, HEADS), kk, tables, 0)
        own_1 = system_within(decay_within(tables, 1, HEADS), kk, tables, 1)
        own_2 = system_within(decay_within(tables, 2, HEADS), kk, tables, 2)
        own_3 = system_within(decay_within(tables, 3, HEADS), kk, tables, 3)
    between = (
        system_between(kk, tables, through, 1, 0, HEADS),
        system_between(kk, tables, through, 3, 2, HEADS),
        system_between(kk, tables, through, 2, 0, HEADS),
        system_between(kk, tables, through, 2, 1, HEADS),
        system_between(kk, tables, through, 3, 0, HEADS),
        system_between(kk, tables, through, 3, 1, HEADS),
    )
    if SCORES:
        quarters.index(3).store(left)
        fence_async_shared()
        keep_lower(
            attention_tiles, place, matrix, scores.index(0), quarters.index(3), scores.index(1)
        )
    keep_inverse((own_0, own_1, own_2, own_3), between, quarters)
    fence_async_shared()
    keep_lower(
        transform_tiles, place, matrix, quarters.index(0), quarters.index(1), quarters.index(2)
    )
    tma.store_wait(0)

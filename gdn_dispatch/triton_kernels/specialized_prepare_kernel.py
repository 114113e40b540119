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

from gdn_dispatch.triton_kernels import dots_kernel, gates_kernel
from gdn_dispatch.triton_kernels.specialized_inverse_kernel import unit_lower_inverse
from gdn_dispatch.triton_kernels.specialized_tiles_kernel import blank
from gdn_dispatch.triton_kernels.specialized_triangle_kernel import keep_lower

__all__ = ["specialized_prepare_kernel"]

split_decay = gluon.jit(dots_kernel.split_decay.fn)
decay_and_strength = gluon.jit(gates_kernel.decay_and_strength.fn)


@gluon.jit
def add_pairs(a, b, c, d):
    """Sums of two scans at once."""
    return a + c, b + d


@gluon.jit
def inverse_norms(tile):
    """``1 / sqrt(sum x^2 + 1e-6)`` of the rows of a tile."""
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    wide = tile.load(ROWS).to(gl.float32)
    return gl.rsqrt(gl.sum(wide * wide, axis=1) + 1e-6)


@gluon.jit
def keep_gates(
    g, beta, A_log, dt_bias, g_token, g_head, beta_token, beta_head, token, length, first_head,
    gates, BETA_IS_LOGIT: gl.constexpr, NEG_EIGVAL: gl.constexpr,
):  # fmt: skip
    """Cumulative decay (base 2: integers, fractions) and strength of heads side by side.

    Returns e^G, e^(G_last - G) and strength, [heads, tokens] with a warp to a head.
    """
    HEADS: gl.constexpr = gates.shape[1]
    BT: gl.constexpr = gates.shape[2]
    GATES: gl.constexpr = gl.BlockedLayout([1, BT // 32], [1, 32], [4, 1], [1, 0])
    t = gl.arange(0, BT, gl.SliceLayout(0, GATES))[None, :]
    head = first_head + gl.arange(0, HEADS, gl.SliceLayout(1, GATES))[:, None]
    at = token.to(gl.int64)
    wide = head.to(gl.int64)
    decay, strength = decay_and_strength(
        g + at * g_token + (wide * g_head + t * g_token),
        beta + at * beta_token + (wide * beta_head + t * beta_token),
        A_log, dt_bias, head, (t < length) & (head >= 0), BETA_IS_LOGIT, NEG_EIGVAL,
    )  # fmt: skip
    whole, fraction = split_decay(decay)
    whole, fraction = gl.associative_scan((whole, fraction), 1, add_pairs)
    last = t == BT - 1
    whole_left = gl.sum(gl.where(last, whole, 0.0), axis=1)[:, None] - whole
    fraction_left = gl.sum(gl.where(last, fraction, 0.0), axis=1)[:, None] - fraction
    gates.index(0).store(whole)
    gates.index(1).store(fraction)
    gates.index(2).store(strength)
    return gl.exp2(whole + fraction), gl.exp2(whole_left + fraction_left), strength


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
    L2NORM: gl.constexpr,
    BETA_IS_LOGIT: gl.constexpr,
    NEG_EIGVAL: gl.constexpr,
):
    """One chunk of one key head, and HEADS of the GROUP value heads that share it.

    Arguments and results are those of ``prepare_kernel``.
    """
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BT, 16])
    ROW: gl.constexpr = gl.SliceLayout(1, ACC)
    COLUMN: gl.constexpr = gl.SliceLayout(0, ACC)
    DTYPE: gl.constexpr = k_tiles.dtype
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

    queries = gl.allocate_shared_memory(DTYPE, [BT, K], q_tiles.layout)
    keys = gl.allocate_shared_memory(DTYPE, [BT, K], k_tiles.layout)
    VECTOR: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    norms = gl.allocate_shared_memory(gl.float32, [2, BT], VECTOR)
    HEADED: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    attentions = gl.allocate_shared_memory(DTYPE, [2, BT, BT], attention_tiles.layout)
    gates = gl.allocate_shared_memory(gl.float32, [3, HEADS, BT], HEADED)
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(ready, count=1)
    mbarrier.expect(ready, q_tiles.block_type.nbytes + k_tiles.block_type.nbytes)
    tma.async_copy_global_to_shared(k_tiles, [token, key_head * K], ready, keys)
    tma.async_copy_global_to_shared(q_tiles, [token, key_head * K], ready, queries)
    from_start, to_end, strength = keep_gates(
        g, beta, A_log, dt_bias, g_token, g_head, beta_token, beta_head, token, length, first_head,
        gates, BETA_IS_LOGIT, NEG_EIGVAL,
    )  # fmt: skip
    mbarrier.wait(ready, 0)
    mbarrier.invalidate(ready)
    if length < BT:
        blank(keys, length)
        blank(queries, length)
        fence_async_shared()
    zero = gl.zeros([BT, BT], gl.float32, ACC)
    kk = warpgroup_mma(keys, keys.permute((1, 0)), zero, use_acc=False, is_async=True)
    qk = warpgroup_mma(queries, keys.permute((1, 0)), zero, use_acc=False, is_async=True)
    GATES: gl.constexpr = from_start.type.layout
    TOKENS: gl.constexpr = gl.SliceLayout(0, GATES)
    t = gl.arange(0, BT, TOKENS)[None, :]
    k_factor = gl.full([BT], 1.0, gl.float32, TOKENS)
    q_factor = k_factor * scale
    if L2NORM:
        norms.index(0).store(inverse_norms(keys))
        norms.index(1).store(inverse_norms(queries) * scale)
        k_factor = norms.index(0).load(TOKENS)
        q_factor = norms.index(1).load(TOKENS)
    heads = first_head + gl.arange(0, HEADS, gl.SliceLayout(1, GATES))
    factors_at = factors + (heads.to(gl.int64) * chunks + chunk)[:, None] * (5 * BT) + t
    gl.store(factors_at, from_start * strength * k_factor[None, :])
    gl.store(factors_at + BT, from_start * q_factor[None, :])
    gl.store(factors_at + 2 * BT, to_end * k_factor[None, :])
    gl.store(factors_at + 3 * BT, strength)
    # e^G_last, the first number of the fifth row
    gl.store(factors_at + 3 * BT + 1, from_start, mask=(t == BT - 1) & (heads >= 0)[:, None])
    kk, qk = warpgroup_mma_wait(0, deps=(kk, qk))
    if L2NORM:
        k_column = norms.index(0).load(COLUMN)[None, :]
        kk = kk * k_column * norms.index(0).load(ROW)[:, None]
        qk = qk * k_column * norms.index(1).load(ROW)[:, None]
    else:
        qk = qk * scale

    # q and k have been read: what comes out and what is needed on the way take their place
    PANELS: gl.constexpr = gl.NVMMASharedLayout(64, 16, 2)
    ROWS: gl.constexpr = gl.SwizzledSharedLayout(8, 4, 2, [1, 0])
    transforms = queries._reinterpret(DTYPE, [2, BT, BT], transform_tiles.layout)
    rows = gates._reinterpret(gl.float32, [3 * HEADS, BT], VECTOR)
    beside = keys._reinterpret(gl.float16, [2, BT, BT], PANELS).index(0)
    joined = keys._reinterpret(gl.float16, [4, BT, 32], PANELS).index(2)
    product_at = keys._reinterpret(gl.float16, [8, 32, 32], PANELS).index(6)
    neighbours = keys._reinterpret(gl.float16, [8, BT, 16], ROWS).index(7)
    scratch = (beside, neighbours, joined, product_at)
    COPIES: gl.constexpr = 6 if transform_tiles.block_type.shape[0] < BT else 4
    column = gl.arange(0, BT, COLUMN)[None, :]
    for n in range(HEADS):
        head = first_head + n
        whole = rows.index(n)
        fraction = rows.index(HEADS + n)
        between = gl.exp2(
            (whole.load(ROW)[:, None] - whole.load(COLUMN)[None, :])
            + (fraction.load(ROW)[:, None] - fraction.load(COLUMN)[None, :])
        )
        tma.store_wait(COPIES)  # those of the head before the last
        # + n: what is the same for every head is kept in registers, and there are none left
        lower = gl.arange(0, BT, ROW)[:, None] + (n >> 30) >= column
        attentions.index(n % 2).store(gl.where(lower, between * qk, 0.0).to(DTYPE))
        system = between * kk * rows.index(2 * HEADS + n).load(ROW)[:, None]
        unit_lower_inverse(system, scratch, transforms.index(n % 2))
        fence_async_shared()
        keep_lower(attention_tiles, head * chunks + chunk, attentions, n % 2)
        keep_lower(transform_tiles, head * chunks + chunk, transforms, n % 2)
    tma.store_wait(0)

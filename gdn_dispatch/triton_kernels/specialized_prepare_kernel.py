"""What a chunk needs that no state enters, for Hopper: ``prepare_kernel`` in Gluon.

The same numbers from fewer registers and instructions: operands and results pass through shared
memory by the copy engine, and no product waits for operands to move between lanes.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from gdn_dispatch.triton_kernels import dots_kernel, gates_kernel
from gdn_dispatch.triton_kernels.specialized_tiles_kernel import blank

__all__ = ["specialized_prepare_kernel"]

split_decay = gluon.jit(dots_kernel.split_decay.fn)
decay_and_strength = gluon.jit(gates_kernel.decay_and_strength.fn)


@gluon.jit
def add_pairs(a, b, c, d):
    """Sums of two scans at once."""
    return a + c, b + d


@gluon.jit
def half(x):
    """As an operand of the inverse's products."""
    return x.to(gl.float16)


@gluon.jit
def times(left, right_t):
    """Products within a warp [4, 16, 16], the right operand given transposed: it lies as it is."""
    BLOCKS: gl.constexpr = left.type.layout
    return mma_v2(
        gl.convert_layout(left, gl.DotOperandLayout(0, BLOCKS, 2)),
        gl.convert_layout(gl.permute(right_t, (0, 2, 1)), gl.DotOperandLayout(1, BLOCKS, 2)),
        gl.zeros([4, 16, 16], gl.float32, BLOCKS),
    )


@gluon.jit
def join_within(inverse, transposed, lower_t, i, j, B: gl.constexpr):
    """Inverses of unit triangular blocks [4, 16, 16] of 2 B tokens, from those of B: X - X J X.

    With every block comes its transpose, since what is a product's left operand as it lies in the
    registers of a warp is the right one of its transpose.
    """
    joint_t = gl.where((i // (2 * B) == j // (2 * B)) & (i // B != j // B), lower_t, 0.0)
    product = half(times(half(inverse), half(joint_t)))
    return (
        inverse - times(product, half(transposed)),
        transposed - times(half(transposed), product),
    )


@gluon.jit
def unit_lower_inverse(lower, strength, scratch, transform):
    """``(I + strictly_lower)^-1 diag(strength)`` [64, 64] into ``transform``.

    By blocks that double, as in ``dots_kernel.unit_lower_inverse``: up to 16 tokens within a warp;
    then 32, where half of the warps need their neighbours' blocks; then 64, all warps together.
    What ``lower`` holds on and above the diagonal is not read.
    """
    ACC: gl.constexpr = lower.type.layout
    BLOCKS: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [4, 1, 1], [1, 16, 8])
    PAIRS: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [2, 2, 1], [1, 16, 8])
    HALVES: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [2, 2], [16, 8])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, HALVES, 2)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, HALVES, 2)
    beside, neighbours, joined, product_at = scratch
    beside.store(half(lower))
    block = gl.arange(0, 64, gl.SliceLayout(1, ACC))[:, None] // 16
    other = gl.arange(0, 64, gl.SliceLayout(0, ACC))[None, :] // 16
    diagonal = gl.sum(gl.where(block == other, lower, 0.0).reshape([64, 4, 16]), axis=1)
    diagonal = gl.convert_layout(diagonal.reshape([4, 16, 16]), BLOCKS)
    joint = gl.where((block == other + 1) & (block % 2 == 1), lower, 0.0)
    joint = gl.sum(joint.reshape([64, 4, 16]), axis=1)
    joint = gl.convert_layout(joint.reshape([4, 16, 16]), BLOCKS)
    a = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, BLOCKS)))[None, :, None]
    b = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, BLOCKS)))[None, None, :]
    diagonal = gl.where(a > b, diagonal, 0.0)
    diagonal_t = gl.convert_layout(gl.permute(half(diagonal), (0, 2, 1)), BLOCKS)
    joint_t = gl.convert_layout(gl.permute(half(joint), (0, 2, 1)), BLOCKS)
    pairs = a // 2 == b // 2
    inverse = gl.where(a == b, 1.0, gl.where(pairs, -diagonal, 0.0))
    transposed = gl.where(a == b, 1.0, gl.where(pairs, -diagonal_t.to(gl.float32), 0.0))
    inverse, transposed = join_within(inverse, transposed, diagonal_t, a, b, 2)
    inverse, transposed = join_within(inverse, transposed, diagonal_t, a, b, 4)
    inverse, transposed = join_within(inverse, transposed, diagonal_t, a, b, 8)

    neighbours.store(half(inverse).reshape([64, 16]))
    product = half(times(half(inverse), joint_t)).reshape([2, 32, 16])
    product = mma_v2(
        gl.convert_layout(product, gl.DotOperandLayout(0, PAIRS, 2)),
        neighbours.reshape([2, 32, 16]).slice(0, 16, 1).load(gl.DotOperandLayout(1, PAIRS, 2)),
        gl.zeros([2, 32, 16], gl.float32, PAIRS),
    )
    product = gl.convert_layout(product.reshape([4, 16, 16]), BLOCKS)
    odd = gl.arange(0, 4, gl.SliceLayout(1, gl.SliceLayout(2, BLOCKS)))[:, None, None] % 2 == 1
    first = gl.where(odd, -product, inverse)
    second = gl.where(odd, inverse, 0.0)
    pair = gl.permute(gl.join(first, second), (0, 1, 3, 2)).reshape([64, 32])
    joined.store(half(pair))

    zero = gl.zeros([32, 32], gl.float32, HALVES)
    right = beside.slice(32, 32, 0).slice(0, 32, 1).load(RIGHT)
    product = mma_v2(joined.slice(32, 32).load(LEFT), right, zero)
    product_at.store(half(product))
    WIDE: gl.constexpr = pair.reshape([64, 1, 32]).type.layout
    whole = (pair.reshape([64, 1, 32]) + gl.zeros([64, 2, 32], gl.float32, WIDE)).reshape([64, 64])
    whole = gl.where(block // 2 == other // 2, gl.convert_layout(whole, ACC), 0.0)
    columns = strength.load(gl.SliceLayout(0, ACC))[None, :]
    transform.store((whole * columns).to(transform.dtype))
    product = mma_v2(product_at.load(LEFT), joined.slice(0, 32).load(RIGHT), zero)
    columns = strength.slice(0, 32).load(gl.SliceLayout(0, HALVES))[None, :]
    transform.slice(32, 32, 0).slice(0, 32, 1).store((-product * columns).to(transform.dtype))


@gluon.jit
def inverse_norms(tile):
    """``1 / sqrt(sum x^2 + 1e-6)`` of the rows of a tile."""
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    wide = tile.load(ROWS).to(gl.float32)
    return gl.rsqrt(gl.sum(wide * wide, axis=1) + 1e-6)


@gluon.jit
def keep_gates(
    g, beta, A_log, dt_bias, g_token, g_head, beta_token, beta_head, token, length, head, gates,
    place, BETA_IS_LOGIT: gl.constexpr, NEG_EIGVAL: gl.constexpr,
):  # fmt: skip
    """Cumulative decay (base 2: integers, fractions), strength, and e^G and e^(G_last - G)."""
    BT: gl.constexpr = gates.shape[1]
    GATES: gl.constexpr = gl.BlockedLayout([BT // 32], [32], [4], [0])
    t = gl.arange(0, BT, GATES)
    at = token.to(gl.int64)
    decay, strength = decay_and_strength(
        g + (at * g_token + head * g_head) + t * g_token,
        beta + (at * beta_token + head * beta_head) + t * beta_token,
        A_log, dt_bias, head, t < length, BETA_IS_LOGIT, NEG_EIGVAL,
    )  # fmt: skip
    whole, fraction = split_decay(decay)
    whole, fraction = gl.associative_scan((whole, fraction), 0, add_pairs)
    last = t == BT - 1
    whole_left = gl.sum(gl.where(last, whole, 0.0), axis=0) - whole
    fraction_left = gl.sum(gl.where(last, fraction, 0.0), axis=0) - fraction
    gates.index(place).store(whole)
    gates.index(place + 1).store(fraction)
    gates.index(place + 2).store(strength)
    gates.index(place + 3).store(gl.exp2(whole + fraction))
    gates.index(place + 4).store(gl.exp2(whole_left + fraction_left))


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
    factors,  # [HV, chunks, 4, BT] fp32
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
    GATES: gl.constexpr = gl.BlockedLayout([BT // 32], [32], [4], [0])
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
    gates = gl.allocate_shared_memory(gl.float32, [HEADS * 5, BT], VECTOR)
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(ready, count=1)
    mbarrier.expect(ready, q_tiles.block_type.nbytes + k_tiles.block_type.nbytes)
    tma.async_copy_global_to_shared(k_tiles, [token, key_head * K], ready, keys)
    tma.async_copy_global_to_shared(q_tiles, [token, key_head * K], ready, queries)
    t = gl.arange(0, BT, GATES)
    for n in gl.static_range(HEADS):
        keep_gates(
            g, beta, A_log, dt_bias, g_token, g_head, beta_token, beta_head, token, length,
            first_head + n, gates, 5 * n, BETA_IS_LOGIT, NEG_EIGVAL,
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
    k_factor = gl.full([BT], 1.0, gl.float32, GATES)
    q_factor = gl.full([BT], 1.0, gl.float32, GATES) * scale
    if L2NORM:
        norms.index(0).store(inverse_norms(keys))
        norms.index(1).store(inverse_norms(queries) * scale)
        k_factor = norms.index(0).load(GATES)
        q_factor = norms.index(1).load(GATES)
    for n in gl.static_range(HEADS):
        from_start = gates.index(5 * n + 3).load(GATES)
        to_end = gates.index(5 * n + 4).load(GATES)
        factors_at = factors + ((first_head + n).to(gl.int64) * chunks + chunk) * (4 * BT)
        gl.store(factors_at + t, from_start * k_factor)
        gl.store(factors_at + BT + t, from_start * q_factor)
        gl.store(factors_at + 2 * BT + t, to_end * k_factor)
        # e^G_last, the first number of the fourth row
        gl.store(factors_at + 2 * BT + t + 1, from_start, mask=t == BT - 1)
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
    transform_at = queries._reinterpret(DTYPE, [2, BT, BT], transform_tiles.layout).index(0)
    attention_at = queries._reinterpret(DTYPE, [2, BT, BT], attention_tiles.layout).index(1)
    beside = keys._reinterpret(gl.float16, [2, BT, BT], PANELS).index(0)
    joined = keys._reinterpret(gl.float16, [4, BT, 32], PANELS).index(2)
    product_at = keys._reinterpret(gl.float16, [8, 32, 32], PANELS).index(6)
    neighbours = keys._reinterpret(gl.float16, [8, BT, 16], ROWS).index(7)
    scratch = (beside, neighbours, joined, product_at)
    column = gl.arange(0, BT, COLUMN)[None, :]
    for n in range(HEADS):
        head = first_head + n
        whole = gates.index(5 * n)
        fraction = gates.index(5 * n + 1)
        strengths = gates.index(5 * n + 2)
        between = gl.exp2(
            (whole.load(ROW)[:, None] - whole.load(COLUMN)[None, :])
            + (fraction.load(ROW)[:, None] - fraction.load(COLUMN)[None, :])
        )
        tma.store_wait(0)
        # + n: what is the same for every head is kept in registers, and there are none left
        lower = gl.arange(0, BT, ROW)[:, None] + (n >> 30) >= column
        attention_at.store(gl.where(lower, between * qk, 0.0).to(DTYPE))
        system = between * kk * strengths.load(ROW)[:, None]
        unit_lower_inverse(system, strengths, scratch, transform_at)
        fence_async_shared()
        tile = (head * chunks + chunk) * BT
        tma.async_copy_shared_to_global(attention_tiles, [tile, 0], attention_at)
        tma.async_copy_shared_to_global(transform_tiles, [tile, 0], transform_at)
    tma.store_wait(0)

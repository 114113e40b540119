"""What a chunk needs that no state enters: gates, the inverse, and attention inside the chunk."""

import triton
import triton.language as tl

from gdn_dispatch.triton_kernels.dots_kernel import split_decay
from gdn_dispatch_ascend.kernels.solve_kernel import unit_lower_inverse


@triton.jit
def chunk_of(indices, nonempty, starts, cu_seqlens, chunk, BT: tl.constexpr):
    """First token (int64) and number of tokens of a chunk; 0 tokens where there is no such chunk.

    Without a branch: what is not there is looked up as if it were the first.
    """
    nth = tl.load(indices + 2 * chunk)
    row = tl.maximum(tl.load(nonempty + tl.maximum(nth, 0)), 0)
    offset = tl.maximum(tl.load(indices + 2 * chunk + 1), 0) * BT
    length = tl.load(cu_seqlens + row + 1) - tl.load(cu_seqlens + row) - offset
    tokens = tl.where(nth >= 0, tl.minimum(length, BT), 0)
    return (tl.load(starts + row) + offset).to(tl.int64), tokens


@triton.jit(do_not_specialize=[
    "chunks", "HV", "g_token", "beta_token",
], do_not_specialize_on_alignment=["g", "beta"])  # fmt: skip
def gates_kernel(
    g, beta, A_log, dt_bias,
    gates,  # [HV, chunks, 3, BT] fp32
    indices, nonempty, starts, cu_seqlens,
    chunks, HV,
    g_token, g_head, beta_token, beta_head,
    BT: tl.constexpr, BH: tl.constexpr, BETA_IS_LOGIT: tl.constexpr, NEG_EIGVAL: tl.constexpr,
):  # fmt: skip
    """Gates of a chunk for BH value heads: tokens along rows as they come, along columns as left.

    Per token: the cumulative base-2 decay since the chunk began, integers and fractions apart, and
    the write strength. Rows past the chunk's end decay by nothing and write nothing.
    """
    blocks = (HV + BH - 1) // BH
    tasks = chunks * blocks
    core = tl.program_id(0)
    t = tl.arange(0, BT)
    t_value = t.to(tl.float32)
    for i in range((tasks - core + tl.num_programs(0) - 1) // tl.num_programs(0)):
        task = core + i * tl.num_programs(0)
        chunk = task // blocks
        first = task % blocks * BH
        start, tokens = chunk_of(indices, nonempty, starts, cu_seqlens, chunk, BT)
        head = tl.arange(0, BH)
        heads = HV - first
        inside = (t < tokens)[:, None] & (head < heads)[None, :]
        g_at = g + start * g_token + first * g_head
        decay = tl.load(
            g_at + (t[:, None] * g_token + head[None, :] * g_head), mask=inside, other=0.0
        ).to(tl.float32)
        live = t_value[:, None] < tl.zeros([BT, BH], tl.float32) + tokens.to(tl.float32)
        if A_log is not None:
            x = decay
            if dt_bias is not None:
                bias = tl.load(dt_bias + first + head, mask=head < heads, other=0.0)
                x = x + bias.to(tl.float32)[None, :]
            # softplus = max(x, 0) + log1p(e); log1p from log, corrected for what 1 + e rounds away
            e = tl.exp(-tl.abs(x))
            u = 1.0 + e
            log1p = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
            rate = tl.load(A_log + first + head, mask=head < heads, other=0.0).to(tl.float32)
            decay = -tl.exp(rate)[None, :] * (tl.maximum(x, 0.0) + log1p)
            decay = tl.where(live, decay, 0.0)
        beta_at = beta + start * beta_token + first * beta_head
        strength = tl.load(
            beta_at + (t[:, None] * beta_token + head[None, :] * beta_head), mask=inside, other=0.0
        ).to(tl.float32)
        if BETA_IS_LOGIT:
            strength = tl.where(live, 1.0 / (1.0 + tl.exp(-strength)), 0.0)
        if NEG_EIGVAL:
            strength = strength * 2.0
        whole, fraction = split_decay(decay)
        out = gates + (first.to(tl.int64) * chunks + chunk) * (3 * BT)
        place = head[:, None] * (chunks * (3 * BT)) + t[None, :]
        wanted = (head < heads)[:, None] & (t < BT)[None, :]
        tl.store(out + place, tl.cumsum(tl.trans(whole), axis=1), mask=wanted)
        tl.store(out + BT + place, tl.cumsum(tl.trans(fraction), axis=1), mask=wanted)
        tl.store(out + 2 * BT + place, tl.trans(strength), mask=wanted)


@triton.jit(do_not_specialize=[
    "chunks", "H", "q_token", "q_head", "k_token", "k_head",
])  # fmt: skip
def prepare_kernel(
    q, k, gates,
    transform,  # [HV, chunks, BT, BT]
    attention,  # [HV, chunks, BT, BT]
    factors,  # [HV, chunks, 4, BT] fp32
    indices, nonempty, starts, cu_seqlens,
    chunks, scale, H,
    q_token, q_head, k_token, k_head,
    K: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr,
    GROUP: tl.constexpr, HEADS: tl.constexpr, L2NORM: tl.constexpr,
):  # fmt: skip
    """One chunk of one key head, and HEADS of the GROUP value heads that share it.

    With G the cumulative decay inside the chunk and D_ij = e^(G_i - G_j) for i >= j, per value head

        transform = (I + strictly_lower(beta_i D K K^T))^-1 diag(beta)
        attention = scale D (Q K^T)

    and per token what scales rows in the recurrence: e^G |k|^-1, scale e^G |q|^-1,
    e^(G_last - G) |k|^-1; and e^G_last. Rows and columns past the end are zero. q and k themselves
    are never normalised: the factors of their rows are kept in fp32 instead.
    """
    PARTS: tl.constexpr = GROUP // HEADS
    tasks = chunks * H * PARTS
    core = tl.program_id(0)
    t = tl.arange(0, BT)
    dims = tl.arange(0, BK)
    # compared as fp32: integers are compared one by one
    place = t.to(tl.float32)
    later = place[:, None] > place[None, :]
    not_earlier = place[:, None] >= place[None, :]
    for i in range((tasks - core + tl.num_programs(0) - 1) // tl.num_programs(0)):
        task = core + i * tl.num_programs(0)
        chunk = task // (H * PARTS)
        key_head = task // PARTS % H
        first_head = key_head * GROUP + task % PARTS * HEADS
        start, tokens = chunk_of(indices, nonempty, starts, cu_seqlens, chunk, BT)
        mask = (t < tokens)[:, None] & (dims < K)[None, :]
        q_at = q + start * q_token + key_head * q_head
        k_at = k + start * k_token + key_head * k_head
        keys = tl.load(k_at + (t[:, None] * k_token + dims[None, :]), mask=mask, other=0.0)
        queries = tl.load(q_at + (t[:, None] * q_token + dims[None, :]), mask=mask, other=0.0)

        q_factor = tl.full([BT], 0.0, tl.float32) + scale
        k_factor = tl.full([BT], 1.0, tl.float32)
        if L2NORM:
            wide = queries.to(tl.float32)
            q_factor = scale * tl.rsqrt(tl.sum(wide * wide, axis=1) + 1e-6)
        # a product may overwrite its left operand, so each is taken for the last time
        qk = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        kk = tl.dot(keys, tl.trans(keys), input_precision="ieee")
        if L2NORM:
            # the squares are on the diagonal, and the keys never leave the cube
            squares = tl.sum(tl.where(place[:, None] == place[None, :], kk, 0.0), axis=1)
            k_factor = tl.rsqrt(squares + 1e-6)
        kk = kk * k_factor[:, None] * k_factor[None, :]
        qk = qk * q_factor[:, None] * k_factor[None, :]

        for j in range(HEADS):
            at = (first_head + j).to(tl.int64) * chunks + chunk
            gates_at = gates + at * (3 * BT)
            whole = tl.load(gates_at + t)
            fraction = tl.load(gates_at + BT + t)
            strength = tl.load(gates_at + 2 * BT + t)
            whole_total = tl.load(gates_at + (BT - 1))
            fraction_total = tl.load(gates_at + (2 * BT - 1))
            from_start = tl.exp2(whole + fraction)
            to_end = tl.exp2((whole_total - whole) + (fraction_total - fraction))

            between = (whole[:, None] - whole[None, :]) + (fraction[:, None] - fraction[None, :])
            between = tl.exp2(tl.where(not_earlier, between, -1000.0))
            tile = t[:, None] * BT + t[None, :]
            tl.store(
                attention + at * (BT * BT) + tile, (between * qk).to(attention.dtype.element_ty)
            )
            system = tl.where(later, between * kk * strength[:, None], 0.0)
            inverse = unit_lower_inverse(system, BT) * strength[None, :]
            tl.store(transform + at * (BT * BT) + tile, inverse.to(transform.dtype.element_ty))

            factors_at = factors + at * (4 * BT)
            tl.store(factors_at + t, from_start * k_factor)
            tl.store(factors_at + BT + t, from_start * q_factor)
            tl.store(factors_at + 2 * BT + t, to_end * k_factor)
            total = tl.zeros([BT], tl.float32) + (whole_total + fraction_total)
            tl.store(factors_at + 3 * BT + t, tl.exp2(total))

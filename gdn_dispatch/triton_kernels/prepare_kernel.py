"""What a chunk needs that no state enters: gates, the inverse, and attention inside the chunk."""

from __future__ import annotations

import triton
import triton.language as tl

from gdn_dispatch.triton_kernels.dots_kernel import split_decay, unit_lower_inverse
from gdn_dispatch.triton_kernels.gates_kernel import decay_and_strength, read_gates
from gdn_dispatch.triton_kernels.rows_kernel import load_rows

__all__ = ["prepare_kernel"]


@triton.jit(do_not_specialize=["chunks", "H"])
def prepare_kernel(
    q,
    k,
    g,
    beta,
    A_log,
    dt_bias,
    transform,  # [HV, chunks, BT, BT]
    attention,  # [HV, chunks, BT, BT]
    factors,  # [HV, chunks, 5, BT] fp32
    chunk_indices,
    nonempty,
    starts,
    cu_seqlens,
    chunks,
    scale,
    q_token,
    q_head,
    k_token,
    k_head,
    g_token,
    g_head,
    beta_token,
    beta_head,
    H,
    K: tl.constexpr,
    BK: tl.constexpr,
    BT: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    L2NORM: tl.constexpr,
    BETA_IS_LOGIT: tl.constexpr,
    NEG_EIGVAL: tl.constexpr,
    PRECISION: tl.constexpr,
    INVERSE_PRECISION: tl.constexpr,
):
    """One chunk of one key head, and HEADS of the GROUP value heads that share it.

    With G the cumulative decay inside the chunk and D_ij = e^(G_i - G_j) for i >= j, per value head

        transform = (I + strictly_lower(beta_i D K K^T))^-1
        attention = scale D (Q K^T)

    and per token what scales rows in the recurrence: beta e^G |k|^-1, scale e^G |q|^-1,
    e^(G_last - G) |k|^-1, beta; and e^G_last. Past the end attention and beta are zero.

    What scales is kept in fp32 and apart: q and k are never normalised, and beta is no part of the
    transform, whose diagonal, most of what it does, stays a 1 that no dtype rounds.
    """
    PARTS: tl.constexpr = GROUP // HEADS
    chunk = tl.program_id(0) // (H * PARTS)
    key_head = (tl.program_id(0) // PARTS) % H
    first_head = key_head * GROUP + tl.program_id(0) % PARTS * HEADS
    nth = tl.load(chunk_indices + 2 * chunk)
    if nth < 0:
        return
    row = tl.load(nonempty + nth)
    offset = tl.load(chunk_indices + 2 * chunk + 1) * BT
    length = tl.load(cu_seqlens + row + 1) - tl.load(cu_seqlens + row) - offset
    first = (tl.load(starts + row) + offset).to(tl.int64)

    t = tl.arange(0, BT)
    live = t < length
    dims = tl.arange(0, COLUMNS)
    mask = live[:, None]
    if K != BK:
        mask = mask & (dims < K)[None, :]
    q_at = q + first * q_token + key_head * q_head
    k_at = k + first * k_token + key_head * k_head
    if COLUMNS == BK:
        keys = tl.load(k_at + t[:, None] * k_token + dims[None, :], mask=mask, other=0.0)
        queries = tl.load(q_at + t[:, None] * q_token + dims[None, :], mask=mask, other=0.0)

    # The branch is always taken. It keeps these products apart from those of the inverse: where
    # operands of both lay at one address of shared memory, ptxas 12.8 formed the descriptor of the
    # second from a register that it never wrote (reads outside of shared memory on an H200).
    kk = tl.zeros([BT, BT], tl.float32)
    qk = tl.zeros([BT, BT], tl.float32)
    q_squares = tl.zeros([BT], tl.float32)
    k_squares = tl.zeros([BT], tl.float32)
    if COLUMNS == BK:
        if length > 0:
            keys_t = tl.trans(keys)
            kk = tl.dot(keys, keys_t, input_precision=PRECISION)
            qk = tl.dot(queries, keys_t, input_precision=PRECISION)
    else:
        # a few columns at a time, where the registers do not hold whole operands
        end = BK
        if q.dtype.element_ty != tl.float32:
            end = tl.where(length > 0, BK, 0)  # for what the branch above is there
        for column in tl.range(0, end, COLUMNS, num_stages=1):
            keys = load_rows(k_at, k_token, t, column + dims, live, K, BK)
            queries = load_rows(q_at, q_token, t, column + dims, live, K, BK)
            keys_t = tl.trans(keys)
            kk = tl.dot(keys, keys_t, acc=kk, input_precision=PRECISION)
            qk = tl.dot(queries, keys_t, acc=qk, input_precision=PRECISION)
            if L2NORM:
                wide = queries.to(tl.float32)
                q_squares += tl.sum(wide * wide, axis=1)
                wide = keys.to(tl.float32)
                k_squares += tl.sum(wide * wide, axis=1)
    q_factor = tl.full([BT], scale, tl.float32)
    k_factor = tl.full([BT], 1.0, tl.float32)
    if L2NORM:
        if COLUMNS == BK:
            wide = queries.to(tl.float32)
            q_squares = tl.sum(wide * wide, axis=1)
        q_factor = scale * tl.rsqrt(q_squares + 1e-6)
        if COLUMNS == BK:
            wide = keys.to(tl.float32)
            k_squares = tl.sum(wide * wide, axis=1)
        k_factor = tl.rsqrt(k_squares + 1e-6)
        kk = kk * k_factor[:, None] * k_factor[None, :]
        qk = qk * k_factor[None, :]
    qk = qk * q_factor[:, None]

    lower = t[:, None] >= t[None, :]
    strictly_lower = t[:, None] > t[None, :]
    tile = t[:, None] * BT + t[None, :]
    for j in tl.range(HEADS, num_stages=1, disable_licm=True):
        head = first_head + j
        gates = read_gates(
            g + (first * g_token + head * g_head) + t * g_token,
            beta + (first * beta_token + head * beta_head) + t * beta_token,
            A_log,
            dt_bias,
            head,
            live,
        )
        decay, strength = decay_and_strength(
            gates, live, A_log is not None, BETA_IS_LOGIT, NEG_EIGVAL
        )
        whole, fraction = split_decay(decay)
        whole_total = tl.sum(whole, axis=0)
        fraction_total = tl.sum(fraction, axis=0)
        whole = tl.cumsum(whole, axis=0)
        fraction = tl.cumsum(fraction, axis=0)
        from_start = tl.exp2(whole + fraction)
        to_end = tl.exp2((whole_total - whole) + (fraction_total - fraction))

        # added to a zero that the compiler takes for part of a product, the exponent is laid out
        # like one, and needs no way through shared memory
        zero = tl.where(length > 0, 0.0, kk)
        between = tl.exp2(
            zero + (whole[:, None] - whole[None, :]) + (fraction[:, None] - fraction[None, :])
        )
        system = tl.where(strictly_lower, between * kk * strength[:, None], 0.0)
        scores = tl.where(lower, between * qk, 0.0)
        at = head.to(tl.int64) * chunks + chunk
        tl.store(attention + at * (BT * BT) + tile, scores.to(attention.dtype.element_ty))
        inverse = unit_lower_inverse(system, BT, INVERSE_PRECISION)
        tl.store(transform + at * (BT * BT) + tile, inverse.to(transform.dtype.element_ty))

        factors_at = factors + at * (5 * BT)
        tl.store(factors_at + t, from_start * strength * k_factor)
        tl.store(factors_at + BT + t, from_start * q_factor)
        tl.store(factors_at + 2 * BT + t, to_end * k_factor)
        tl.store(factors_at + 3 * BT + t, strength)
        tl.store(factors_at + 4 * BT, tl.exp2(whole_total + fraction_total))

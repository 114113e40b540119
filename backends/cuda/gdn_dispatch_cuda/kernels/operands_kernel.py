"""What a library does not do itself: unit heads, and gates in its own form. One launch for all."""

from __future__ import annotations

import triton
import triton.language as tl

from gdn_dispatch.triton_kernels.gates_kernel import decay_and_strength, read_gates

__all__ = ["operands_kernel"]


@triton.jit
def _unit(x, out, pair, live, token, head, H, K: tl.constexpr, BK: tl.constexpr):
    dims = tl.arange(0, BK)
    mask = live[:, None]
    if K != BK:
        mask = mask & (dims < K)[None, :]
    at = (pair // H).to(tl.int64) * token + pair % H * head
    wide = tl.load(x + at[:, None] + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    unit = wide * tl.rsqrt(tl.sum(wide * wide, axis=1) + 1e-6)[:, None]
    to = out + pair.to(tl.int64)[:, None] * K + dims[None, :]
    tl.store(to, unit.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gates(
    g, beta, A_log, dt_bias, g_out, beta_out, block, pairs, HV, smallest,
    g_token, g_head, beta_token, beta_head,
    FLAT: tl.constexpr, LINEAR: tl.constexpr,
    BETA_IS_LOGIT: tl.constexpr, NEG_EIGVAL: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    pair = block * PAIRS + tl.arange(0, PAIRS)
    live = pair < pairs
    head = pair % HV
    if FLAT:
        g_at, beta_at = g + pair, beta
        if beta_out is not None:
            beta_at = beta + pair
    else:
        token = (pair // HV).to(tl.int64)
        g_at = g + token * g_token + head * g_head
        beta_at = beta
        if beta_out is not None:
            beta_at = beta + token * beta_token + head * beta_head
    if beta_out is None:
        beta_at = g_at  # read by nobody
    gates = read_gates(g_at, beta_at, A_log, dt_bias, head, live)
    decay, strength = decay_and_strength(gates, live, A_log is not None, BETA_IS_LOGIT, NEG_EIGVAL)
    if LINEAR:
        decay = tl.exp(decay)
    else:
        decay = tl.maximum(decay, smallest)
    tl.store(g_out + pair, decay, mask=live)
    if beta_out is not None:
        tl.store(beta_out + pair, strength, mask=live)


@triton.jit(do_not_specialize=["heads_blocks", "heads", "H", "pairs", "HV"])
def operands_kernel(
    q,  # [tokens, H, K]; None: gates only
    k,  # the same
    q_out,  # contiguous
    k_out,
    g,  # [tokens, HV]
    beta,  # the same; None where it stays as it is
    A_log,
    dt_bias,
    g_out,  # contiguous, fp32
    beta_out,
    heads_blocks,  # programs for each of q and k
    heads,  # tokens * H
    H,
    pairs,  # tokens * HV
    HV,
    smallest,
    q_token,
    q_head,
    k_token,
    k_head,
    g_token,
    g_head,
    beta_token,
    beta_head,
    K: tl.constexpr,
    BK: tl.constexpr,
    FLAT: tl.constexpr,
    LINEAR: tl.constexpr,
    BETA_IS_LOGIT: tl.constexpr,
    NEG_EIGVAL: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """``x / sqrt(sum x^2 + 1e-6)`` of ROWS heads of q or of k, or the gates of PAIRS tokens' heads.

    Gates are decay, linear or logarithmic and at least ``smallest``, and write strength. FLAT:
    those that come in lie side by side.
    """
    block = tl.program_id(0)
    if q is not None:
        if block < 2 * heads_blocks:
            pair = block // 2 * ROWS + tl.arange(0, ROWS)
            if block % 2 == 0:
                _unit(q, q_out, pair, pair < heads, q_token, q_head, H, K, BK)
            else:
                _unit(k, k_out, pair, pair < heads, k_token, k_head, H, K, BK)
            return
        block -= 2 * heads_blocks
    _gates(
        g, beta, A_log, dt_bias, g_out, beta_out, block, pairs, HV, smallest,
        g_token, g_head, beta_token, beta_head,
        FLAT, LINEAR, BETA_IS_LOGIT, NEG_EIGVAL, PAIRS,
    )  # fmt: skip

"""What a library does not do itself: unit heads, and gates in its own form. Elementwise passes."""

from __future__ import annotations

import triton
import triton.language as tl

from gdn_dispatch.triton_kernels.gates_kernel import decay_and_strength

__all__ = ["gates_kernel", "unit_heads_kernel"]


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


@triton.jit(do_not_specialize=["pairs", "H"])
def unit_heads_kernel(
    q,  # [tokens, H, K]
    k,  # the same
    q_out,  # contiguous
    k_out,
    pairs,  # tokens * H
    H,
    q_token,
    q_head,
    k_token,
    k_head,
    K: tl.constexpr,
    BK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """``x / sqrt(sum x^2 + 1e-6)`` of ROWS heads, of q and of k in turn."""
    pair = tl.program_id(0) // 2 * ROWS + tl.arange(0, ROWS)
    live = pair < pairs
    if tl.program_id(0) % 2 == 0:
        _unit(q, q_out, pair, live, q_token, q_head, H, K, BK)
    else:
        _unit(k, k_out, pair, live, k_token, k_head, H, K, BK)


@triton.jit(do_not_specialize=["pairs", "HV"])
def gates_kernel(
    g,  # [tokens, HV]
    beta,  # the same
    A_log,
    dt_bias,
    g_out,  # contiguous, fp32
    beta_out,
    pairs,  # tokens * HV
    HV,
    smallest,
    g_token,
    g_head,
    beta_token,
    beta_head,
    LINEAR: tl.constexpr,
    BETA_IS_LOGIT: tl.constexpr,
    NEG_EIGVAL: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Decay, linear or logarithmic and at least ``smallest``, and write strength."""
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    live = pair < pairs
    token = (pair // HV).to(tl.int64)
    head = pair % HV
    decay, strength = decay_and_strength(
        g + token * g_token + head * g_head,
        beta + token * beta_token + head * beta_head,
        A_log,
        dt_bias,
        head,
        live,
        BETA_IS_LOGIT,
        NEG_EIGVAL,
    )
    if LINEAR:
        decay = tl.exp(decay)
    else:
        decay = tl.maximum(decay, smallest)
    tl.store(g_out + pair, decay, mask=live)
    tl.store(beta_out + pair, strength, mask=live)

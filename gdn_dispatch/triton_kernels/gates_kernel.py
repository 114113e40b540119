"""Decay and write strength of a block of tokens."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["decay_and_strength", "read_gates"]


@triton.jit
def read_gates(g, beta, A_log, dt_bias, head, live):
    """What decay and write strength are made of, in fp32.

    ``g`` and ``beta`` are pointers of one shape, ``head`` the value head they are of.

    Returns:
        Gates, 0 where ``live`` is false; then of the head A_log and dt_bias, 0 where there is none.
    """
    decay = tl.load(g, mask=live, other=0.0).to(tl.float32)
    strength = tl.load(beta, mask=live, other=0.0).to(tl.float32)
    log_rate = 0.0
    bias = 0.0
    if A_log is not None:
        log_rate = tl.load(A_log + head).to(tl.float32)
    if dt_bias is not None:
        bias = tl.load(dt_bias + head).to(tl.float32)
    return decay, strength, log_rate, bias


@triton.jit
def decay_and_strength(
    gates, live, RAW: tl.constexpr, BETA_IS_LOGIT: tl.constexpr, NEG_EIGVAL: tl.constexpr
):
    """Natural-log decay and write strength, from what ``read_gates`` returns.

    RAW: decay is yet to be made, since there is an A_log. Both are 0 where ``live`` is false.
    """
    decay, strength, log_rate, bias = gates
    if RAW:
        x = decay + bias
        # softplus = max(x, 0) + log1p(e); log1p from log, corrected for what 1 + e rounds away
        e = tl.exp(-tl.abs(x))
        u = 1.0 + e
        log1p = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
        decay = -tl.exp(log_rate) * (tl.maximum(x, 0.0) + log1p)
        decay = tl.where(live, decay, 0.0)
    if BETA_IS_LOGIT:
        strength = 1.0 / (1.0 + tl.exp(-strength))
        strength = tl.where(live, strength, 0.0)
    if NEG_EIGVAL:
        strength = strength * 2.0
    return decay, strength
